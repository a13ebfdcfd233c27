"""One model of a case: its training on batches in a stated order, its features on any device, its test logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_core.distill.features import Features
from ml_core.distill.tasks.task import Batch, Fit, Learner, Split, Task
from ml_core.events import EventLog
from ml_core.seed import derive, numpy_generator, torch_generator
from ml_core.train.checkpoint import LoopConfig
from ml_core.train.loop import LossOf, train
from ml_core.train.precision import tensor_cores

_EVAL_BATCH = 256
_CHECKPOINT_SECONDS = 60.0
_SORTED_BATCHES = 50


def model_train(
    model: nn.Module,
    *,
    task: Task,
    fit: Fit,
    seed: int,
    loss: LossOf,
    folder: Path,
    log: EventLog | None,
    criterion: nn.Module | None = None,
    graphs: bool = False,
    by_length: bool = False,
) -> None:
    """Train in place; the order of rows and what varies in a batch depend on the task and the seed alone.

    graphs: steps as CUDA graphs (LoopConfig). by_length: rows of like length (input `length`) share a batch, so that
    little is padded.
    """
    size = min(fit.batch, len(task.train))
    per_epoch = len(task.train) // size
    config = LoopConfig(
        epochs=fit.epochs,
        lr=fit.lr,
        weight_decay=fit.weight_decay,
        accumulation=1,
        seed=derive(seed, "loop", task.name) % 2**31,
        log_every=per_epoch,
        checkpoint_seconds=_CHECKPOINT_SECONDS,
        graphs=graphs,
    )

    def batches(epoch: int) -> Iterator[Batch]:
        drawn = numpy_generator(seed, "order", task.name, epoch)
        order = torch.from_numpy(drawn.permutation(len(task.train)))[: per_epoch * size]
        parts = list(order.split(size))
        if by_length:
            parts = _by_length(order, lengths=task.train.inputs["length"].cpu(), size=size, drawn=drawn)
        generator = torch_generator(seed, "vary", task.name, epoch)
        for rows in parts:
            batch = task.prepare(task.train.batch(rows))
            yield batch if task.augment is None else task.augment(batch, generator)

    with tensor_cores():
        train(
            model,
            config=config,
            batches=batches,
            batches_per_epoch=per_epoch,
            loss=loss,
            folder=folder,
            log=log,
            criterion=criterion,
        )
    model.eval()


def _by_length(order: Tensor, *, lengths: Tensor, size: int, drawn: np.random.Generator) -> list[Tensor]:
    """Batches of `size`: so many rows at a time sorted by length, and the batches then in random order."""
    parts: list[Tensor] = []
    for rows in order.split(_SORTED_BATCHES * size):
        parts += rows[lengths[rows].argsort(stable=True)].split(size)
    return [parts[index] for index in drawn.permutation(len(parts))]


def shower(learner: Learner, *, device: torch.device) -> Callable[[nn.Module, Batch], Features]:
    """The learner's `show` in bf16 on CUDA, its features in single precision."""

    def show(model: nn.Module, batch: Batch) -> Features:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            shown = learner.show(model, batch)
        return _single(shown)

    return show


@torch.no_grad()
def logits_of(show: Callable[[Batch], Features], *, task: Task, split: Split) -> NDArray[Any]:
    """Logits of all examples of a split (n c), single precision, in order."""
    parts = []
    for rows in torch.arange(len(split)).split(_EVAL_BATCH):
        logits = show(task.prepare(split.batch(rows))).logits.float()
        parts.append(logits.flatten(1).cpu().numpy())
    return np.concatenate(parts)


def values_of(outputs: NDArray[Any], *, task: Task, split: Split) -> dict[str, float]:
    """Every metric of the task on a split."""
    labels, weight = truth_of(split)
    return {name: metric(outputs, labels)(weight) for name, metric in task.metrics.items()}


def truth_of(split: Split) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels and weights of a split."""
    labels = split.labels.cpu().numpy()
    weight = np.ones(len(labels)) if split.weight is None else split.weight.cpu().numpy().astype(np.float64)
    return labels, weight


def device_words(device: torch.device) -> str:
    """ "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def on_device(task: Task, device: torch.device) -> Task:
    """The task with its splits on `device`."""
    return replace(task, train=task.train.to(device), dev=task.dev.to(device), test=task.test.to(device))


def token_tensors(shown: Features) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors with one vector a token (b n d), and those with one value a row (b …), each in a fixed order."""
    heads = [x for taps in shown.heads for x in (taps.q, taps.k, taps.v)]
    rows = [shown.pooled] if shown.logits is None else [shown.pooled, shown.logits]
    return [*shown.layers, *heads], rows


def with_tensors(like: Features, *, tokens: Sequence[Tensor], rows: Sequence[Tensor], mask: Tensor | None) -> Features:
    """Features of the same form as `like` that hold these tensors (in the order of token_tensors)."""
    given, whole = iter(tokens), iter(rows)
    return replace(
        like,
        layers=tuple(next(given) for _ in like.layers),
        pooled=next(whole),
        mask=mask,
        logits=None if like.logits is None else next(whole),
        heads=tuple(replace(taps, q=next(given), k=next(given), v=next(given)) for taps in like.heads),
    )


def _single(shown: Features) -> Features:
    return replace(
        shown,
        layers=tuple(layer.float() for layer in shown.layers),
        pooled=shown.pooled.float(),
        logits=None if shown.logits is None else shown.logits.float(),
        heads=tuple(replace(taps, q=taps.q.float(), k=taps.k.float(), v=taps.v.float()) for taps in shown.heads),
    )
