"""Figures and verdicts of the registry."""

import pytest

from apps.registry import rules


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.7481, "0.748"), (412882, "412,882"), (0.00012, "0.00012"), (1.0, "1.000"), (0.0, "0.000"), (None, "–")],
)
def test_a_figure_is_told_to_three_digits(value, text):
    assert rules.figure(value) == text


def test_the_fields_usual_metrics_head_a_list():
    metrics = [{"n": 10.0, "auc": 0.9, "ap": 0.7, "cp100": 0.3, "ece": 0.1}]
    assert rules.headline(kind="fraud", metrics=metrics) == ["ap", "auc", "cp100"]
    assert rules.headline(kind="report", metrics=[{"odd": 1.0}]) == ["odd"]


@pytest.mark.parametrize(
    ("name", "candidate", "champion", "verdict"),
    [
        ("ap", 0.75, 0.74, "better"),
        ("ap", 0.73, 0.74, "worse"),
        ("ap", 0.7401, 0.74, "same"),
        ("loss", 0.1, 0.2, "better"),
        ("ece", 0.2, 0.1, "worse"),
        ("n", 100, 200, ""),
    ],
)
def test_a_difference_is_judged_in_the_metrics_own_direction(name, candidate, champion, verdict):
    (row,) = rules.compare(candidate={name: candidate}, champion={name: champion})
    assert row.verdict == verdict


def test_a_metric_that_one_side_lacks_is_shown_without_a_verdict():
    rows = rules.compare(candidate={"ap": 0.7}, champion={"auc": 0.9})
    assert [(row.name, row.candidate, row.champion, row.verdict) for row in rows] == [
        ("ap", "0.700", "–", ""),
        ("auc", "–", "0.900", ""),
    ]
