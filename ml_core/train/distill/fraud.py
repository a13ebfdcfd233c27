"""Fraud on simulated banks: LightGBM and a large transformer as teachers, a small one as student; banks held out."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml_core.data.fraud_features import CHANNELS, FEATURES
from ml_core.distill.features import Features
from ml_core.distill.tasks.metrics import auc, average_precision
from ml_core.distill.tasks.task import Batch, Case, Fit, Learner, Split, Task
from ml_core.distill.teachers.own import fraud_features
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig, compress
from ml_core.train.fraud_data import BankSize, Samples, many_banks
from ml_core.train.fraud_teacher import TreeSettings, fit_trees, tree_outputs

FAMILY = "fraud"
_LEAVES, _TREES = 31, 200
_FIRST_BANK = 70_000  # banks that no shipped student saw
_TOKENS = {"card_tokens": 8, "terminal_tokens": 8}
_WIDTHS = {"features": len(FEATURES), "channels": len(CHANNELS)}
SMALL = FraudStudentConfig(**_WIDTHS, **_TOKENS, d=32, heads=4, layers=3, ffn=64, wide=64)
LARGE = FraudStudentConfig(**_WIDTHS, **_TOKENS, d=128, heads=4, layers=5, ffn=512, wide=512)


def cases(*, quick: bool = False) -> list[Case]:
    """lightgbm>tab32x3 (trees to transformer), the same in 8 bits, and tab128x5>tab32x3, all from random weights."""
    epochs = 1 if quick else 4
    student = _transformer("tab32x3", SMALL, fit=Fit(epochs=epochs, batch=512, lr=3e-3))
    integer = replace(student, name=f"{student.name}-int8", bits=8)
    large = _transformer("tab128x5", LARGE, fit=Fit(epochs=epochs, batch=512, lr=1e-3))
    load = _quick if quick else _whole
    trees = Learner(name="lightgbm", start="trees", build=lambda task: nn.Identity(), show=_trees_show, fit=None,
                    params=_LEAVES * (20 if quick else _TREES))  # fmt: skip
    return [
        Case(family=FAMILY, task="fraud", teacher=trees, student=student, load=load),
        Case(family=FAMILY, task="fraud", teacher=trees, student=integer, load=load),
        Case(family=FAMILY, task="fraud", teacher=large, student=student, load=load),
    ]


@cache
def fraud(*, train: int, dev: int, test: int, cards: int, days: int, trees: int) -> Task:
    """So many banks each; the trees are fitted on the training banks, and what they say of a row is an input."""
    size = BankSize(cards=cards, days=days)
    first = _FIRST_BANK
    parts = []
    for count in (train, dev, test):
        parts.append(many_banks(range(first, first + count), size, workers=1))
        first += count
    booster = fit_trees(parts[0], TreeSettings(trees=trees, leaves=_LEAVES, threads=1), seed=0)
    splits = [_split(part, leaves=tree_outputs(booster, part.features, threads=1).leaves) for part in parts]
    return Task(
        name="fraud",
        kind="binary",
        classes=1,
        train=splits[0],
        dev=splits[1],
        test=splits[2],
        metrics={"average precision": average_precision, "auc": auc},
        prepare=_widened,
    )


def _whole() -> Task:
    return fraud(train=4, dev=2, test=4, cards=400, days=80, trees=_TREES)


def _quick() -> Task:
    return fraud(train=1, dev=1, test=1, cards=60, days=60, trees=20)


def _split(samples: Samples, *, leaves: NDArray[np.float32]) -> Split:
    card = samples.card[:, : SMALL.card_tokens]
    terminal = samples.terminal[:, : SMALL.terminal_tokens]
    inputs: dict[str, NDArray[Any]] = {
        "features": samples.features,
        "card": card,
        "terminal": terminal,
        "leaves": leaves,
    }
    return Split(
        inputs={name: torch.from_numpy(value.copy()) for name, value in inputs.items()},
        labels=torch.from_numpy(samples.fraud),
        weight=torch.from_numpy(samples.weight),
    )


def _widened(batch: Batch) -> Batch:
    return batch | {name: batch[name].float() for name in ("card", "terminal")}


def _transformer(name: str, config: FraudStudentConfig, *, fit: Fit) -> Learner:
    def build(task: Task) -> nn.Module:
        model = FraudStudent(config)
        seen = compress(task.train.inputs["features"].cpu())
        model.feature_mean.copy_(seen.mean(0))
        model.feature_std.copy_(seen.std(0).clamp_min(1e-3))
        return model

    return Learner(name=name, start="random", build=build, show=_transformer_show, fit=fit)


def _transformer_show(model: nn.Module, batch: Batch) -> Features:
    return fraud_features(model, batch["features"], batch["card"], batch["terminal"])


def _trees_show(model: nn.Module, batch: Batch) -> Features:
    leaves = batch["leaves"]
    return Features(layers=(leaves[:, None],), pooled=leaves, logits=leaves.sum(1, keepdim=True), names=("leaves",))
