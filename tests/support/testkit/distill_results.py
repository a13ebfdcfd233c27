"""Reading tests/bench/results/distill.json: a case's family, its first metric, what stands in its summary rows."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
RESULT = ROOT / "tests" / "bench" / "results" / "distill.json"
FAMILIES = ("digits", "fraud", "films", "text")
# what stands beside in tables and legends
SIX = ("ce", "kd", "fitnets", "minilm", "dfad_as_published", "dfad")
# others' students as published, on GLUE: name, teacher, millions of parameters, per cent kept
NEIGHBOURS = (
    ("DistilBERT", "BERT-base", 66.0, 96.2),
    ("TinyBERT-4", "BERT-base", 14.5, 96.9),
    ("BERT4-PKD", "BERT-base", 52.0, 91.3),
    ("MiniLM-L6", "BERT-base", 22.0, 97.5),
    ("MiniLMv2", "RoBERTa-large", 30.0, 93.6),
    ("MobileBERT", "BERT-base", 25.0, 99.2),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A mean over `seeds`, or a difference of two, with its 95% interval; in the row's own unit (shares: 0 to 1)."""

    value: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case's rows. `metric`: the first, which is reported; `params`: the student's numbers, and the teacher's."""

    name: str
    rows: tuple[dict[str, Any], ...]

    @property
    def task(self) -> str:
        """What stands behind the slash."""
        return self.name.rpartition("/")[2]

    @property
    def pair(self) -> str:
        """teacher>student."""
        return self.name.rpartition("/")[0]

    @property
    def teacher(self) -> str:
        """The teacher's name."""
        return self.pair.partition(">")[0]

    @property
    def student(self) -> str:
        """The student's name."""
        return self.pair.partition(">")[2]

    @property
    def family(self) -> str:
        """The task's name where that is a family's, else text."""
        return self.task if self.task in FAMILIES else "text"

    @property
    def plain(self) -> bool:
        """Whether the task is one of its own: those with texts beside ("rte+pairs") do not enter means over tasks."""
        return "+" not in self.task

    @property
    def metric(self) -> str:
        """The metric that is measured first."""
        return self._teacher["metric"]

    @property
    def params(self) -> tuple[int, int]:
        """Of the student and of the teacher."""
        student = next(row["params"] for row in self.rows if row["system"] != "teacher")
        return student, self._teacher["params"]

    @property
    def start(self) -> str:
        """The weights that the student started from."""
        return next(row["student_start"] for row in self.rows if row["system"] != "teacher")

    @property
    def tuned_here(self) -> bool:
        """Whether settings were chosen on this case's task."""
        return self._teacher["tuned_here"]

    @property
    def teachers(self) -> Figure:
        """The teacher's own value."""
        return _figure(self._teacher)

    @property
    def systems(self) -> tuple[str, ...]:
        """All that were measured, in order."""
        return tuple(dict.fromkeys(row["system"] for row in self.rows if row["system"] != "teacher"))

    def mean(self, system: str) -> Figure | None:
        """Mean over seeds; None where the system was not measured."""
        return self._summary(system, "mean")

    def retention(self, system: str) -> Figure | None:
        """Mean over the teacher's."""
        return self._summary(system, "retention")

    def difference(self, system: str, other: str) -> Figure | None:
        """Paired difference of two systems; None where it was not measured."""
        return self._summary(system, f"minus {other}")

    @property
    def _teacher(self) -> dict[str, Any]:
        return next(row for row in self.rows if row["system"] == "teacher")

    def _summary(self, system: str, what: str) -> Figure | None:
        found = (row for row in self.rows if (row["system"], row["metric"]) == (system, f"{self.metric} {what}"))
        return next(map(_figure, found), None)


def cases_read(path: Path = RESULT) -> list[Case]:
    """All cases of a result file by family, teacher, student and task, whatever order they were merged in."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(path.read_text())["rows"]:
        by_name.setdefault(row["case"], []).append(row)
    cases = [Case(name=name, rows=tuple(rows)) for name, rows in by_name.items()]
    return sorted(cases, key=lambda case: (FAMILIES.index(case.family), case.teacher, case.student, case.task))


def _figure(row: dict[str, Any]) -> Figure:
    return Figure(value=row["value"], low=row["low"], high=row["high"], seeds=row["seeds"])
