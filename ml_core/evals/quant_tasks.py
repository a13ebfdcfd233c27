"""What bench quant_loss quantizes: FP32 models of text, pictures and transactions, trained here on small data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ml_core.data.bank import simulate
from ml_core.data.handbook import events_of, table_from_columns
from ml_core.data.replay import Replay
from ml_core.distill.features import Features
from ml_core.distill.tasks import digits, text, text_models
from ml_core.distill.tasks.metrics import Array, Metric, average_precision
from ml_core.distill.tasks.task import Split, Task
from ml_core.distill.teachers.text import text_load
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig, compress
from ml_core.seed import numpy_generator, torch_generator

_BATCH, _TOKENS = 32, 48
_HELD_OUT = 512  # most dev examples of text and pictures


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A trained FP32 model and what is measured of it.

    batches: of an epoch, from training examples alone. held_out: batches of dev examples, which neither the model nor
    QAT is trained on. outputs: what the self-teacher compares. answers: for each case the metric, a model's outputs and
    the labels, of test examples. lr: largest rate of QAT, stated beforehand. about: how it was made, in words.
    """

    model: nn.Module
    batches: Callable[[int], Iterator[Any]]
    held_out: Sequence[Any]
    outputs: Callable[[nn.Module, Any], Any]
    answers: Callable[[nn.Module], dict[str, tuple[Metric, Array, Array]]]
    lr: float
    about: str


def text_subject(name: str, *, data: Path, folder: Path, quick: bool) -> Subject:
    """A pretrained encoder with a linear head on the mean token, fine-tuned on part of a data set."""
    task = replace(text.text_task(data, name=name, tokenizer=folder, most=64 if quick else 0), prepare=_cut)
    taps = text_load(folder, pool="mean", frozen=False)
    model = text_models.TextClassifier(taps, width=taps.model.config.hidden_size, classes=task.classes)
    rows = _drawn(task, most=64 if quick else {"sst2": 5_000}.get(name, 2_000))
    _fit(model, task, rows, show=text.show, epochs=1, lr=1e-4)
    about = (
        f"encoder {taps.model.config.model_type} {sum(p.numel() for p in model.parameters()):,} numbers, pretrained, "
    )
    about += (
        f"1 epoch of {len(rows)} training rows, inputs cut at {_TOKENS} tokens; QAT on {min(len(rows), 320)} of them"
    )
    return _of_task(name, task, model, rows=rows[:320], show=text.show, lr=3e-5, about=about)


