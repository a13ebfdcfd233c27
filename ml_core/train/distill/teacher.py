"""A case's teacher: trained once a task on its labels, kept as safetensors, shown live or from the cache."""

import json
import os
from collections.abc import Callable
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
from ml_core.train.distill.locks import locked
from ml_core.train.distill.memory import FeatureMemory
from ml_core.train.distill.model import logits_of, model_train, shower, values_of

_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherSaid:
    """What a teacher says of the test split: logits (n c), their values by metric. params: how many numbers it has."""

    outputs: NDArray[Any]
    values: dict[str, float]
    params: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """show: features of a prepared training batch, without gradient. digest: of its weights (a machine's own)."""

    show: Callable[[Batch], Features]
    digest: str
    said: TeacherSaid


def teacher_recipe(case: Case, task: Task) -> str:
    """Digest of the teacher's data and settings; no weights are needed to know it."""
    fit = case.teacher.fit
    named = [case.teacher.name, case.teacher.start]
    return settings_digest({"data": task.digest, "fit": None if fit is None else to_mapping(fit), "of": named})


def teacher_said(case: Case, task: Task, *, folder: Path, digest: str) -> TeacherSaid | None:
    """What the teacher of that digest said, if it stands in FOLDER: its weights need not be there any more."""
    logits, values = _files(_place(case, task, folder=folder), digest)
    return _read(logits, values) if values.exists() and logits.exists() else None


def teacher_recorded(folder: Path, *, digest: str) -> "TeacherSaid | None":
    """What the teacher of that digest said, of whatever data and recipe."""
    for place in sorted(folder.iterdir()) if folder.exists() else ():
        logits, values = _files(place, digest)
        if values.exists() and logits.exists():
            return _read(logits, values)
    return None


def teacher_ready(
    case: Case, task: Task, *, folder: Path, device: torch.device, cached: bool, graphs: bool = False
) -> Teacher:
    """The teacher, trained in FOLDER unless it is there already (of the same data and settings).

    Where nothing varies a batch, features of the training rows that fit are kept in memory (FeatureMemory); with
    `cached` those of any size come from the disk (TeacherCache), which pays on a CPU with a large teacher.
    """
    learner = case.teacher
    place = _place(case, task, folder=folder)
    place.mkdir(parents=True, exist_ok=True)
    seed_all(derive(_SEED, "teacher", learner.name, task.name))
    model = learner.build(task).to(device)
    if learner.fit is not None:
        with locked(place / "lock"):  # the others find what the first has trained
            _trained(case, task.labelled(), model, place=place, device=device, graphs=graphs)
    model.eval().requires_grad_(False)
    show = shower(learner, device=device)

    def live(batch: Batch) -> Features:
        with torch.no_grad():
            return show(model, batch)

    digest = module_digest(model)
    params = parameters_count(learner, model)
    said = _said(live, task=task, place=place, digest=digest, params=params)
    taught: Callable[[Batch], Features] = live
    if task.augment is None and learner.fit is not None:
        memory = FeatureMemory(live, task=task)
        if cached:
            taught = _from_disk(live, task=task, place=place, digest=digest, device=device)
        elif memory.fits:
            taught = memory
    return Teacher(show=taught, digest=digest, said=said)


def _place(case: Case, task: Task, *, folder: Path) -> Path:
    return folder / file_name(case.teacher.name, task.name, teacher_recipe(case, task))


def _trained(case: Case, task: Task, model: nn.Module, *, place: Path, device: torch.device, graphs: bool) -> None:
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
        graphs=graphs,
    )
    log.close()
    partial = place / ".teacher.partial"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(weights)
    (place / "checkpoints" / "last.safetensors").unlink(missing_ok=True)


def _said(live: Callable[[Batch], Features], *, task: Task, place: Path, digest: str, params: int) -> "TeacherSaid":
    """Test logits and values; those on dev and train are written beside. Computed once."""
    logits, values = _files(place, digest)
    if not values.exists():
        outputs = logits_of(live, task=task, split=task.test)
        found = {name: values_of(logits_of(live, task=task, split=split), task=task, split=split)
                 for name, split in (("train", task.train), ("dev", task.dev))}  # fmt: skip
        found["test"] = values_of(outputs, task=task, split=task.test)
        partial = place / f".{os.getpid()}.partial"
        with partial.open("wb") as stream:
            np.save(stream, outputs)
        partial.replace(logits)
        partial.write_text(json.dumps({"params": params, "values": found}, indent=1))
        partial.replace(values)
    return _read(logits, values)


def _files(place: Path, digest: str) -> tuple[Path, Path]:
    return place / f"test-logits-{digest[:16]}.npy", place / f"values-{digest[:16]}.json"


def _read(logits: Path, values: Path) -> "TeacherSaid":
    body = json.loads(values.read_text())
    return TeacherSaid(outputs=np.load(logits), values=body["values"]["test"], params=body["params"])


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
