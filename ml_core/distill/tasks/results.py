"""What comes out of one cell (case, system, seed), and of a case: what statistics need, without any model."""

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ml_core.distill.tasks.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One finished training, as a line of the ledger.

    settings: digest of everything that it depends on; teacher: of the teacher's weights. values: test metrics by name;
    dev: the first of them on dev. outputs: file of the test logits. device: what it was
    trained on ("" in older ledgers). alignment: cosine, CKA and weight of each pair after the first and last epoch.
    """

    case: str
    system: str
    seed: int
    settings: str
    teacher: str
    values: dict[str, float]
    dev: float
    student_start: str
    params: int
    seconds: float
    outputs: str
    device: str = ""
    alignment: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseResult:
    """All cells of a case with their test logits (n c) each, the teacher's, and the truth that they are held against.

    student_start, params: the student's; teacher_params: the teacher's. tuned_here: settings were chosen on this task.
    """

    case: str
    metrics: dict[str, Metric]
    labels: NDArray[Any]
    weight: NDArray[Any]
    cells: tuple[Cell, ...]
    outputs: dict[tuple[str, int], NDArray[Any]]
    teacher: NDArray[Any]
    teacher_params: int
    teacher_start: str
    student_start: str
    params: int
    tuned_here: bool
