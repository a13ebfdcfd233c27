"""From a float student and its rules to an INT8 artifact, and the figures that go with it."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ml_core import artifacts
from ml_core.config import from_mapping, to_mapping
from ml_core.contracts import FindingState, ModelDescription, ModelKind
from ml_core.data.findings import FINDINGS
from ml_core.data.report_tokens import ReportTokenizer
from ml_core.models.cnn_teacher import presence_logit
from ml_core.models.report_rules import Rules, states_decide
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.quant import QuantEmbedding, Quantizer, QuantLinear, load_quantized, quantized_state
from ml_core.train.report_films import FilmSet

TOKENIZER = "tokenizer.json"
_SMALL = 1024  # float tensors with fewer numbers stay in float32


def student_write(
    folder: Path,
    *,
    student: ReportStudent,
    tokenizer: ReportTokenizer,
    rules: Rules,
    recipe: str,
    metrics: dict[str, float],
    card: str,
    basis: dict[str, Any],
    data_digest: str,
    teacher_digest: str = "",
    licence: str = "Apache-2.0",
) -> ModelDescription:
    """Quantize to W8A8 and write the artifact. Convolutions and other large float tensors are stored in half precision.

    `basis` says how the rules were chosen and goes into the manifest's config.
    """
    quantized, _ = Quantizer(student).convert()
    tensors = {name: _narrowed(name, tensor) for name, tensor in quantized_state(quantized).items()}
    return artifacts.write(
        folder,
        kind=ModelKind.REPORT,
        name="report-student",
        recipe=recipe,
        config={"student": to_mapping(student.config), "rules": to_mapping(rules), "basis": basis},
        tensors=tensors,
        metrics=metrics,
        data_digest=data_digest,
        teacher_digest=teacher_digest,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        licence=licence,
        card=card,
        extra_files={TOKENIZER: tokenizer.json.encode()},
    )


def student_read(folder: Path) -> tuple[ReportStudent, ReportTokenizer, Rules, str]:
    """A shipped student as a float model again (to go on training), its tokenizer, its rules and its digest."""
    manifest = artifacts.read(folder)
    config = from_mapping(ReportStudentConfig, manifest.config["student"], where="config.student")
    tensors = {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in artifacts.load_tensors(folder).items()
    }
    quantized = load_quantized(ReportStudent(config), tensors)
    student = ReportStudent(config)
    student.load_state_dict(_dequantized(quantized))
    rules = from_mapping(Rules, manifest.config["rules"], where="config.rules")
    return student, ReportTokenizer((folder / TOKENIZER).read_text()), rules, manifest.digest


def figures(student: nn.Module, rules: Rules, films: FilmSet, *, batch: int = 16) -> dict[str, float]:
    """Micro F1, precision and recall of asserted findings on films not learnt from ("uncertain" asserts nothing)."""
    positive = list(FindingState).index(FindingState.POSITIVE)
    both = there = said = 0
    student = copy.deepcopy(student).cpu().eval()
    for start in range(0, len(films), batch):
        images = torch.from_numpy(films.images[start : start + batch])[:, None].float() / 255
        with torch.inference_mode():
            seen = student.forward_seen(images)
        presence, states = presence_logit(seen.states).sigmoid().tolist(), seen.states.softmax(-1).tolist()
        for row in range(len(images)):
            decided = states_decide(presence[row], states[row], rules)
            stated = np.array([decided[name] is FindingState.POSITIVE for name in FINDINGS])
            truth = films.states[start + row, 0] == positive
            both, there, said = both + int((stated & truth).sum()), there + int(truth.sum()), said + int(stated.sum())
    return {
        "f1_micro": 2 * both / (there + said) if there + said else 0.0,
        "precision": both / said if said else 0.0,
        "recall": both / there if there else 0.0,
        "films": float(len(films)),
    }


def films_digest(films: FilmSet) -> str:
    """SHA-256 of what was learnt from."""
    digest = hashlib.sha256()
    for array in (films.images, films.kind, films.states, films.texts):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def checkpoint_write(folder: Path, tensors: dict[str, torch.Tensor], *, limit: int = 14_000_000) -> None:
    """Write tensors as numbered safetensors of at most about `limit` bytes each."""
    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, torch.Tensor] = {}
    size = count = 0
    for name, tensor in tensors.items():
        amount = tensor.numel() * tensor.element_size()
        if shard and size + amount > limit:
            save_file(shard, folder / f"{count:02d}.safetensors")
            shard, size, count = {}, 0, count + 1
        shard[name] = tensor.detach().cpu().contiguous()
        size += amount
    save_file(shard, folder / f"{count:02d}.safetensors")


def _narrowed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    wide = tensor.dtype == torch.float32 and tensor.numel() >= _SMALL and not name.endswith("weight_scale")
    return tensor.half() if wide else tensor


def _dequantized(model: nn.Module) -> dict[str, torch.Tensor]:
    state = dict(quantized_state(model))
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            scale = state.pop(f"{name}.weight_scale")
            state[f"{name}.weight"] = state[f"{name}.weight"].float() * scale[:, None]
    return state
