"""The protocol: every system on every case under every seed, each cell once; tuning on one case's dev split."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ml_core.distill.tasks.request import Tuned
from ml_core.distill.tasks.results import CaseResult, Cell
from ml_core.distill.tasks.systems import applies
from ml_core.distill.tasks.task import Case, Task
from ml_core.train.distill.cell import cell_run, cell_settings
from ml_core.train.distill.ledger import Ledger, file_name
from ml_core.train.distill.model import on_device, truth_of
from ml_core.train.distill.teacher import Teacher, teacher_ready

Say = Callable[[str], None]
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
SHARES = (0.5, 0.9)
ALPHAS = (0.1, 0.3, 0.6, 0.9)
TUNING_SEEDS = (900_001, 900_002)  # none that a result is reported for


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run, and where: `work` holds the ledger, logits, teachers and their caches.

    shard (i, n): of all (case, seed) the i-th of n shares; several processes may share `work`.
    """

    cases: Sequence[Case]
    systems: Sequence[str]
    seeds: int
    tuned: Tuned
    work: Path
    device: torch.device
    cached: bool = False
    shard: tuple[int, int] = (0, 1)


def measure(plan: Plan, *, say: Say = print) -> list[CaseResult]:
    """Run what the ledger lacks; returns all cells of the plan (of its shard). Called again after a cut it goes on.

    All systems of one case and seed learn from one teacher, to the last bit: where a teacher had to be trained again
    on another machine, a seed that is not finished starts over.
    """
    ledger = Ledger(plan.work)
    results = []
    for index, case in enumerate(plan.cases):
        share, shares = plan.shard
        seeds = [seed for seed in range(plan.seeds) if (index * plan.seeds + seed) % shares == share]
        if seeds:
            results.append(_case(case, plan, seeds=seeds, ledger=ledger, say=say))
        gc.collect()
    return results


def tune(case: Case, plan: Plan, *, say: Say = print) -> Tuned:
    """Settings by the mean dev value over TUNING_SEEDS on one case: KD's temperature and share (8 trials), then, at

    KD's best, the weight alpha of FitNets, MiniLM and DFAD (4 trials each). As published has nothing to tune. Ties go
    to the earlier trial.
    """
    ledger = Ledger(plan.work)
    task, teacher = _ready(case, plan)
    tuned = replace(plan.tuned, tuned_on=case.task)

    def best(system: str, trials: list[Tuned]) -> Tuned:
        means = [_trial(case, task, plan, teacher, ledger, system=system, tuned=trial, say=say) for trial in trials]
        return trials[max(range(len(trials)), key=lambda index: means[index])]

    tuned = best("kd", [replace(tuned, temperature=t, share=s) for t in TEMPERATURES for s in SHARES])
    for system in ("fitnets", "minilm", "dfad"):
        if applies(system, case):
            tuned = best(system, [replace(tuned, **{f"{system}_alpha": alpha}) for alpha in ALPHAS])
    return tuned


def _case(case: Case, plan: Plan, *, seeds: Sequence[int], ledger: Ledger, say: Say) -> CaseResult:
    task, teacher = _ready(case, plan)
    say(f"{case.name}: teacher {task.metric} {teacher.values[task.metric]:.4f}, {teacher.params} parameters")
    systems = [system for system in plan.systems if applies(system, case)]
    cells: list[Cell] = []
    # seed by seed, so that whatever is there when a run is cut off is paired
    for seed in seeds:
        cells += _seed(case, task, plan, teacher, ledger, systems=systems, seed=seed, say=say)
    labels, weight = truth_of(task.test)
    return CaseResult(
        case=case.name,
        metrics=task.metrics,
        labels=labels,
        weight=weight,
        cells=tuple(cells),
        outputs={(cell.system, cell.seed): ledger.outputs(cell) for cell in cells},
        teacher=teacher.outputs,
        teacher_params=teacher.params,
        teacher_start=case.teacher.start,
        student_start=case.student.start,
        params=cells[0].params if cells else 0,
        tuned_here=bool(plan.tuned.tuned_on) and plan.tuned.tuned_on == case.task,
    )


def _seed(
    case: Case, task: Task, plan: Plan, teacher: Teacher, ledger: Ledger, *, systems: Sequence[str], seed: int, say: Say
) -> list[Cell]:
    settings = {s: cell_settings(case, task, system=s, tuned=plan.tuned, teacher=teacher) for s in systems}
    found = [ledger.find(case=case.name, system=s, seed=seed, settings=settings[s]) for s in systems]
    there = [cell for cell in found if cell is not None]
    if len(there) == len(systems) and len({cell.teacher for cell in there}) <= 1:
        return there
    return [_cell(case, task, plan, teacher, ledger, system=system, seed=seed, say=say) for system in systems]


def _ready(case: Case, plan: Plan) -> tuple[Task, Teacher]:
    task = on_device(case.load(), plan.device)
    return task, teacher_ready(case, task, folder=plan.work / "teachers", device=plan.device, cached=plan.cached)


def _trial(
    case: Case, task: Task, plan: Plan, teacher: Teacher, ledger: Ledger, *, system: str, tuned: Tuned, say: Say
) -> float:
    knobs = {"kd": (tuned.temperature, tuned.share), "fitnets": (tuned.fitnets_alpha,),
             "minilm": (tuned.minilm_alpha,), "dfad": (tuned.dfad_alpha,)}[system]  # fmt: skip
    name = file_name("tune", system, *(str(value) for value in knobs))
    inner = replace(plan, tuned=tuned)
    cells = [
        _cell(case, task, inner, teacher, ledger, system=system, seed=seed, name=name, say=say) for seed in TUNING_SEEDS
    ]
    return sum(cell.dev for cell in cells) / len(cells)


def _cell(
    case: Case,
    task: Task,
    plan: Plan,
    teacher: Teacher,
    ledger: Ledger,
    *,
    system: str,
    seed: int,
    say: Say,
    name: str = "",
) -> Cell:
    settings = cell_settings(case, task, system=system, tuned=plan.tuned, teacher=teacher)
    found = ledger.find(case=case.name, system=name or system, seed=seed, settings=settings)
    if found is not None and found.teacher == teacher.digest:
        return found
    folder = plan.work / "running" / file_name(case.name, name or system, seed, settings)
    cell, outputs, _ = cell_run(
        case, task, system=system, seed=seed, tuned=plan.tuned, teacher=teacher, folder=folder, device=plan.device,
        name=name,
    )  # fmt: skip
    ledger.add(cell, outputs=outputs)
    say(f"{case.name} {cell.system} seed {seed}: {task.metric} {cell.values[task.metric]:.4f} in {cell.seconds:.1f} s")
    return cell
