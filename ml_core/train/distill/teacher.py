"""A case's teacher: trained once a task on its labels, kept as safetensors, shown live or from the cache."""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from ml_core.config import to_mapping
from ml_core.distill.cache import TeacherCache, module_digest
from ml_core.distill.features import Features
from ml_core.distill.tasks.task import Batch, Case, Task, parameters_count
from ml_core.events import EventLog
from ml_core.seed import derive, seed_all
from ml_core.train.distill.ledger import file_name, settings_digest
from ml_core.train.distill.model import logits_of, model_train, shower, tensors_of, values_of, with_tensors

_SEED = 0
_IN_MEMORY = 512 * 2**20
_ROWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """show: features of a prepared training batch, without gradient. outputs: its test logits (n c).

    digest: of its weights. recipe: of its data and settings alone; the same recipe on another GPU has another digest.
    """

    show: Callable[[Batch], Features]
    digest: str
    recipe: str
    outputs: NDArray[Any]
    values: dict[str, float]
    params: int


def teacher_ready(case: Case, task: Task, *, folder: Path, device: torch.device, cached: bool) -> Teacher:
    """The teacher, trained in FOLDER unless it is there already (of the same data and settings).

    Where nothing varies a batch, small features of the training rows are kept in memory, in full; with `cached` those
    of any size come from the disk (TeacherCache), which pays on a CPU with a large teacher.
    """
    learner = case.teacher
    about = {
        "data": task.digest,
        "fit": None if learner.fit is None else to_mapping(learner.fit),
        "of": [learner.name, learner.start],
    }
    recipe = settings_digest(about)
    place = folder / file_name(learner.name, task.name, recipe)
    place.mkdir(parents=True, exist_ok=True)
    seed_all(derive(_SEED, "teacher", learner.name, task.name))
    model = learner.build(task).to(device)
    if learner.fit is not None:
        with _alone(place):
            _trained(case, task, model, place=place, device=device)
    model.eval().requires_grad_(False)
    show = shower(learner, device=device)

    def live(batch: Batch) -> Features:
        with torch.no_grad():
            return show(model, batch)

    outputs = _outputs(live, task=task, place=place)
    digest = module_digest(model)
    taught: Callable[[Batch], Features] = live
    if task.augment is None and learner.fit is not None:
        if cached:
            taught = _from_disk(live, task=task, place=place, digest=digest, device=device)
        elif _bytes_whole(live, task=task) <= _IN_MEMORY:
            taught = _from_memory(live, task=task)
    return Teacher(
        show=taught,
        digest=digest,
        recipe=recipe,
        outputs=outputs,
        values=values_of(outputs, task=task, split=task.test),
        params=parameters_count(learner, model),
    )


def _trained(case: Case, task: Task, model: nn.Module, *, place: Path, device: torch.device) -> None:
    weights = place / "teacher.safetensors"
    if weights.exists():
        model.load_state_dict(load_file(weights))
        return
    show = shower(case.teacher, device=device)
    log = EventLog(place)
    model_train(
        model,
        task=task,
        fit=case.teacher.fit,
        seed=derive(_SEED, "teacher") % 2**31,
        loss=lambda student, batch, progress: task.loss(show(student, batch), batch),
        folder=place,
        log=log,
    )
    log.close()
    partial = place / ".teacher.partial"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(weights)
    (place / "checkpoints" / "last.safetensors").unlink(missing_ok=True)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time: the others find what the first has trained."""
    with (place / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _outputs(live: Callable[[Batch], Features], *, task: Task, place: Path) -> NDArray[Any]:
    outputs = logits_of(live, task=task, split=task.test)
    np.save(place / "test-logits.npy", outputs)
    values = {name: values_of(logits_of(live, task=task, split=split), task=task, split=split)
              for name, split in (("train", task.train), ("dev", task.dev))}  # fmt: skip
    values["test"] = values_of(outputs, task=task, split=task.test)
    (place / "values.json").write_text(json.dumps(values, indent=1))
    return outputs


def _bytes_whole(live: Callable[[Batch], Features], *, task: Task) -> int:
    """Bytes of the features of all training rows, by the first few; none where rows differ in length."""
    if "length" in task.train.inputs:
        return _IN_MEMORY + 1
    few = min(8, len(task.train))
    return sum(x.nbytes for x in tensors_of(live(_batch(task, 0, few)))) * len(task.train) // few


def _from_memory(live: Callable[[Batch], Features], *, task: Task) -> Callable[[Batch], Features]:
    rows = len(task.train)
    parts = [live(_batch(task, start, min(start + _ROWS, rows))) for start in range(0, rows, _ROWS)]
    first = parts[0]
    columns = [torch.cat(column) for column in zip(*map(tensors_of, parts), strict=True)]

    def read(batch: Batch) -> Features:
        return with_tensors(first, [column[batch["rows"]] for column in columns])

    return read


def _batch(task: Task, start: int, stop: int) -> Batch:
    return task.prepare(task.train.batch(torch.arange(start, stop)))


def _from_disk(
    live: Callable[[Batch], Features], *, task: Task, place: Path, digest: str, device: torch.device
) -> Callable[[Batch], Features]:
    cache = TeacherCache(place / "cache", teacher=digest, data=task.digest, examples=len(task.train), shard_rows=256)

    def show(rows: range) -> Features:
        return live(_batch(task, rows.start, rows.stop))

    cache.fill(show)

    def read(batch: Batch) -> Features:
        mask = batch.get("mask")
        return cache.read(batch["rows"].tolist(), n=None if mask is None else mask.shape[1], device=device)

    return read
