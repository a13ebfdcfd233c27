"""The protocol: every system on every case under every seed, each cell once; tuning on one case's dev split."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from ml_core.distill.tasks.request import Tuned
from ml_core.distill.tasks.results import CaseResult, Cell
from ml_core.distill.tasks.systems import applies
from ml_core.distill.tasks.task import Case, Task
from ml_core.errors import RunError
from ml_core.train.distill.cell import cell_run, cell_settings
from ml_core.train.distill.ledger import Ledger, file_name
from ml_core.train.distill.locks import locked
from ml_core.train.distill.model import on_device, truth_of, values_of
from ml_core.train.distill.teacher import Teacher, TeacherSaid, teacher_ready, teacher_recorded, teacher_said

Say = Callable[[str], None]
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
SHARES = (0.5, 0.9)
ALPHAS = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)  # a pretrained student wants little, a random one much
TUNING_SEEDS = (900_001, 900_002)  # none that a result is reported for
_SAME = 1e-6  # between a metric when it was recorded and when it is computed again
_WAIT = 0.5  # seconds between two looks at what others have finished


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run, and where: `work` holds the ledger, logits, teachers and their caches.

    Several processes may be given one plan and one `work`: each takes what no other is at.
    """

    cases: Sequence[Case]
    systems: Sequence[str]
    seeds: int
    tuned: Tuned
    work: Path
    device: torch.device
    cached: bool = False
    graphs: bool = False
    waits: bool = True


def measure(plan: Plan, *, say: Say = print) -> list[CaseResult]:
    """Run what the ledger lacks; returns all cells of the plan. Called again after a cut it goes on.

    A process takes whole seeds first, then single cells of the seeds that others are at. What others have in hand is
    waited for at the end (unless `plan.waits` is off: then nothing is returned). All systems of one case and seed learn
    from one teacher, to the last bit: where a teacher had to be trained again on another machine, a seed that is not
    finished starts over.
    """
    ledger = Ledger(plan.work)
    left = [(case, seed) for case in plan.cases for seed in range(plan.seeds)]
    while left:
        before, ran = len(left), 0
        for helps in (False, True):
            for case in plan.cases if not ran else ():
                stage = _Stage(case, plan, ledger=ledger, say=say)
                for owner, seed in tuple(left):
                    if owner is case and stage.seed(seed, helps=helps):
                        left.remove((owner, seed))
                ran += stage.ran
                gc.collect()
        if left and not plan.waits and len(left) == before and not ran:
            return []
        if left and not ran:
            time.sleep(_WAIT)
    if not plan.waits:
        return []
    return [_Stage(case, plan, ledger=ledger, say=say).result() for case in plan.cases]


def recorded(plan: Plan, *, say: Say = print) -> list[CaseResult]:
    """What the ledger holds of the plan's cases, on whatever machine it was trained; nothing is trained.

    Systems that lack a seed are left out and named by `say`, and so are cases that hold none. Raises RunError where a
    cell's values do not follow from its logits and the labels that the case has here, where systems of one seed learned
    from different teachers, or where what a teacher said is missing.
    """
    ledger = Ledger(plan.work)
    results = [_Stage(case, plan, ledger=ledger, say=say).recorded() for case in plan.cases]
    return [result for result in results if result is not None]


def tune(case: Case, plan: Plan, *, say: Say = print) -> Tuned:
    """Settings by the mean dev value over TUNING_SEEDS on one case: KD's temperature and share (8 trials), then, at

    KD's best, the weight alpha of FitNets, MiniLM and DFAD (6 trials each). As published has nothing to tune. Ties go
    to the earlier trial. Other processes may be at the same trials: each is run once.
    """
    stage = _Stage(case, plan, ledger=Ledger(plan.work), say=say)
    tuned = replace(plan.tuned, tuned_on=case.task)
    logits = [replace(tuned, temperature=t, share=s) for t in TEMPERATURES for s in SHARES]
    tuned = stage.best({"kd": logits})["kd"]
    systems = [s for s in ("fitnets", "minilm", "dfad") if applies(s, case)]
    alphas = {s: [replace(tuned, **{f"{s}_alpha": alpha}) for alpha in ALPHAS] for s in systems}
    best = stage.best(alphas)
    return replace(tuned, **{f"{s}_alpha": getattr(best[s], f"{s}_alpha") for s in systems})