def _cut(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return text.trimmed(batch | {"ids": batch["ids"][:, :_TOKENS], "length": batch["length"].clamp(max=_TOKENS)})


def digits_subject(*, quick: bool) -> Subject:
    case = digits.cases(quick=quick)[0]
    task, learner = case.load(), case.student
    assert learner.fit is not None
    model = learner.build(task)
    rows = torch.arange(len(task.train))
    _fit(model, task, rows, show=learner.show, epochs=learner.fit.epochs, lr=learner.fit.lr)
    about = f"{learner.name} from random weights, {learner.fit.epochs} epochs of {len(rows)} pictures; QAT on all"
    return _of_task("digits", task, model, rows=rows, show=learner.show, lr=3e-4, about=about)


def fraud_subject(*, quick: bool) -> Subject:
    """A student from random weights, taught by the labels of two simulated banks, and asked about a third.

    A fourth is dev, a tenth of its genuine transactions.
    """
    cards, days = (60, 60) if quick else (700, 90)
    train = [_bank(seed, cards=cards, days=days, share=0.3) for seed in (880_001, 880_002)]
    test = _bank(880_003, cards=cards, days=days, share=1.0)
    dev = _bank(880_004, cards=cards, days=days, share=0.1)
    joined = {key: torch.cat([part.inputs[key] for part in train]) for key in train[0].inputs}
    labels, weight = (torch.cat(list(parts)) for parts in zip(*((p.labels, _weight(p)) for p in train), strict=True))
    both = Split(inputs=joined, labels=labels, weight=weight)
    metrics = {"average precision": average_precision}
    task = Task(name="fraud", kind="binary", classes=1, train=both, dev=dev, test=test, metrics=metrics)
    shapes = {key: value.shape for key, value in both.inputs.items()}
    model = FraudStudent(FraudStudentConfig(features=shapes["features"][1], channels=shapes["card"][2]))
    sample = compress(both.inputs["features"])
    model.feature_mean.copy_(sample.mean(0))
    model.feature_std.copy_(sample.std(0).clamp_min(1e-3))
    rows = _drawn(task, most=64 if quick else 60_000)
    _fit(model, task, rows, show=_fraud_show, epochs=3, lr=2e-3, batch=256)
    about = f"fraud student from random weights, 3 epochs of {len(rows)} transactions of two simulated banks; "
    about += f"tested on a third bank, {int(test.labels.sum())} frauds; QAT on {min(len(rows), 20_000)}"
    return _of_task("fraud", task, model, rows=rows[:20_000], show=_fraud_show, lr=1e-4, about=about, batch=256)


def _bank(seed: int, *, cards: int, days: int, share: float) -> Split:
    """The transactions of a simulated bank from day 40 on, and of the genuine ones a share (weighted back)."""
    table = table_from_columns(simulate(seed=seed, cards=cards, terminals=2 * cards, days=days))
    inputs = Replay().feed(events_of(table, delay_days=7))
    drawn = numpy_generator(seed, "quant", "share").random(len(table)) < share
    keep = np.flatnonzero((table.day - table.day[0] >= 40) & (table.fraud | drawn))
    parts = {"features": inputs.features, "card": inputs.card, "terminal": inputs.terminal}
    weight = torch.from_numpy(np.where(table.fraud[keep], 1.0, 1.0 / share).astype(np.float32))
    return Split(
        inputs={name: torch.from_numpy(value[keep].astype(np.float32)) for name, value in parts.items()},
        labels=torch.from_numpy(table.fraud[keep].astype(np.int64)),
        weight=weight,
    )


def _weight(split: Split) -> Tensor:
    assert split.weight is not None
    return split.weight


def _fraud_show(model: nn.Module, batch: dict[str, Tensor]) -> Features:
    shown = model.taps(batch["features"], batch["card"], batch["terminal"])
    return Features(layers=(), pooled=shown.pooled, logits=shown.logits[:, None])


def _of_task(
    name: str,
    task: Task,
    model: nn.Module,
    *,
    rows: Tensor,
    show: Callable[[nn.Module, Any], Features],
    lr: float,
    about: str,
    batch: int = _BATCH,
) -> Subject:
    metric, length = task.metrics[task.metric], task.test.inputs.get("length")
    # texts of one length together: less padding
    order = torch.arange(len(task.test)) if length is None else torch.argsort(length, stable=True)

    def answers(given: nn.Module) -> dict[str, tuple[Metric, Array, Array]]:
        with torch.inference_mode():
            shown = [show(given, task.prepare(task.test.batch(part))) for part in order.split(64)]
        logits = torch.cat([each.logits.float() for each in shown])
        return {f"quant/{name}": (metric, logits.numpy(), task.test.labels[order].numpy())}

    dev = torch.arange(len(task.dev) if name == "fraud" else min(len(task.dev), _HELD_OUT))
    return Subject(
        model=model.eval(),
        batches=partial(_batches, task, rows, batch),
        held_out=[task.prepare(task.dev.batch(part)) for part in dev.split(batch)],
        outputs=lambda given, batch: show(given, batch).logits,
        answers=answers,
        lr=lr,
        about=about,
    )


def _batches(task: Task, rows: Tensor, size: int, epoch: int) -> Iterator[dict[str, Tensor]]:
    order = torch.randperm(len(rows), generator=torch_generator(0, "quant", "epoch", epoch))
    for part in rows[order].split(size):
        yield task.prepare(task.train.batch(part))


def _drawn(task: Task, *, most: int) -> Tensor:
    return torch.randperm(len(task.train), generator=torch_generator(0, "quant", "rows"))[:most]


def _fit(
    model: nn.Module,
    task: Task,
    rows: Tensor,
    *,
    show: Callable[[nn.Module, Any], Features],
    epochs: int,
    lr: float,
    batch: int = 64,
) -> None:
    """FP32 training on labels: AdamW, half a cosine from `lr` to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * -(-len(rows) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(epochs):
        for part in _batches(task, rows, batch, epoch):
            optimizer.zero_grad(set_to_none=True)
            task.loss(show(model, part), part).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
