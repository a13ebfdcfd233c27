"""Rows to train on through a mapping: those of the built-in reader, further inputs behind them, nothing from later."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from testkit.mapping import LATITUDE, SCHEME

from ml_core.data.bank import simulate, write_parquet
from ml_core.data.extra_inputs import ExtraInputs
from ml_core.data.fraud_features import FEATURES
from ml_core.data.handbook import read_table
from ml_core.errors import RunError
from ml_core.train.fraud_data import Samples
from ml_core.train.fraud_presets import fraud_dfad_schema
from ml_core.train.fraud_schema import mapped_rows, with_extras
from ml_core.train.fraud_stages import table_rows

HANDBOOK = Path(__file__).resolve().parents[4] / "ml_core" / "data" / "mappings" / "handbook.toml"
DAYS = 40
INPUTS = SCHEME + LATITUDE


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    """40 days with 5% frauds; the scheme "new" appears in the newest week alone."""
    folder = tmp_path_factory.mktemp("bank")
    columns = simulate(seed=31, cards=60, terminals=60, days=DAYS)
    rng = np.random.default_rng(0)
    n = len(columns["TX_FRAUD"])
    columns["TX_FRAUD"] = (rng.random(n) < 0.05).astype(np.int8)
    columns["scheme"] = np.where(columns["TX_TIME_DAYS"] >= DAYS - 7, "new", rng.choice(["amex", "visa"], n))
    columns["lat"] = rng.normal(50, 3, n)
    write_parquet(columns, folder / "t.parquet")
    (folder / "plain.toml").write_text(HANDBOOK.read_text())
    (folder / "more.toml").write_text(HANDBOOK.read_text() + INPUTS)
    (folder / "slow.toml").write_text(HANDBOOK.read_text().replace("delay_days = 7", "delay_days = 9"))
    return folder


def rows_of(bank: Path, mapping: str, *, known: ExtraInputs | None = None):
    return mapped_rows(bank / "t.parquet", mapping=bank / mapping, limit=10**6, seed=0, known=known)


def same(first: Samples, second: Samples) -> bool:
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(Samples))


def test_the_handbook_by_its_mapping_trains_on_the_same_rows_to_the_last_bit(bank: Path) -> None:
    ours, theirs = table_rows(read_table(bank / "t.parquet"), limit=10**6, seed=0), rows_of(bank, "plain.toml")
    assert same(ours.train, theirs.train)
    assert same(ours.guard, theirs.guard)
    assert theirs.extras is None
    training = fraud_dfad_schema()
    assert with_extras(training, None) is training


def test_further_inputs_stand_behind_the_features_and_know_nothing_of_the_held_back_week(bank: Path) -> None:
    plain, more = rows_of(bank, "plain.toml"), rows_of(bank, "more.toml")
    assert more.extras is not None
    assert more.extras.vocabulary == {"scheme": ("amex", "visa")}
    width = len(FEATURES)
    assert np.array_equal(more.train.features[:, :width], plain.train.features)
    assert 40 < more.train.features[:, width].mean() < 60, "lat"
    assert set(more.train.features[:, width + 1]) == {1.0, 2.0}
    assert set(more.guard.features[:, width + 1]) == {0.0}, "the new scheme is unknown"
    student = with_extras(fraud_dfad_schema(), more.extras).student
    assert (student.features, student.categories) == (width + 1, (3,))
    assert more.digest != plain.digest


def test_later_labels_leave_fewer_rows_and_other_histories(bank: Path) -> None:
    usual, slow = rows_of(bank, "plain.toml"), rows_of(bank, "slow.toml")
    assert len(slow.guard) == len(usual.guard)
    assert 0 < len(slow.train) < len(usual.train)
    fraud = FEATURES.index("card_fraud_14d")
    assert slow.guard.features[:, fraud].sum() < usual.guard.features[:, fraud].sum()


def test_a_champions_vocabulary_is_kept_and_another_mapping_refused(bank: Path) -> None:
    first = rows_of(bank, "more.toml").extras
    assert first is not None
    known = ExtraInputs(mapping=first.mapping, vocabulary={"scheme": ("new",)})
    again = rows_of(bank, "more.toml", known=known)
    assert again.extras is known
    assert set(again.guard.features[:, -1]) == {1.0}
    with pytest.raises(RunError, match="another mapping"):
        rows_of(bank, "plain.toml", known=known)


def test_an_empty_table_is_refused(bank: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table(pq.read_table(bank / "t.parquet").slice(0, 0)), tmp_path / "none.parquet")
    with pytest.raises(RunError, match="no transactions"):
        mapped_rows(tmp_path / "none.parquet", mapping=bank / "more.toml", limit=10, seed=0)
