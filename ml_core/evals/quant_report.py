"""What bench quant_loss quantizes: the radiology student, on simulated films."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml_core import artifacts
from ml_core.config import from_mapping
from ml_core.contracts import FindingState
from ml_core.data.chest import film_prepare
from ml_core.data.findings import FINDINGS
from ml_core.data.phantom import render
from ml_core.data.report_tokens import FIRST_TEXT, PAD, STATE_INDEX, STOP, ReportTokenizer
from ml_core.distill.tasks.metrics import Array, Metric
from ml_core.evals.quant_tasks import Subject
from ml_core.models.cnn_teacher import presence_logit
from ml_core.models.report_rules import Rules, states_decide
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.quant import QuantEmbedding, QuantLinear, load_quantized
from ml_core.seed import torch_generator

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"


def report_subject(*, quick: bool) -> Subject:
    """The shipped student, its INT8 weights as floats, trained on in FP32 so that they leave the levels of before."""
    folder = PRETRAINED / "report-student"
    manifest = artifacts.read(folder)
    tokenizer = ReportTokenizer((folder / "tokenizer.json").read_text())
    rules = from_mapping(Rules, manifest.config["rules"], where="config.rules").for_films(simulated=True)
    model = _floats(folder, config=from_mapping(ReportStudentConfig, manifest.config["student"]))
    size, tokens = model.config.image_size, model.config.max_tokens
    train_n, test_n = (8, 8) if quick else (96, 160)
    film = partial(_film, size=size, tokens=tokens, tokenizer=tokenizer)
    train = _stacked([film(seed) for seed in range(960_000_000, 960_000_000 + train_n)])
    test = _stacked([film(seed) for seed in range(965_000_000, 965_000_000 + test_n)])
    dev = _stacked([film(seed) for seed in range(970_000_000, 970_000_000 + train_n // 4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    model.eval()  # batch norms keep their statistics
    for batch in _films(train, 0):
        states, _, words = _report_outputs(model, batch)
        target, wanted = _written(batch["text"])
        loss = functional.cross_entropy(states.transpose(1, 2), batch["states"])
        loss = (
            loss
            + functional.cross_entropy(words.flatten(0, 1), target.flatten(), reduction="none")[wanted.flatten()].mean()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    few = {name: value[: train_n // 2] for name, value in train.items()}
    about = (
        f"shipped report student {manifest.digest[:12]} as floats, then 1 epoch of {train_n} simulated films in FP32"
    )
    return Subject(
        model=model,
        batches=partial(_films, few),
        held_out=list(_films(dev, 0)),
        outputs=_report_outputs,
        answers=partial(_report_answers, test=test, rules=rules),
        lr=3e-5,
        about=f"{about}; QAT on {len(few['image'])} of them; tested on {test_n} others, text under teacher forcing",
    )


def _floats(folder: Path, *, config: ReportStudentConfig) -> ReportStudent:
    tensors = {
        name: each.float() if each.dtype == torch.float16 else each
        for name, each in artifacts.load_tensors(folder).items()
    }
    quantized = load_quantized(ReportStudent(config), tensors)
    state = dict(quantized.state_dict())
    for name, module in quantized.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            state[f"{name}.weight"] = module.weight.float() * state.pop(f"{name}.weight_scale")[:, None]
    student = ReportStudent(config)
    student.load_state_dict(state)
    return student


def _film(seed: int, *, size: int, tokens: int, tokenizer: ReportTokenizer) -> dict[str, Tensor]:
    film = render(seed, size=size)
    ids = tokenizer.encode_report(film.report, limit=tokens)
    states = [STATE_INDEX[film.report.states[name]] for name in FINDINGS]
    return {
        "image": torch.from_numpy(film_prepare(film.pixels.astype(np.float32) / 4095, size=size))[None],
        "states": torch.tensor(states),
        "text": functional.pad(torch.tensor(ids), (0, tokens - len(ids)), value=PAD),
    }


def _stacked(films: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([film[name] for film in films]) for name in films[0]}


def _films(films: dict[str, Tensor], epoch: int) -> Iterator[dict[str, Tensor]]:
    n = len(films["image"])
    for part in torch.randperm(n, generator=torch_generator(0, "quant", "films", epoch)).split(8):
        longest = int((films["text"][part] != PAD).sum(1).max())
        yield {name: value[part] if name != "text" else value[part, :longest] for name, value in films.items()}


def _report_outputs(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """Logits of states (b f 4), of the gate (b) and of every next token (b n-1 v), truth in the decoder's memory."""
    seen = model.forward_seen(batch["image"])
    words = model.forward_text(model.memory(seen, batch["states"]), batch["text"])
    return [seen.states, seen.gate, words[:, :-1]]


def _written(text: Tensor) -> tuple[Tensor, Tensor]:
    target = text[:, 1:]
    return target, ((target >= FIRST_TEXT) | (target == STOP)) & (target != PAD)


def _report_answers(
    model: nn.Module, *, test: dict[str, Tensor], rules: Rules
) -> dict[str, tuple[Metric, Array, Array]]:
    """By film: findings stated rightly, stated and true ones; next tokens guessed rightly, and all of them."""
    positive = STATE_INDEX[FindingState.POSITIVE]
    findings, words = [], []
    for start in range(0, len(test["image"]), 8):
        batch = {name: value[start : start + 8] for name, value in test.items()}
        with torch.inference_mode():
            states, _, logits = _report_outputs(model, batch)
        target, wanted = _written(batch["text"])
        right = (logits.argmax(-1) == target) & wanted
        words += torch.stack([right.sum(1), wanted.sum(1)], 1).tolist()
        presence, shares = presence_logit(states).sigmoid().tolist(), states.softmax(-1).tolist()
        for row, truth in enumerate(batch["states"] == positive):
            decided = states_decide(presence[row], shares[row], rules)
            stated = torch.tensor([decided[name] is FindingState.POSITIVE for name in FINDINGS])
            findings.append([int((stated & truth).sum()), int(stated.sum() + truth.sum())])
    none = np.zeros(len(findings))
    return {
        "quant/report": (f1_micro, np.asarray(findings, float), none),
        "quant/report_text": (token_accuracy, np.asarray(words, float), none),
    }


def f1_micro(outputs: Array, _: Array) -> Callable[[Array], float]:
    """Micro F1 of findings; outputs (n 2): stated rightly, stated plus true."""
    return lambda weight: float(2 * (outputs[:, 0] @ weight) / max(1.0, outputs[:, 1] @ weight))


def token_accuracy(outputs: Array, _: Array) -> Callable[[Array], float]:
    """Share of next tokens; outputs (n 2): right ones, all."""
    return lambda weight: float((outputs[:, 0] @ weight) / max(1.0, outputs[:, 1] @ weight))
