"""Which rows a week's training sees, and a tiny run of it on a simulated bank."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from ml_core import artifacts
from ml_core.contracts import ModelKind, RunSpec
from ml_core.data.bank import BankParameters, simulate, write_parquet
from ml_core.data.bank_fraud import FraudParameters
from ml_core.data.fraud_features import CONTEXT
from ml_core.data.handbook import Table, fold, read_table
from ml_core.errors import RunError
from ml_core.events import EventLog
from ml_core.seed import seed_all
from ml_core.serving.fraud import FraudScorer
from ml_core.train.fraud import quantize, run
from ml_core.train.fraud_data import Batch, table_samples
from ml_core.train.fraud_fit import FitSettings, predict
from ml_core.train.fraud_presets import training_of
from ml_core.train.fraud_stages import (
    FraudTraining,
    Rows,
    calibrate,
    device_of,
    fit_student,
    fit_teachers,
    with_unlabelled,
)
from ml_core.train.fraud_weeks import first_day_of, split_rows, split_weeks, week_rows

DAYS = 70
WARM = 30


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    parameters = BankParameters(fraud=FraudParameters(terminal_rate=4e-3, stolen_rate=5e-3))
    made = simulate(seed=5, cards=80, terminals=80, days=DAYS, parameters=parameters)
    path = tmp_path_factory.mktemp("bank") / "bank.parquet"
    write_parquet({name: made[name] for name in made if name.startswith(("T", "CUSTOMER"))}, path)
    return path


@pytest.fixture(scope="module")
def table(bank: Path) -> Table:
    return read_table(bank)


def a_training(protocol: str = "week", **changes: object) -> FraudTraining:
    training = training_of(RunSpec(kind=ModelKind.FRAUD, recipe=f"fraud_{protocol}"))
    tiny = FitSettings(epochs=1, batch=128, seconds=60)
    return replace(
        training,
        teacher="lightgbm",
        trees=replace(training.trees, trees=8),
        student_fit=tiny,
        transformer_fit=tiny,
        quantize_rows=256,
        device="cpu",
        **changes,  # type: ignore[arg-type]
    )


def days_from(table: Table, first: date, rows: np.ndarray) -> set[int]:
    return set((table.day[rows] - (first - date(1970, 1, 1)).days).tolist())


def test_a_week_learns_from_seven_days_and_the_past_from_all_after_the_warm_up(table: Table) -> None:
    week, past = a_training(), a_training("past", table_rows=10**6)
    first = first_day_of(table, week)
    assert days_from(table, first, split_weeks(table, week, seed=0).train) == set(range(7))
    oldest = int(table.day[0]) + WARM - (first - date(1970, 1, 1)).days
    assert days_from(table, first, split_weeks(table, past, seed=0).train) == set(range(oldest, 7))


def test_unless_told_the_newest_week_whose_labels_are_known_is_taken(table: Table) -> None:
    first = first_day_of(table, a_training())
    assert (first - date(1970, 1, 1)).days + 14 == int(table.day[-1]) + 1
    assert first_day_of(table, a_training(first_day="2018-07-25")) == date(2018, 7, 25)


def test_with_the_guard_a_week_is_the_handbooks_training_week(table: Table) -> None:
    training = a_training()
    split = split_weeks(table, training, seed=0)
    expected, _ = fold(table, first_day=first_day_of(table, training))
    assert np.array_equal(np.sort(np.concatenate([split.train, split.guard])), expected)
    assert not set(table.card[split.train].tolist()) & set(table.card[split.guard].tolist())


def test_unlabelled_rows_are_other_days_before_the_test_and_at_most_as_many_as_asked_for(table: Table) -> None:
    training = a_training(unlabelled_rows=400)
    split = split_weeks(table, training, seed=0)
    first = first_day_of(table, training)
    assert len(split.unlabelled) == 400
    days = days_from(table, first, split.unlabelled)
    assert not days & set(range(7))
    assert max(days) < 14
    assert not len(split_weeks(table, a_training(), seed=0).unlabelled)


def test_thinned_genuine_rows_weigh_what_all_of_them_would(table: Table) -> None:
    whole = split_weeks(table, a_training("past", table_rows=10**6), seed=0)
    thinned = split_weeks(table, a_training("past", table_rows=1_000), seed=0)
    assert table.fraud[thinned.train].sum() == table.fraud[whole.train].sum()
    assert len(thinned.train) < len(whole.train) / 2
    assert thinned.weight.sum() == pytest.approx(len(whole.train), rel=0.1)


def test_a_week_without_frauds_is_refused(table: Table) -> None:
    honest = replace(table, fraud=np.zeros(len(table), bool))
    with pytest.raises(RunError, match="fewer than 20 frauds"):
        split_weeks(honest, a_training(), seed=0)


def test_nothing_after_the_delay_reaches_the_training(table: Table) -> None:
    training = a_training(unlabelled_rows=300)
    early = first_day_of(table, training).fromordinal(first_day_of(table, training).toordinal() - 7)
    training = replace(training, first_day=early.isoformat())
    later = table.day >= (early - date(1970, 1, 1)).days + 14
    turned = replace(table, fraud=table.fraud ^ later, cents=np.where(later, 1, table.cents))
    one, other = (week_rows(training, each, seed=0) for each in (table, turned))
    for name in ("train", "guard", "unlabelled"):
        a, b = getattr(one, name), getattr(other, name)
        assert np.array_equal(a.features, b.features)
        assert np.array_equal(a.terminal, b.terminal)
        assert np.array_equal(a.fraud, b.fraud)
    assert one.digest == other.digest


def test_one_replay_shared_by_many_weeks_gives_the_same_rows(table: Table) -> None:
    training = a_training(unlabelled_rows=200)
    split = split_weeks(table, training, seed=0)
    keep = table.day >= table.day[0] + WARM
    samples = table_samples(table, keep=keep, weight=np.ones(len(table), np.float32))
    shared = split_rows(samples, split, digest="", first=int(np.flatnonzero(keep)[0]))
    alone = week_rows(training, table, seed=0)
    for name in ("train", "guard", "unlabelled"):
        a, b = getattr(shared, name), getattr(alone, name)
        assert all(np.array_equal(getattr(a, field), getattr(b, field)) for field in a.__slots__)


def rows_of(table: Table, training: FraudTraining) -> Rows:
    return week_rows(training, table, seed=0)


def test_the_label_of_an_unlabelled_row_changes_nothing(table: Table, tmp_path: Path) -> None:
    training = a_training(unlabelled_rows=300)
    rows = rows_of(table, training)
    assert rows.unlabelled is not None
    lying = replace(rows, unlabelled=replace(rows.unlabelled, fraud=1.0 - rows.unlabelled.fraud))
    answers = []
    with EventLog(tmp_path) as log:
        for each in (rows, lying):
            data = Batch.of(each.train, device=device_of(training))
            teachers = fit_teachers(training, each, data, log=log, seed=0)
            taught, taught_by = with_unlabelled(training, each, teachers)
            assert len(taught) == len(each.train) + 300 == len(taught_by.outputs.logits)
            student = fit_student(training, Batch.of(taught, device=device_of(training)), taught_by, log=log, seed=0)
            answers.append(predict(student, data).numpy())
    assert np.array_equal(*answers)


def test_a_student_without_windows_reads_the_transaction_and_the_histories_alone(table: Table, tmp_path: Path) -> None:
    training = a_training()
    training = replace(training, student=replace(training.student, features=len(CONTEXT)))
    rows = rows_of(table, training)
    data = Batch.of(rows.train, device=device_of(training))
    seed_all(0)
    with EventLog(tmp_path) as log:
        teachers = fit_teachers(training, rows, data, log=log, seed=0)
        student = fit_student(training, data, teachers, log=log, seed=0)
        calibrate(student, Batch.of(rows.guard, device=device_of(training)))
        model = quantize(student, rows.train, limit=256, log=log, seed=0)
    blind = replace(rows.guard, features=rows.guard.features.copy())
    blind.features[:, len(CONTEXT) :] = 0.0
    seen, unseen = (predict(model, Batch.of(each, device=device_of(training))) for each in (rows.guard, blind))
    assert np.array_equal(seen.numpy(), unseen.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fraud_week", "fraud_past"])
def test_a_run_of_the_recipe_leaves_a_model_that_serves(recipe: str, bank: Path, tmp_path: Path) -> None:
    params = {"teacher": "lightgbm", "epochs": 1, "rows": 2_000, "unlabelled": 200 if recipe == "fraud_week" else 0}
    spec = RunSpec(kind=ModelKind.FRAUD, recipe=recipe, params=params, inputs={"transactions": str(bank)})
    with EventLog(tmp_path) as log:
        outcome = run(spec, tmp_path, log)
    assert set(outcome.candidate) == {"auc", "ap"}
    assert outcome.champion is None
    assert artifacts.read(tmp_path / "artifact").recipe == recipe
    assert FraudScorer(tmp_path / "artifact").digest == outcome.digest


def test_a_spec_names_the_first_day_as_a_day(table: Table) -> None:
    spec = RunSpec(kind=ModelKind.FRAUD, recipe="fraud_past", params={"first_day": "2018-07-25", "rows": 10})
    assert (training_of(spec).first_day, training_of(spec).table_rows) == ("2018-07-25", 10)
    with pytest.raises(RunError, match="2018-7-25"):
        training_of(replace(spec, params={"first_day": "2018-7-25"}))
    with pytest.raises(RunError, match="unknown first_day"):
        training_of(RunSpec(kind=ModelKind.FRAUD, recipe="fraud_dfad_small", params={"first_day": "2018-07-25"}))
