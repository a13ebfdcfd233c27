"""Rows of the distillation benchmark: cells, and summaries whose intervals are paired over seeds and examples."""

import numpy as np
import pytest

from ml_core.distill.tasks.metrics import accuracy
from ml_core.distill.tasks.results import CaseResult, Cell
from ml_core.evals.distill_rows import paired_bootstrap, rows_of

N, SEEDS = 300, 5


def case(*, gain: float, seeds=SEEDS, systems=("kd", "dfad")) -> CaseResult:
    """kd errs on 30% of the examples; dfad on `gain` fewer of the same ones."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, N)
    cells, outputs = [], {}
    for seed in range(seeds):
        difficulty = rng.random(N)
        for system in systems:
            limit = 0.3 - (gain if system == "dfad" else 0.0)
            said = np.where(difficulty < limit, 1 - labels, labels)
            outputs[(system, seed)] = np.eye(2)[said]
            value = float((said == labels).mean())
            cells.append(
                Cell(
                    case="a>b/c",
                    system=system,
                    seed=seed,
                    settings="x",
                    teacher="t",
                    values={"accuracy": value},
                    dev=value,
                    student_start="random",
                    params=10,
                    seconds=1.0,
                    outputs="o.npy",
                )  # fmt: skip
            )
    return CaseResult(
        case="a>b/c", metrics={"accuracy": accuracy}, labels=labels, weight=np.ones(N), cells=tuple(cells),
        outputs=outputs, teacher=np.eye(2)[labels], teacher_params=100, teacher_start="random", student_start="random",
        params=10, tuned_here=False,
    )  # fmt: skip


def find(rows, system, metric):
    return next(row for row in rows if (row["system"], row["metric"], row["seed"]) == (system, metric, None))


def test_every_cell_is_a_row_and_says_what_it_started_from():
    rows = [row for row in rows_of([case(gain=0.1)], replicates=20) if row["seed"] is not None]
    assert len(rows) == 2 * SEEDS
    wanted = {"case", "system", "seed", "metric", "value", "student_start", "params", "unit", "low", "high", "n"}
    assert all(wanted <= set(row) for row in rows)


def test_a_clear_gain_has_an_interval_above_zero_and_none_has_one_around_it():
    clear = find(rows_of([case(gain=0.1)], replicates=300), "dfad", "accuracy minus kd")
    assert clear["value"] == pytest.approx(0.1, abs=0.03)
    assert 0 < clear["low"] < clear["value"] < clear["high"]
    none = find(rows_of([case(gain=0.0)], replicates=300), "dfad", "accuracy minus kd")
    assert none["low"] <= 0.0 <= none["high"]


def test_pairing_narrows_the_interval():
    drawn = paired_bootstrap(case(gain=0.1), metric="accuracy", systems=["kd", "dfad"], replicates=300)
    shuffled = np.random.default_rng(0).permutation(drawn["kd"])
    assert np.std(drawn["dfad"] - drawn["kd"]) < 0.8 * np.std(drawn["dfad"] - shuffled)


def test_retention_is_of_the_teacher():
    rows = rows_of([case(gain=0.1)], replicates=50)
    teacher, mean, kept = (find(rows, s, m) for s, m in (
        ("teacher", "accuracy"), ("dfad", "accuracy mean"), ("dfad", "accuracy retention")))  # fmt: skip
    assert teacher["params"] == 100
    assert kept["value"] == pytest.approx(mean["value"] / teacher["value"])


def test_the_same_results_give_the_same_rows():
    assert rows_of([case(gain=0.1)], replicates=50) == rows_of([case(gain=0.1)], replicates=50)
