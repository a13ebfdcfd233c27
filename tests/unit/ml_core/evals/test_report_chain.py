"""Retention and gain of a chain of teachers, on tables small enough to be counted by hand."""

import numpy as np
import pytest

from tests.bench.report_chain import Case, mean_auc, rows_of


def test_mean_auc_is_the_share_of_pairs_in_order_and_a_tie_is_half_a_pair() -> None:
    truth = np.asarray([[1, 1], [0, 1], [1, 0], [0, 0]], dtype=np.float32)
    scores = np.asarray([[0.9, 0.5], [0.2, 0.7], [0.1, 0.5], [0.1, 0.1]], dtype=np.float32)
    first = (1 + 1 + 0 + 0.5) / 4  # 0.9 above both, 0.1 below 0.2 and level with 0.1
    second = (0.5 + 1 + 1 + 1) / 4
    assert mean_auc(truth, scores)(np.arange(4)) == pytest.approx((first + second) / 2)


def test_a_finding_that_a_draw_shows_on_all_films_or_none_is_left_out_of_its_mean() -> None:
    truth = np.asarray([[1, 0], [0, 0], [1, 1]], dtype=np.float32)
    scores = np.asarray([[0.9, 0.3], [0.2, 0.2], [0.8, 0.1]], dtype=np.float32)
    assert mean_auc(truth, scores)(np.asarray([0, 1])) == 1


def test_retention_is_a_ratio_and_gain_a_difference_under_the_same_draws() -> None:
    """A student at nine tenths of its teacher on whatever is drawn retains exactly nine tenths."""
    worth = np.asarray([1.0, 2.0, 3.0, 4.0])
    case = Case(
        name="films", metric="worth", unit="worth", groups=np.asarray(["a", "a", "b", "c"]),
        measures={
            "large": lambda rows: float(worth[rows].mean()),
            "student-chain": lambda rows: 0.9 * float(worth[rows].mean()),
            "student-plain": lambda rows: 0.9 * float(worth[rows].mean()) - 0.25,
        },
    )  # fmt: skip
    rows = {(row["system"], row["metric"]): row for row in rows_of(case)}
    kept = rows["student from ViT-B / ViT-B teacher", "retention, worth"]
    assert [kept["value"], kept["low"], kept["high"]] == pytest.approx([0.9] * 3)
    gained = rows["student from ViT-B - student without teacher", "gain, worth"]
    assert [gained["value"], gained["low"], gained["high"]] == pytest.approx([0.25] * 3)
    own = rows["ViT-B teacher", "worth"]
    assert own["value"] == 2.5
    assert own["low"] < 2.5 < own["high"]
