"""A fraud run from a labelled parquet to an artifact, and the settings that a spec may change."""

from pathlib import Path

import numpy as np
import pytest

from ml_core import artifacts
from ml_core.contracts import ModelKind, RunSpec
from ml_core.data.bank import BankParameters, simulate, write_parquet
from ml_core.data.bank_fraud import FraudParameters
from ml_core.data.handbook import table_from_columns
from ml_core.errors import RunError
from ml_core.evals.fraud import SHIPPED
from ml_core.events import EVENTS, EventLog, read
from ml_core.serving.fraud import FraudScorer
from ml_core.train.fraud import run
from ml_core.train.fraud_presets import training_of
from ml_core.train.fraud_stages import table_rows


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    parameters = BankParameters(fraud=FraudParameters(terminal_rate=2e-3, stolen_rate=3e-3))
    bank = simulate(seed=31, cards=60, terminals=60, days=45, parameters=parameters)
    path = tmp_path_factory.mktemp("bank") / "labelled.parquet"
    write_parquet({name: bank[name] for name in bank if name.startswith(("T", "CUSTOMER"))}, path)
    return path


@pytest.mark.slow
def test_a_small_run_leaves_a_model_that_serves(labelled: Path, tmp_path: Path) -> None:
    spec = RunSpec(
        kind=ModelKind.FRAUD,
        recipe="fraud_dfad_small",
        params={"epochs": 1},
        inputs={"transactions": str(labelled)},
        parent=str(SHIPPED),
    )
    with EventLog(tmp_path) as log:
        outcome = run(spec, tmp_path, log)
    events, _ = read(tmp_path / EVENTS)
    assert [e["name"] for e in events if e["kind"] == "stage"] == ["Data", "Teacher", "Distil", "Quantize", "Compare"]
    assert any(e["kind"] == "step" and set(e["align"]) == {"token", "layer", "global"} for e in events)
    assert set(outcome.candidate) == set(outcome.champion) == {"auc", "ap"}
    assert outcome.candidate["auc"] > 0.6
    assert artifacts.read(tmp_path / "artifact").digest == outcome.digest
    assert FraudScorer(tmp_path / "artifact").digest == outcome.digest


def test_the_last_week_and_the_week_before_it_never_train(labelled: Path) -> None:
    columns = simulate(seed=31, cards=60, terminals=60, days=45, parameters=BankParameters())
    columns["TX_FRAUD"] = (np.random.default_rng(0).random(len(columns["TX_FRAUD"])) < 0.05).astype(np.int8)
    table = table_from_columns(columns)
    rows = table_rows(table, limit=10**6, seed=0)
    day = table.day - table.day[0]
    assert len(rows.guard) == (day >= 38).sum()
    assert len(rows.train) == ((day >= 17) & (day < 31)).sum()
    thinned = table_rows(table, limit=300, seed=0).train
    assert thinned.fraud.sum() == rows.train.fraud.sum()
    assert thinned.weight.sum() == pytest.approx(len(rows.train), rel=0.15)


def test_too_short_a_window_is_refused() -> None:
    table = table_from_columns(simulate(seed=31, cards=60, terminals=60, days=20))
    with pytest.raises(RunError, match="too few"):
        table_rows(table, limit=100, seed=0)


def test_a_spec_may_change_epochs_teacher_and_size_and_nothing_else() -> None:
    spec = RunSpec(
        kind=ModelKind.FRAUD,
        recipe="fraud_dfad_small",
        params={"epochs": 4, "teacher": "lightgbm+transformer", "student": "small"},
    )
    training = training_of(spec)
    assert (training.student_fit.epochs, training.teacher, training.student.d) == (4, "lightgbm+transformer", 48)
    for bad in ({"epochs": 0}, {"teacher": "oracle"}, {"student": "huge"}, {"speed": 1}):
        with pytest.raises(RunError):
            training_of(RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_small", params=bad))


def test_a_run_without_transactions_says_what_it_needs(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log, pytest.raises(RunError, match="transactions"):
        run(RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_small"), tmp_path, log)
