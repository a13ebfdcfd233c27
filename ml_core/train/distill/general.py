"""General distillation: a text student without pretrained weights learns the teacher's features of unlabelled text."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from ml_core.config import to_mapping
from ml_core.distill import presets
from ml_core.distill.dfad import DFAD
from ml_core.distill.features import Features
from ml_core.distill.objectives import taught
from ml_core.distill.tasks import text_models
from ml_core.distill.tasks.request import General
from ml_core.distill.tasks.task import Batch, Fit, Learner
from ml_core.distill.tasks.text import show
from ml_core.distill.tasks.text_general import general_task
from ml_core.errors import InputError
from ml_core.events import EventLog
from ml_core.seed import derive, seed_all
from ml_core.train.distill.catalogue import device_named
from ml_core.train.distill.model import model_train, on_device, shower

_PARAMS = ("epochs", "batch", "rate", "rows", "device", "graphs")


def general_run(
    recipe: General, *, folder: Path, seed: int, inputs: Mapping[str, str], params: Mapping[str, int | float | str]
) -> dict[str, Any]:
    """Leaves FOLDER/STUDENT.safetensors (`bench distill --general FOLDER` finds it there) and returns what it is.

    inputs: text_data, teacher. params: epochs, batch, rate, rows (at most so many; 0: all), device, graphs. The loss is
    DFAD's alignment alone, tokens, layers and global, to the teacher as it came; there is no task. Interrupted and
    called again it goes on behind the last whole epoch. Raises InputError for unknown names.
    """
    if set(inputs) != {"text_data", "teacher"}:
        raise InputError(f"inputs: text_data and teacher are needed, not {', '.join(sorted(inputs)) or 'none'}")
    if unknown := sorted(set(params) - set(_PARAMS)):
        raise InputError(f"params: unknown {', '.join(unknown)}; known: {', '.join(_PARAMS)}")
    began = time.monotonic()
    place, device = Path(inputs["teacher"]), device_named(str(params.get("device", "auto")))
    task = general_task(Path(inputs["text_data"]), tokenizer=place, most=int(params.get("rows", 0)))
    fit = Fit(
        epochs=int(params.get("epochs", recipe.epochs)),
        batch=int(params.get("batch", recipe.batch)),
        lr=float(params.get("rate", recipe.rate)),
    )
    starts = text_models.Starts(teacher=place)
    seed_all(derive(seed, "general", recipe.student))
    teacher = text_models.teacher(place, classes=1).to(device).eval().requires_grad_(False)
    student = text_models.student(recipe.student, starts=starts, classes=1).to(device)
    student.head.requires_grad_(False)
    task = on_device(task, device)
    seen = shower(Learner(name="", start="", build=lambda task: teacher, show=show, fit=None), device=device)

    @torch.no_grad()
    def wanted(batch: Batch) -> Features:
        return replace(seen(teacher, batch), logits=None)

    with torch.no_grad():
        first = task.prepare(task.train.batch(torch.arange(min(fit.batch, len(task.train)))))
        shown = [(seen(student, first), wanted(first))]
    config = replace(presets.default(), alpha=1.0, kl_share=0.0)
    criterion = DFAD.measured(config, shown).to(device)
    folder.mkdir(parents=True, exist_ok=True)
    log = EventLog(folder)
    model_train(
        student,
        task=task,
        fit=fit,
        seed=seed,
        loss=taught(criterion, teacher=wanted, show=seen, task=_nothing),
        folder=folder,
        log=log,
        criterion=criterion,
        graphs=bool(params.get("graphs", 0)),
        by_length=True,
    )
    log.close()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in student.taps.state_dict().items()}
    digest = hashlib.sha256(save(tensors)).hexdigest()
    says = f"general distillation, {len(task.train):,} texts × {fit.epochs} ({digest[:8]})"
    partial = folder / f".{recipe.student}.partial"  # others may be looking for it
    save_file(tensors, partial, metadata={"says": says})
    partial.replace(folder / f"{recipe.student}.safetensors")
    result = {
        "recipe": recipe.name,
        "student": recipe.student,
        "says": says,
        "digest": digest,
        "fit": to_mapping(fit),
        "texts": len(task.train),
        "seconds": round(time.monotonic() - began, 1),
    }
    (folder / f"{recipe.student}.json").write_text(json.dumps(result, indent=1))
    return result


def _nothing(shown: Features, batch: Batch) -> Tensor:
    return shown.pooled.new_zeros(())
