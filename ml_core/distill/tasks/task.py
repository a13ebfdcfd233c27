"""A task with its three splits, the models that learn it, and a case: teacher > student / task."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ml_core.distill.features import Features
from ml_core.distill.tasks.metrics import Metric

Batch = dict[str, Tensor]
Kind = Literal["classes", "binary", "findings"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Examples: named inputs (n, …) each, labels (n), or (n, f) with −1 where nothing is known, and weights (n)."""

    inputs: dict[str, Tensor]
    labels: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """The same on `device`."""
        return Split(
            inputs={name: value.to(device) for name, value in self.inputs.items()},
            labels=self.labels.to(device),
            weight=None if self.weight is None else self.weight.to(device),
        )

    def batch(self, rows: Tensor) -> Batch:
        """The inputs at `rows`, with `label`, `weight` and `rows` beside."""
        rows = rows.to(self.labels.device)
        weight = torch.ones(len(rows), device=self.labels.device) if self.weight is None else self.weight[rows]
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        return inputs | {"label": self.labels[rows], "weight": weight, "rows": rows}


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One data set.

    kind: "classes" (labels are classes), "binary" (labels 0 or 1, one logit), "findings" (f labels an example, logits
    (b, f, 1)). classes: how many logits. metrics: the first is the one to report and to tune by. prepare: makes of raw
    inputs what models take (trims padding, widens). augment: varies a prepared batch of training, with the generator.
    """

    name: str
    kind: Kind
    classes: int
    train: Split
    dev: Split
    test: Split
    metrics: dict[str, Metric]
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    augment: Callable[[Batch, Generator], Batch] | None = None

    @property
    def metric(self) -> str:
        """Name of the first metric."""
        return next(iter(self.metrics))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every split's values."""
        sha = hashlib.sha256(self.name.encode())
        for split in (self.train, self.dev, self.test):
            for name, value in sorted(split.inputs.items()) + [("label", split.labels)]:
                sha.update(f"{name}{tuple(value.shape)}".encode())
                sha.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def labelled(self) -> "Task":
        """The same without training rows of weight 0: what the teacher learns from."""
        if self.train.weight is None or bool(self.train.weight.all()):
            return self
        rows = self.train.weight.nonzero()[:, 0]
        inputs = {name: value[rows] for name, value in self.train.inputs.items()}
        kept = Split(inputs=inputs, labels=self.train.labels[rows], weight=self.train.weight[rows])
        return replace(self, train=kept)

    def loss(self, shown: Features, batch: Batch) -> Tensor:
        """The task's loss of a batch, weighted."""
        logits, labels = shown.logits.float(), batch["label"]
        if self.kind == "classes":
            return _mean(functional.cross_entropy(logits, labels.long(), reduction="none"), batch["weight"])
        if self.kind == "binary":
            losses = functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), reduction="none")
            return _mean(losses, batch["weight"])
        known = (labels >= 0).float() * batch["weight"][:, None]
        losses = functional.binary_cross_entropy_with_logits(
            logits[..., 0], labels.float().clamp_min(0.0), reduction="none"
        )
        return _mean(losses, known)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How long and how fast a model learns: AdamW, half a cosine from `lr` to 0, no early stop."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model by name, with the weights that it starts from in words.

    build: a new one, of the global random state. show: its features of a prepared batch. fit None: nothing to train
    (trees, whose answers are inputs of the task). params: its size where the module does not say. bits: 4 or 8
    where a student is trained and measured with weights and inputs of its linear layers in so many bits; 0: it is not.
    """

    name: str
    start: str
    build: Callable[[Task], nn.Module]
    show: Callable[[nn.Module, Batch], Features]
    fit: Fit | None
    params: int | None = None
    bits: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Teacher > student / task. relation_heads: of the MiniLM relations; 0 where one of the two has no attention."""

    family: str
    task: str
    teacher: Learner
    student: Learner
    load: Callable[[], Task]
    relation_heads: int = 0

    @property
    def name(self) -> str:
        """teacher>student/task."""
        return f"{self.teacher.name}>{self.student.name}/{self.task}"


def parameters_count(learner: Learner, model: nn.Module) -> int:
    """Numbers that the model learnt or could."""
    return learner.params if learner.params is not None else sum(p.numel() for p in model.parameters())


def _mean(losses: Tensor, weight: Tensor) -> Tensor:
    return (losses * weight).sum() / weight.sum().clamp_min(torch.finfo(losses.dtype).tiny)
