"""The Handbook's protocol: against a plain pandas statement of it, and against the counts of the shared data."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from testkit.shared import SHARED, needs_shared

from ml_core.data.bank import simulate
from ml_core.data.handbook import card_precision, events_of, fold, join, read_table, table_from_columns
from ml_core.data.replay import Replay
from ml_core.errors import InputError

RAW = SHARED / "data" / "fraud" / "handbook_raw_2018-04-01_2018-09-04.parquet"
COUNTS = {  # first day: train rows, frauds, test rows, frauds (shared README)
    "2018-06-20": (66_864, 633, 57_182, 416),
    "2018-07-11": (66_928, 633, 58_505, 374),
    "2018-07-25": (67_240, 598, 58_264, 385),
    "2018-08-15": (67_049, 594, 57_604, 422),
}


def plain_precision(day, card, fraud, score, k: int) -> float:
    caught, shares = set(), []
    for today in sorted(set(day)):
        best: dict[int, tuple[float, bool]] = {}
        for d, c, f, s in zip(day, card, fraud, score, strict=True):
            if d == today and c not in caught:
                old = best.get(c, (-1.0, False))
                best[c] = (max(old[0], s), old[1] or bool(f))
        top = sorted(best, key=lambda c: (-best[c][0], c))[:k]
        hits = [c for c in top if best[c][1]]
        shares.append(len(hits) / k)
        caught |= set(hits)
    return float(np.mean(shares))


def test_card_precision_equals_its_plain_statement_ties_included() -> None:
    rng = np.random.default_rng(0)
    n = 600
    day, card = rng.integers(0, 5, n), rng.integers(0, 80, n)
    fraud, score = rng.random(n) < 0.1, np.round(rng.random(n), 1)
    expected = plain_precision(day, card, fraud, score, 10)
    assert card_precision(day=day, card=card, fraud=fraud, score=score, k=10) == expected


def test_known_cards_leave_the_test_days() -> None:
    table = table_from_columns(simulate(seed=2, cards=100, terminals=60, days=40, start="2026-01-01"))
    train, test = fold(table, first_day=date(2026, 1, 5))
    assert table.day[train].max() - table.day[train].min() == 6
    first_test_day = test[table.day[test] == table.day[test].min()]
    known = set(table.card[train][table.fraud[train]])
    assert not known & set(table.card[first_test_day])


def test_text_and_number_keys_give_the_same_features() -> None:
    bank = simulate(seed=3, cards=20, terminals=20, days=15)
    text = {**bank, "CUSTOMER_ID": np.array([str(c) for c in bank["CUSTOMER_ID"]])}
    results = [Replay().feed(events_of(table_from_columns(columns))) for columns in (bank, text)]
    assert (results[0].features == results[1].features).all()
    assert (results[0].card == results[1].card).all()


def test_a_test_file_before_its_history_is_refused() -> None:
    early = table_from_columns(simulate(seed=1, cards=5, terminals=5, days=5, start="2026-01-01"))
    late = table_from_columns(simulate(seed=1, cards=5, terminals=5, days=5, start="2026-02-01"))
    assert len(join(early, late)) == len(early) + len(late)
    with pytest.raises(InputError, match="before the history"):
        join(late, early)


def test_missing_columns_are_named(tmp_path) -> None:
    pd.DataFrame({"TX_AMOUNT": [1.0]}).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="TX_DATETIME"):
        read_table(tmp_path / "bad.parquet")


@needs_shared
@pytest.mark.shared
def test_the_folds_of_the_shared_file_have_the_published_counts() -> None:
    table = read_table(RAW)
    for first_day, expected in COUNTS.items():
        train, test = fold(table, first_day=date.fromisoformat(first_day))
        assert (len(train), table.fraud[train].sum(), len(test), table.fraud[test].sum()) == expected
    _, test = fold(table, first_day=date(2018, 7, 25))
    best = card_precision(
        day=table.day[test], card=table.card[test], fraud=table.fraud[test], score=table.fraud[test].astype(float)
    )
    assert best == pytest.approx(0.397, abs=5e-4)


@needs_shared
@pytest.mark.shared
@pytest.mark.slow
def test_windows_agree_with_the_shared_features_file() -> None:
    table = read_table(RAW)
    stored = pd.read_parquet(SHARED / "data" / "fraud" / "handbook_features_2018-06-11_2018-09-04.parquet")
    last = int(np.searchsorted(table.day, (date(2018, 6, 14) - date(1970, 1, 1)).days))
    inputs = Replay().feed(events_of(table).part(0, last), tokens=False)
    stored = stored[stored.TRANSACTION_ID.isin(table.id[:last])]
    rows = np.searchsorted(table.id[:last], stored.TRANSACTION_ID.to_numpy())
    ours = inputs.features[rows, 4:16].astype(np.float64)
    names = [
        f"{who}_{what}_{days}DAY_WINDOW"
        for who, whats in (("CUSTOMER_ID", ("NB_TX", "AVG_AMOUNT")), ("TERMINAL_ID", ("NB_TX", "RISK")))
        for what in whats
        for days in (1, 7, 30)
    ]
    difference = np.abs(ours - stored[names].to_numpy(np.float64))
    # two rows of one card in one second may stand the other way round in the book's own sort
    assert (difference > 1e-4).any(axis=1).sum() <= 4
