"""Rows of the distillation benchmark: each cell, and with seed null the means, paired differences and retentions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.distill.tasks.results import CaseResult
from ml_core.seed import numpy_generator

REPLICATES = 2_000
PAIRS = (("dfad", "kd"), ("dfad", "fitnets"), ("dfad", "minilm"), ("dfad", "dfad_as_published"), ("kd", "ce"))
_COMPARED = {name for pair in PAIRS for name in pair}
Array = NDArray[Any]


def rows_of(results: Sequence[CaseResult], *, replicates: int = REPLICATES) -> list[dict[str, Any]]:
    """All rows. `value` of a cell is the metric on the whole test split; low, high are null there.

    Rows with seed null are summaries over seeds: metric "<m> mean" (low, high: 95% bootstrap), "<m> minus <system>"
    (paired: the same seeds and examples are drawn for both), "<m> retention" (mean / teacher's).
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        rows += _cells(result)
        for metric in result.metrics:
            rows += _summary(result, metric=metric, replicates=replicates)
    return rows


def paired_bootstrap(
    result: CaseResult, *, metric: str, systems: Sequence[str], replicates: int, seed: int = 0
) -> dict[str, Array]:
    """Means over seeds of a metric in each replicate (replicates,), by system, and "teacher".

    A replicate draws test examples and seeds with replacement, the same ones for every system: differences of two
    entries are paired.
    """
    rng = numpy_generator(seed, "bootstrap", result.case)
    seeds = seeds_shared(result, systems=systems)
    measure = result.metrics[metric]
    calls = {s: [measure(result.outputs[(s, n)], result.labels) for n in seeds] for s in systems}
    teacher = measure(result.teacher, result.labels)
    drawn: dict[str, Array] = {name: np.empty(replicates) for name in (*systems, "teacher")}
    n = len(result.labels)
    for replicate in range(replicates):
        weight = result.weight * np.bincount(rng.integers(0, n, n), minlength=n)
        picked = np.bincount(rng.integers(0, len(seeds), len(seeds)), minlength=len(seeds))
        for system, values in calls.items():
            parts = [count * call(weight) for count, call in zip(picked, values, strict=True) if count]
            drawn[system][replicate] = sum(parts) / len(seeds)
        drawn["teacher"][replicate] = teacher(weight)
    return drawn


def seeds_shared(result: CaseResult, *, systems: Sequence[str]) -> list[int]:
    """Seeds that every one of the systems finished."""
    sets = [{cell.seed for cell in result.cells if cell.system == system} for system in systems]
    return sorted(set.intersection(*sets)) if sets else []


def _cells(result: CaseResult) -> list[dict[str, Any]]:
    return [
        _row(result, system=cell.system, seed=cell.seed, metric=name, value=value)
        | {"seconds": cell.seconds, "device": cell.device, "alignment": cell.alignment if index == 0 else {}}
        for cell in result.cells
        for index, (name, value) in enumerate(cell.values.items())
    ]


def _summary(result: CaseResult, *, metric: str, replicates: int) -> list[dict[str, Any]]:
    systems = list(dict.fromkeys(cell.system for cell in result.cells))
    if not systems:
        return []
    drawn = paired_bootstrap(result, metric=metric, systems=systems, replicates=replicates)
    seeds = seeds_shared(result, systems=systems)
    found = {s: np.array([_value(result, s, seed, metric) for seed in seeds]) for s in systems}
    teacher = result.metrics[metric](result.teacher, result.labels)(result.weight)

    def row(system: str, name: str, value: float, replicated: Array) -> dict[str, Any]:
        made = _row(result, system=system, seed=None, metric=f"{metric} {name}".strip(), value=value)
        return made | _interval(replicated) | {"seeds": len(seeds)}

    about = {"params": result.teacher_params, "student_start": result.teacher_start, "seeds": 1}
    rows = [row("teacher", "", teacher, drawn["teacher"]) | about]
    for system, values in found.items():
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(row(system, "mean", float(values.mean()), drawn[system]) | {"sd": spread})
        kept = float(_share(values.mean(), teacher))
        rows.append(row(system, "retention", kept, _share(drawn[system], drawn["teacher"])))
    compared = [*PAIRS, *((s, "dfad") for s in systems if s not in _COMPARED)]
    for system, other in compared:
        if system in found and other in found:
            difference = float(found[system].mean() - found[other].mean())
            rows.append(row(system, f"minus {other}", difference, drawn[system] - drawn[other]))
    return rows


def _value(result: CaseResult, system: str, seed: int, metric: str) -> float:
    return next(cell.values[metric] for cell in result.cells if (cell.system, cell.seed) == (system, seed))


def _row(result: CaseResult, *, system: str, seed: int | None, metric: str, value: float) -> dict[str, Any]:
    return {
        "case": result.case,
        "system": system,
        "seed": seed,
        "metric": metric,
        "value": value,
        "unit": "share",
        "low": None,
        "high": None,
        "n": len(result.labels),
        "student_start": result.student_start,
        "params": result.params,
        "tuned_here": result.tuned_here,
    }


def _share(part: Any, whole: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(part, whole)


def _interval(values: Array) -> dict[str, float | None]:
    """95% of the replicates that have a value: a resample without positives has none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"low": None, "high": None}
    low, high = np.percentile(finite, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}
