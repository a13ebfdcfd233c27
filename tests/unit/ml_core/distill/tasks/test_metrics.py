"""Metrics by counts: equal to scikit-learn's, and counts mean repeated rows."""

import numpy as np
import pytest
from sklearn import metrics as sk

from ml_core.distill.tasks import metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 200)
TWO = np.round(RNG.normal(size=(200, 2)) + np.eye(2)[LABELS], 1)  # rounded: equal scores occur
ONE = TWO[:, 1:]
COUNTS = RNG.integers(0, 4, 200).astype(float)


@pytest.mark.parametrize(
    ("ours", "theirs", "outputs"),
    [
        (metrics.accuracy, lambda y, x, w: sk.accuracy_score(y, x.argmax(1), sample_weight=w), TWO),
        (metrics.f1, lambda y, x, w: sk.f1_score(y, x.argmax(1), sample_weight=w), TWO),
        (metrics.matthews, lambda y, x, w: sk.matthews_corrcoef(y, x.argmax(1), sample_weight=w), TWO),
        (metrics.average_precision, lambda y, x, w: sk.average_precision_score(y, x[:, 0], sample_weight=w), ONE),
        (metrics.auc, lambda y, x, w: sk.roc_auc_score(y, x[:, 0], sample_weight=w), ONE),
    ],
)
def test_a_metric_is_scikit_learns_with_and_without_counts(ours, theirs, outputs):
    for weight in (np.ones(200), COUNTS):
        assert ours(outputs, LABELS)(weight) == pytest.approx(theirs(LABELS, outputs, weight), abs=1e-12)


def test_counts_mean_repeated_rows():
    rows = np.repeat(np.arange(200), COUNTS.astype(int))
    once = metrics.average_precision(ONE[rows], LABELS[rows])(np.ones(len(rows)))
    assert metrics.average_precision(ONE, LABELS)(COUNTS) == pytest.approx(once)


def test_the_mean_over_findings_leaves_out_rare_and_unknown_ones():
    labels = np.full((200, 3), -1)
    labels[:, 0] = LABELS
    labels[:5, 1] = [0, 1, 0, 1, 1]
    outputs = np.concatenate([ONE, ONE, ONE], 1)
    value = metrics.macro_auc(least=10)(outputs, labels)(np.ones(200))
    assert value == pytest.approx(sk.roc_auc_score(LABELS, ONE[:, 0]))


def test_scope_is_measured_apart():
    outputs, labels = np.eye(3)[[0, 1, 2, 2, 0]], np.array([0, 1, 1, 2, 2])
    assert metrics.accuracy_except(2)(outputs, labels)(np.ones(5)) == pytest.approx(2 / 3)
    assert metrics.recall_of(2)(outputs, labels)(np.ones(5)) == pytest.approx(1 / 2)
