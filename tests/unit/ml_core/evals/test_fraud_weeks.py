"""Measuring the Handbook's weeks: figures against scikit-learn, the ceiling, slices and score files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from testkit.fraud_scores import WeekRanking, figures, scores_path, scores_write
from testkit.fraud_slices import alerts, false_alarms, fraud_slices, slice_rows, story

from ml_core.data.bank import BankParameters, simulate
from ml_core.data.handbook import DAY_S, Table, card_precision, table_from_columns
from tests.bench.fraud_ceiling import rule_beliefs
from tests.bench.fraud_weeks_evaluate import scores_read

DAYS = 60


@pytest.fixture(scope="module")
def bank() -> tuple[Table, np.ndarray]:
    """A small bank with exactly the published rules, and the rule behind each row."""
    columns = simulate(seed=6, cards=300, terminals=200, days=DAYS, parameters=BankParameters())
    return table_from_columns(columns), columns["TX_FRAUD_SCENARIO"].astype(np.int64)


def _week(table: Table) -> np.ndarray:
    return np.flatnonzero(table.day - table.day[0] >= DAYS - 7)


def test_figures_of_a_week_are_scikit_learns_and_the_handbooks(bank: tuple[Table, np.ndarray]) -> None:
    table, _ = bank
    rows = _week(table)
    score = np.round(np.random.default_rng(0).random(len(rows)) + 0.3 * table.fraud[rows], 2)  # with ties
    columns = {"day": table.day[rows], "card": table.card[rows], "fraud": table.fraud[rows]}
    week = WeekRanking(**columns, score=score)
    auc, ap, cp = week.figures(np.ones((1, 7), np.int64))[0]
    assert auc == pytest.approx(roc_auc_score(columns["fraud"], score), abs=1e-12)
    assert ap == pytest.approx(average_precision_score(columns["fraud"], score), abs=1e-12)
    assert cp == pytest.approx(card_precision(**columns, score=score), abs=1e-12)


def test_a_day_drawn_twice_counts_twice(bank: tuple[Table, np.ndarray]) -> None:
    table, _ = bank
    rows = _week(table)
    score = np.random.default_rng(1).random(len(rows)) + 0.3 * table.fraud[rows]
    day, fraud = table.day[rows], table.fraud[rows]
    week = WeekRanking(day=day, card=table.card[rows], fraud=fraud, score=score)
    times = np.array([2, 0, 1, 1, 0, 3, 0])
    weight = times[day - day[0]]
    auc, ap, _ = week.figures(times[None])[0]
    assert auc == pytest.approx(roc_auc_score(fraud, score, sample_weight=weight), abs=1e-12)
    assert ap == pytest.approx(average_precision_score(fraud, score, sample_weight=weight), abs=1e-12)


def test_scores_that_lack_or_are_not_finite_are_refused(bank: tuple[Table, np.ndarray]) -> None:
    table, _ = bank
    tests = {"w": _week(table)}
    score = np.ones(len(tests["w"]))
    for bad in (score[1:], np.where(np.arange(len(score)) == 3, np.nan, score)):
        with pytest.raises(ValueError, match="w: "):
            figures(table, tests=tests, scores={"w": bad}, folds=("w",), draws=1)


def test_the_difference_of_two_systems_has_an_interval_of_its_own(bank: tuple[Table, np.ndarray]) -> None:
    table, _ = bank
    tests = {"w": _week(table)}
    good = {"w": table.fraud[tests["w"]] + 0.4 * np.random.default_rng(2).random(len(tests["w"]))}
    one = figures(table, tests=tests, scores=good, folds=("w",), draws=20)
    assert np.all(one.minus(one).draws == 0)
    assert [row["metric"] for row in one.rows(case="c", system="s")] == ["auc", "ap", "cp100"]
    with pytest.raises(ValueError, match="not the same weeks"):
        one.minus(replace(one, n=1))


def test_the_ceiling_knows_the_rules_and_waits_for_labels(bank: tuple[Table, np.ndarray]) -> None:
    table, _ = bank
    beliefs = rule_beliefs(table)
    assert np.all((beliefs.fraud >= 0) & (beliefs.fraud <= 1))
    assert np.all(beliefs.fraud[table.cents > 22_000] == 1)
    rows = _week(table)
    assert average_precision_score(table.fraud[rows], beliefs.fraud[rows]) > 0.9
    # labels of the last seven days change nothing; those before do
    late = table.at > table.at[-1] - 7 * DAY_S
    blind = rule_beliefs(replace(table, fraud=table.fraud & ~late))
    np.testing.assert_array_equal(blind.fraud, beliefs.fraud)
    assert np.any(rule_beliefs(replace(table, fraud=table.fraud & late)).fraud != beliefs.fraud)


def test_what_lies_ahead_does_not_change_the_ceiling(bank: tuple[Table, np.ndarray]) -> None:
    table, _ = bank
    half = Table(**{name: getattr(table, name)[: len(table) // 2] for name in Table.__slots__})
    np.testing.assert_array_equal(rule_beliefs(half).fraud, rule_beliefs(table).fraud[: len(half)])


def test_the_story_counts_from_the_first_fraud_of_an_attack() -> None:
    days = np.array([0, 1, 2, 10, 27, 30, 40])
    n = len(days)
    table = Table(
        id=np.arange(n),
        at=days * DAY_S,
        card=np.zeros(n, np.int64),
        terminal=np.zeros(n, np.int64),
        cents=np.full(n, 5_000),
        fraud=np.array([0, 1, 1, 1, 1, 0, 1], bool),
    )
    told = story(table, scenario=np.array([0, 2, 2, 2, 2, 0, 2]))
    np.testing.assert_array_equal(told.since_takeover, [np.inf, 0, 1, 9, 26, 29, 0])
    np.testing.assert_array_equal(told.card_seen, np.arange(n))
    slices = fraud_slices(told)
    assert slices["terminal, day 0–6 of its frauds (no label yet)"].tolist() == [False, True, True, *[False] * 3, True]
    assert slices["terminal, day 9–13"].tolist() == [False, False, False, True, False, False, False]
    assert not np.isfinite(told.since_theft).any()


def test_a_theft_counts_its_frauds() -> None:
    days = np.array([0, 3, 5, 8, 30])
    n = len(days)
    same = np.zeros(n, np.int64)
    fraud = np.array([1, 0, 1, 1, 1], bool)
    table = Table(id=np.arange(n), at=days * DAY_S, card=same, terminal=same, cents=np.full(n, 9_000), fraud=fraud)
    told = story(table, scenario=np.where(fraud, 3, 0))
    np.testing.assert_array_equal(told.thefts, [0, 1, 1, 2, 0])


def test_alerts_are_as_many_as_frauds_and_slices_add_up(bank: tuple[Table, np.ndarray]) -> None:
    table, scenario = bank
    told = story(table, scenario=scenario)
    tests = {"w": _week(table)}
    scores = {"w": 0.5 * table.fraud[tests["w"]] + np.random.default_rng(3).random(len(tests["w"]))}
    assert alerts(table.fraud[tests["w"]], scores["w"]).sum() == table.fraud[tests["w"]].sum()
    rows = slice_rows(table, told, tests=tests, scores=scores, folds=("w",), system="s")
    found = false_alarms(table.fraud[tests["w"]], scores["w"]).sum()
    assert sum(row["n"] for row in rows if row["metric"] == "false alarms") == found > 0
    cases = {row["case"] for row in rows}
    assert cases >= {"slice: rule 2, terminal", "slice: rule 3 against genuine rows"}
    assert "slice: card with 450 or more" not in cases, "no card is so old"


def test_score_files_are_read_by_their_names_and_never_twice(tmp_path: Path) -> None:
    path = scores_path(tmp_path, protocol="past", first_day="2018-07-25", system="student_raw")
    scores_write(path, np.array([0.5, 0.25]))
    (tmp_path / "cells.jsonl").write_text("{}")
    assert scores_read([tmp_path])["past", "student_raw"]["2018-07-25"].tolist() == [0.5, 0.25]
    with pytest.raises(ValueError, match="twice"):
        scores_read([tmp_path, tmp_path])
