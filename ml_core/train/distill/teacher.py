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
from ml_core.train.distill.model import logits_of, model_train, shower, values_of

_SEED = 0


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

    cached: its features of the training rows come from the disk (TeacherCache), where nothing varies a batch; that
    pays on a CPU with a large teacher.
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
    use_cache = cached and task.augment is None and learner.fit is not None
    return Teacher(
        show=_from_disk(live, task=task, place=place, digest=digest, device=device) if use_cache else live,
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


def _from_disk(
    live: Callable[[Batch], Features], *, task: Task, place: Path, digest: str, device: torch.device
) -> Callable[[Batch], Features]:
    cache = TeacherCache(place / "cache", teacher=digest, data=task.digest, examples=len(task.train), shard_rows=256)

    def show(rows: range) -> Features:
        return live(task.prepare(task.train.batch(torch.arange(rows.start, rows.stop))))

    cache.fill(show)

    def read(batch: Batch) -> Features:
        mask = batch.get("mask")
        return cache.read(batch["rows"].tolist(), n=None if mask is None else mask.shape[1], device=device)

    return read
