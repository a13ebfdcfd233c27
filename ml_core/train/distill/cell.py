"""One cell: a student of a stated start, taught by one system under one seed, and what it says on the test split."""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from ml_core.config import to_mapping
from ml_core.distill.dfad import Quantize
from ml_core.distill.objectives import taught
from ml_core.distill.spec import DFADConfig
from ml_core.distill.tasks.request import Tuned
from ml_core.distill.tasks.results import Cell
from ml_core.distill.tasks.systems import config_of, criterion_of
from ml_core.distill.tasks.task import Batch, Case, Task, parameters_count
from ml_core.events import EVENTS, EventLog, read
from ml_core.quant import Quantizer
from ml_core.quant.scheme import fake_activation
from ml_core.seed import derive, seed_all
from ml_core.train.distill.ledger import file_name, settings_digest
from ml_core.train.distill.model import device_words, logits_of, model_train, shower, values_of
from ml_core.train.distill.teacher import Teacher, teacher_recipe

_MEASURED_ROWS = 128


def cell_settings(case: Case, task: Task, *, system: str, tuned: Tuned) -> str:
    """Digest of everything that the cell's result depends on, but the seed, the device and the teacher's last bits."""
    body: dict[str, Any] = {
        "dfad": to_mapping(config_of(system, tuned=tuned, relation_heads=case.relation_heads)),
        "fit": to_mapping(case.student.fit),
        "start": case.student.start,
        "data": task.digest,
        "teacher": teacher_recipe(case, task),
        "system": system,
    }
    if case.student.bits:
        body["bits"] = case.student.bits
    return settings_digest(body)


def cell_run(
    case: Case,
    task: Task,
    *,
    system: str,
    seed: int,
    tuned: Tuned,
    teacher: Teacher,
    folder: Path,
    device: torch.device,
    graphs: bool = False,
    keep: bool = False,
    name: str = "",
) -> tuple[Cell, NDArray[Any], nn.Module]:
    """Train one student; returns the cell, its test logits (n c) and the student.

    Of one case and seed, all systems start from the same weights, see the same rows in the same order and the same
    variations of them. FOLDER holds the events while it runs and goes away after, unless `keep`; `name` stands in the
    cell in place of the system's (a trial of tuning).
    """
    began = time.monotonic()
    config = config_of(system, tuned=tuned, relation_heads=case.relation_heads)
    show = shower(case.student, device=device)
    seed_all(derive(seed, "student", case.student.name, task.name))
    student, quantizer = _student(case, task)
    student = student.to(device).eval()
    wanted = None if system == "ce" else teacher.show
    first = _first_batch(task)
    seed_all(derive(seed, "criterion", case.name))
    with torch.no_grad():
        shown = [(show(student, first), teacher.show(first))]
    criterion = criterion_of(system, config, shown, quantizer=quantizer).to(device)
    log = EventLog(folder)
    model_train(
        student,
        task=task,
        fit=case.student.fit,
        seed=seed,
        loss=taught(criterion, teacher=wanted, show=show, task=task.loss),
        folder=folder,
        log=log,
        criterion=criterion,
        graphs=graphs,
    )
    log.close()

    def say(batch: Batch) -> Any:
        return show(student, batch)

    outputs = logits_of(say, task=task, split=task.test)
    dev = values_of(logits_of(say, task=task, split=task.dev), task=task, split=task.dev)
    settings = cell_settings(case, task, system=system, tuned=tuned)
    cell = Cell(
        case=case.name,
        system=name or system,
        seed=seed,
        settings=settings,
        teacher=teacher.digest,
        values=values_of(outputs, task=task, split=task.test),
        dev=dev[task.metric],
        student_start=case.student.start,
        params=parameters_count(case.student, student),
        seconds=round(time.monotonic() - began, 2),
        outputs=f"outputs/{file_name(case.name, name or system, seed, settings)}.npy",
        device=device_words(device),
        alignment=_alignment(folder, config=config),
    )
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return cell, outputs, student


def student_save(student: nn.Module, path: Path) -> None:
    """Its weights as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()}, path)


def _student(case: Case, task: Task) -> tuple[nn.Module, Quantize | None]:
    """A new one, on fake-quantized layers where the case says so, and then its quantizer of activations."""
    student, bits = case.student.build(task), case.student.bits
    if not bits:
        return student, None
    return Quantizer(student, bits=bits).model, partial(fake_activation, bits=bits)


def _first_batch(task: Task) -> Batch:
    return task.prepare(task.train.batch(torch.arange(min(_MEASURED_ROWS, len(task.train)))))


def _alignment(folder: Path, *, config: DFADConfig) -> dict[str, dict[str, float]]:
    """Cosine, CKA and weight of each pair at the end of the first and of the last epoch, from the events."""
    if not config.levels:
        return {}
    events, _ = read(folder / EVENTS)
    found = [event["metrics"] for event in events if event["kind"] == "eval" and event["split"] == "alignment"]
    if not found:
        return {}
    return {"first": _rounded(found[0]), "last": _rounded(found[-1])}


def _rounded(metrics: dict[str, float | None]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in metrics.items() if value is not None}
