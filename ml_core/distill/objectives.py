"""What the training loop minimises: one function a way of being taught, each returning the loop's `loss`."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.distill.cost import Meter
from ml_core.distill.dfad import DFADLoss
from ml_core.distill.features import Features
from ml_core.distill.selfteach import DeeperToShallower, EMATeacher

Batch = Any
Show = Callable[[nn.Module, Batch], Features]  # a model's features of a batch
Task = Callable[[Features, Batch], Tensor]  # the task's loss of a batch, from the features' logits
Loss = Callable[[nn.Module, Batch, float], DFADLoss]
Criterion = Callable[..., DFADLoss]  # a DFAD, or what dfad.compiled made of one


def taught(
    criterion: Criterion,
    *,
    teacher: Callable[[Batch], Features] | None,
    show: Show,
    task: Task,
    alignment: Callable[[Batch], Tensor] | None = None,
    meter: Meter | None = None,
) -> Loss:
    """By a teacher, which gives its features of a batch (a model, or a cache by the batch's rows); None: by none.

    alignment: of a batch, the matrix that pools the teacher's tokens to the student's (spans.span_alignment).
    meter: measures the alignment's forward pass.
    """

    def loss(student: nn.Module, batch: Batch, progress: float) -> DFADLoss:
        with torch.no_grad():
            wanted = None if teacher is None else teacher(batch)
            rest = {} if alignment is None else {"alignment": alignment(batch)}
        shown = show(student, batch)
        return _measured(criterion, shown, wanted, task(shown, batch), progress, meter=meter, **rest)

    return loss


def self_taught(
    criterion: Criterion,
    *,
    teacher: EMATeacher,
    show: Show,
    task: Task,
    augment: Callable[[Batch], Batch] | None = None,
    meter: Meter | None = None,
) -> Loss:
    """By its own running average (decay < 1), or by itself as it was at the start (decay = 1).

    augment: what the student sees in place of the batch; the teacher sees the batch itself. Without it and with
    decay = 1 there would be nothing to learn from the teacher.
    """

    def loss(student: nn.Module, batch: Batch, progress: float) -> DFADLoss:
        with torch.no_grad():
            wanted = show(teacher.model, batch)
        seen = batch if augment is None else augment(batch)
        shown = show(student, seen)
        return _measured(criterion, shown, wanted, task(shown, seen), progress, meter=meter)

    return loss


def taught_by_depth(criterion: DeeperToShallower, *, show: Show, task: Task, meter: Meter | None = None) -> Loss:
    """By its own deepest layer."""

    def loss(student: nn.Module, batch: Batch, progress: float) -> DFADLoss:
        shown = show(student, batch)
        return _measured(criterion, shown, lambda features: task(features, batch), progress, meter=meter)

    return loss


def _measured(criterion: Criterion, shown: Features, *rest: Any, meter: Meter | None, **named: Any) -> DFADLoss:
    with nullcontext() if meter is None else meter.mark(shown.pooled.device):
        return criterion(shown, *rest, **named)