class _Stage:
    """One case under a plan; its data and its teacher are loaded when they are first needed."""

    def __init__(self, case: Case, plan: Plan, *, ledger: Ledger, say: Say) -> None:
        self._case, self._plan, self._ledger, self._say = case, plan, ledger, say
        self.ran = 0  # cells trained here
        self._systems = [s for s in plan.systems if applies(s, case)]

    @cached_property
    def _task(self) -> Task:
        return on_device(self._case.load(), self._plan.device)

    @cached_property
    def _teacher(self) -> Teacher:
        plan, task = self._plan, self._task
        made = teacher_ready(
            self._case, task, folder=plan.work / "teachers", device=plan.device, cached=plan.cached, graphs=plan.graphs
        )
        value = made.said.values[task.metric]
        self._say(f"{self._case.name}: teacher {task.metric} {value:.4f}, {made.said.params} parameters")
        return made

    def seed(self, seed: int, *, helps: bool) -> bool:
        """All systems under one seed; False where another process is at it, or, if this one `helps`, at one of them."""
        if self._there(seed):
            return True
        with self._mine(self._case.name, seed) as mine:
            if not mine and not helps:
                return False
            # who helps begins at the other end than the process that has the seed
            taken = [self._taken(system, seed=seed) for system in self._systems[:: 1 if mine else -1]]
            return all(taken)

    def _taken(self, system: str, *, seed: int) -> bool:
        with self._mine(self._case.name, seed, system) as mine:
            if mine:
                self._cell(self._plan.tuned, system=system, seed=seed)
            return mine

    def best(self, trials: dict[str, list[Tuned]]) -> dict[str, Tuned]:
        """Of each system the settings with the best mean dev value, the earlier of equals."""
        wanted = [(system, trial, seed) for system, some in trials.items() for trial in some for seed in TUNING_SEEDS]
        values: dict[tuple[str, Tuned, int], float] = {}
        while len(values) < len(wanted):
            for key in wanted:
                system, trial, seed = key
                name = _trial_name(system, trial)
                if key not in values:
                    with self._mine(self._case.name, name, seed) as mine:
                        if mine:
                            values[key] = self._cell(trial, system=system, seed=seed, name=name).dev
            if len(values) < len(wanted):
                time.sleep(_WAIT)
        means = {s: [sum(values[s, t, n] for n in TUNING_SEEDS) for t in some] for s, some in trials.items()}
        return {s: some[means[s].index(max(means[s]))] for s, some in trials.items()}

    def result(self) -> CaseResult:
        """Of all seeds, which must be there."""
        cells = [cell for seed in range(self._plan.seeds) for cell in self._found(seed) if cell is not None]
        found = teacher_said(
            self._case, self._task, folder=self._plan.work / "teachers", digest=cells[-1].teacher
        )  # fmt: skip
        return self._result(cells, said=self._teacher.said if found is None else found)

    def recorded(self) -> CaseResult | None:
        """Of the systems that have all seeds; None where there is none."""
        name, seeds = self._case.name, range(self._plan.seeds)
        found = {s: [self._ledger.latest(case=name, system=s, seed=seed) for seed in seeds] for s in self._systems}
        whole = {s: [cell for cell in cells if cell is not None] for s, cells in found.items()}
        whole = {s: cells for s, cells in whole.items() if len(cells) == len(seeds)}
        if lacking := [s for s in self._systems if s not in whole]:
            self._say(f"{name}: not all {len(seeds)} seeds of {', '.join(lacking)}")
        cells = [cell for seed in seeds for cell in (some[seed] for some in whole.values())]
        if not cells:
            return None
        for seed in seeds:
            if len({cell.teacher for cell in cells if cell.seed == seed}) > 1:
                raise RunError(f"{name}: seed {seed} is of several teachers; let it be finished under one")
        for cell in cells:
            self._check(cell)
        said = teacher_recorded(self._plan.work / "teachers", digest=cells[-1].teacher)
        if said is None:
            raise RunError(f"{name}: what teacher {cells[-1].teacher[:16]} said is not in {self._plan.work}")
        return self._result(cells, said=said)

    def _check(self, cell: Cell) -> None:
        again = values_of(self._ledger.outputs(cell), task=self._task, split=self._task.test)
        if any(abs(again[metric] - value) > _SAME for metric, value in cell.values.items()):
            raise RunError(f"{cell.case} {cell.system} seed {cell.seed}: {cell.values} recorded, {again} by its logits")

    def _result(self, cells: list[Cell], *, said: TeacherSaid) -> CaseResult:
        case, task = self._case, self._task
        labels, weight = truth_of(task.test)
        return CaseResult(
            case=case.name,
            metrics=task.metrics,
            labels=labels,
            weight=weight,
            cells=tuple(cells),
            outputs={(cell.system, cell.seed): self._ledger.outputs(cell) for cell in cells},
            teacher=said.outputs,
            teacher_params=said.params,
            teacher_start=case.teacher.start,
            student_start=cells[0].student_start,
            params=cells[0].params,
            tuned_here=bool(self._plan.tuned.tuned_on) and self._plan.tuned.tuned_on == case.task,
        )

    def _mine(self, *words: str | int) -> AbstractContextManager[bool]:
        return locked(self._plan.work / "locks" / file_name(*words), wait=False)

    def _there(self, seed: int) -> bool:
        self._ledger.refresh()
        found = self._found(seed)
        there = [cell for cell in found if cell is not None]
        return len(there) == len(found) and len({cell.teacher for cell in there}) <= 1

    def _found(self, seed: int) -> list[Cell | None]:
        return [self._find(self._plan.tuned, system=system, seed=seed) for system in self._systems]

    def _find(self, tuned: Tuned, *, system: str, seed: int, name: str = "") -> Cell | None:
        settings = cell_settings(self._case, self._task, system=system, tuned=tuned)
        return self._ledger.find(case=self._case.name, system=name or system, seed=seed, settings=settings)

    def _cell(self, tuned: Tuned, *, system: str, seed: int, name: str = "") -> Cell:
        case, task, teacher = self._case, self._task, self._teacher
        self._ledger.refresh()
        found = self._find(tuned, system=system, seed=seed, name=name)
        if found is not None and found.teacher == teacher.digest:
            return found
        settings = cell_settings(case, task, system=system, tuned=tuned)
        folder = self._plan.work / "running" / file_name(case.name, name or system, seed, settings)
        cell, outputs, _ = cell_run(
            case, task, system=system, seed=seed, tuned=tuned, teacher=teacher, folder=folder,
            device=self._plan.device, graphs=self._plan.graphs, name=name,
        )  # fmt: skip
        self._ledger.add(cell, outputs=outputs)
        self.ran += 1
        value = cell.values[task.metric]
        self._say(f"{case.name} {cell.system} seed {seed}: {task.metric} {value:.4f} in {cell.seconds:.1f} s")
        return cell


def _trial_name(system: str, tuned: Tuned) -> str:
    knobs = {"kd": (tuned.temperature, tuned.share), "fitnets": (tuned.fitnets_alpha,),
             "minilm": (tuned.minilm_alpha,), "dfad": (tuned.dfad_alpha,)}[system]  # fmt: skip
    return file_name("tune", system, *(str(value) for value in knobs))
