"""One named distillation: teacher, student, what came out, in a folder of its own; the same seams as the benchmark."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ml_core.config import to_mapping
from ml_core.distill.tasks.request import Distillation, General, Request, Tuned
from ml_core.distill.tasks.systems import names_expand
from ml_core.errors import InputError
from ml_core.train.distill.catalogue import cases_named, device_named
from ml_core.train.distill.cell import cell_run, student_save
from ml_core.train.distill.general import general_run
from ml_core.train.distill.ledger import Ledger
from ml_core.train.distill.model import on_device
from ml_core.train.distill.teacher import teacher_ready

RESULT, STUDENT = "result.json", "student.safetensors"
_INPUTS = ("text_data", "teacher", "student", "general", "films", "stem")
_KNOBS = tuple(field.name for field in fields(Tuned) if field.name != "tuned_on")
_PARAMS = ("system", "device", "quick", *_KNOBS)


def named_run(
    recipe: Distillation | General,
    *,
    folder: Path,
    seed: int,
    inputs: Mapping[str, str],
    params: Mapping[str, int | float | str],
) -> dict[str, Any]:
    """Run it; returns the content of FOLDER/result.json. The student and its events, the teacher and logits lie beside.

    inputs: text_data, teacher, student, general, films, stem. params: system, device, quick (1), and those of Tuned.
    Interrupted and called again it goes on behind the last whole epoch. Raises InputError for unknown names.
    """
    if isinstance(recipe, General):
        return general_run(recipe, folder=folder, seed=seed, inputs=inputs, params=params)
    _check(inputs, known=_INPUTS, what="inputs")
    _check(params, known=_PARAMS, what="params")
    system = str(params.get("system", recipe.system))
    if names_expand([system]) != [system]:
        raise InputError(f"system: {system!r} is several")
    request = Request(
        tasks=(recipe.case,),
        quick=bool(params.get("quick", 0)),
        device=str(params.get("device", "auto")),
        **{name: Path(path) for name, path in inputs.items()},
    )
    tuned = replace(recipe.tuned, **{name: float(params[name]) for name in _KNOBS if name in params})
    found = [case for case in cases_named([recipe.case], request=request) if case.name == recipe.case]
    case, device = found[0], device_named(request.device)
    folder.mkdir(parents=True, exist_ok=True)
    task = on_device(case.load(), device)
    teacher = teacher_ready(case, task, folder=folder / "teachers", device=device, cached=False)
    cell, outputs, student = cell_run(
        case, task, system=system, seed=seed, tuned=tuned, teacher=teacher, folder=folder, device=device, keep=True
    )
    Ledger(folder).add(cell, outputs=outputs)
    student_save(student, folder / STUDENT)
    result = {
        "recipe": recipe.name,
        "cell": to_mapping(cell),
        "tuned": to_mapping(tuned),
        "teacher": {"digest": teacher.digest, "params": teacher.said.params, "values": teacher.said.values},
        "data": task.digest,
    }
    (folder / RESULT).write_text(json.dumps(result, indent=1))
    return result


def _check(given: Mapping[str, Any], *, known: tuple[str, ...], what: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"{what}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
