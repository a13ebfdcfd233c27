"""Figures and verdicts of the registry."""

import json

import pytest
from testkit.shared import ROOT

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


@pytest.mark.parametrize(
    ("kind", "titles"),
    [
        ("fraud", ["Average precision", "ROC AUC", "Average precision, teacher"]),
        ("report", ["F1, real films", "F1, constant report", "F1, simulated films"]),
    ],
)
def test_the_shipped_models_are_headed_by_their_own_figures_in_words(kind, titles):
    manifest = json.loads((ROOT / f"ml_core/pretrained/{kind}-student/manifest.json").read_text())
    names = rules.headline(kind=kind, metrics=[manifest["metrics"]])
    assert [rules.label(name) for name in names] == titles
    labels = [rules.label(name) for name in manifest["metrics"]]
    assert len(set(labels)) == len(labels)
    assert all(label[0].isupper() and "_" not in label for label in labels)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("test_ap", "Average precision"),
        ("val_auc", "ROC AUC, validation"),
        ("float_auc", "ROC AUC, before INT8"),
        ("simulated_f1_constant", "F1, constant report, simulated films"),
        ("something_new", "Something new"),
    ],
)
def test_a_metric_is_called_by_its_words_and_whose_it_is(name, label):
    assert rules.label(name) == label


def test_the_figures_that_head_a_list_come_first_in_a_comparison():
    rows = rules.compare(candidate={"gate_recall": 1.0, "real_val_f1_micro": 0.7, "odd": 1.0}, champion=None)
    assert [row.name for row in rows] == ["real_val_f1_micro", "gate_recall", "odd"]


@pytest.mark.parametrize("name", ["lightgbm_ap", "teacher_auc", "real_val_f1_constant", "real_val_films"])
def test_what_a_model_is_measured_against_is_not_judged(name):
    (row,) = rules.compare(candidate={name: 0.9}, champion={name: 0.1})
    assert row.verdict == ""


def test_figures_of_different_test_sets_have_neither_difference_nor_verdict():
    (row,) = rules.compare(candidate={"ap": 0.9}, champion={"ap": 0.1}, judged=False)
    assert (row.candidate, row.champion, row.change, row.verdict) == ("0.900", "0.100", "", "")
