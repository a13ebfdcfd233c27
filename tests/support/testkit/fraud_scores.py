"""The Handbook's weeks as benchmarks use them: where the file lies, its folds, and the three figures with intervals.

A figure of several weeks is the mean of the weeks' own. Intervals are 95% bootstraps over test days, drawn within each
week; every system gets the same draws, so that differences of two have intervals too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_core.data.handbook import Table, card_precision, fold
from testkit.shared import SHARED

RAW = SHARED / "data" / "fraud" / "handbook_raw_2018-04-01_2018-09-04.parquet"
TEST_FOLDS = ("2018-07-25", "2018-08-01", "2018-08-08", "2018-08-15")
VALIDATION_FOLDS = ("2018-06-20", "2018-06-27", "2018-07-04", "2018-07-11")
CASES = {"standard week": TEST_FOLDS[:1], "mean of 4 test weeks": TEST_FOLDS}
METRICS = ("auc", "ap", "cp100")
DRAWS = 2_000
ByFold = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """AUC, AP and CP@100 of one system: the values (3) and their bootstrap draws (DRAWS, 3); `n` rows were ranked."""

    values: npt.NDArray[np.float64]
    draws: npt.NDArray[np.float64]
    n: int

    def minus(self, other: "Figures") -> "Figures":
        """The difference, draw by draw: both must be of the same weeks."""
        if self.n != other.n:
            raise ValueError(f"{self.n} rows against {other.n}: not the same weeks")
        return Figures(values=self.values - other.values, draws=self.draws - other.draws, n=self.n)

    def rows(self, *, case: str, system: str) -> list[dict[str, Any]]:
        """One row of a result file for each metric."""
        low, high = np.percentile(self.draws, [2.5, 97.5], axis=0)
        return [
            {
                "case": case, "system": system, "metric": metric, "value": float(self.values[k]), "unit": "1",
                "low": float(low[k]), "high": float(high[k]), "n": self.n,
            }
            for k, metric in enumerate(METRICS)
        ]  # fmt: skip


class WeekRanking:
    """One test week under a system's scores; counted once by day, so that any resampling of days is a product."""

    def __init__(
        self, *, day: npt.NDArray[Any], card: npt.NDArray[Any], fraud: npt.NDArray[Any], score: npt.NDArray[Any]
    ) -> None:
        days, number = np.unique(day, return_inverse=True)
        self.n, self.days = len(day), len(days)
        score, fraud = np.asarray(score, np.float64), np.asarray(fraud, bool)
        at = score[fraud]
        self._fraud_day = number[fraud]
        # (frauds, days): of each day, the frauds and the genuine rows that score at least as high, and those equal
        self._frauds_above = np.zeros((len(at), self.days))
        self._genuine_above, self._genuine_equal = np.zeros_like(self._frauds_above), np.zeros_like(self._frauds_above)
        for k in range(self.days):
            frauds, genuine = (np.sort(score[(number == k) & mask]) for mask in (fraud, ~fraud))
            self._frauds_above[:, k] = len(frauds) - np.searchsorted(frauds, at, "left")
            self._genuine_above[:, k] = len(genuine) - np.searchsorted(genuine, at, "left")
            self._genuine_equal[:, k] = np.searchsorted(genuine, at, "right") - np.searchsorted(genuine, at, "left")
        self._genuine = np.bincount(number[~fraud], minlength=self.days)
        self._shares = _card_shares(day=day, days=days, card=card, fraud=fraud, score=score)

    def figures(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """AUC, AP and CP@100 (draws, 3) with day d taken times[:, d] times (draws, days)."""
        weight = times[:, self._fraud_day].T.astype(np.float64)
        caught, false = self._frauds_above @ times.T, self._genuine_above @ times.T
        frauds, genuine = weight.sum(0), times @ self._genuine
        ap = (weight * caught / np.maximum(caught + false, 1.0)).sum(0) / frauds
        below = genuine - false + 0.5 * (self._genuine_equal @ times.T)
        auc = (weight * below).sum(0) / (frauds * genuine)
        return np.stack([auc, ap, times @ self._shares / times.sum(1)], axis=1)


def test_rows(table: Table, folds: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Row numbers of each fold's test week, known cards left out."""
    return {first: fold(table, first_day=date.fromisoformat(first))[1] for first in folds}


def scores_path(folder: Path, *, protocol: str, first_day: str, system: str) -> Path:
    """Where one system's scores of one test week lie. Protocols: week, past, none (not trained on the file)."""
    return folder / f"{protocol}-{first_day}-{system}.npz"


def scores_write(path: Path, score: npt.NDArray[Any]) -> None:
    """Leave `score` (one a test row, higher is worse) whole or not at all."""
    partial = path.with_name(f".{path.name}")
    np.savez_compressed(partial, score=np.asarray(score, np.float64))
    partial.replace(path)


def figures(table: Table, *, tests: ByFold, scores: ByFold, folds: Sequence[str], draws: int = DRAWS) -> Figures:
    """Of one system's scores (fold → one a test row), the mean over `folds`. Raises ValueError for scores that lack."""
    weeks = []
    for first in folds:
        rows, score = tests[first], np.asarray(scores[first])
        if len(score) != len(rows) or not np.isfinite(score).all():
            raise ValueError(f"{first}: {len(score)} scores for {len(rows)} rows, or some that are not finite")
        weeks.append(WeekRanking(day=table.day[rows], card=table.card[rows], fraud=table.fraud[rows], score=score))
    rng = np.random.default_rng(0)
    drawn = np.mean([week.figures(_day_draws(rng, week.days, draws)) for week in weeks], axis=0)
    values = np.mean([week.figures(np.ones((1, week.days), np.int64))[0] for week in weeks], axis=0)
    return Figures(values=values, draws=drawn, n=sum(week.n for week in weeks))


def _day_draws(rng: np.random.Generator, days: int, draws: int) -> npt.NDArray[np.int64]:
    """How often each day is taken when as many are drawn with replacement, (draws, days)."""
    return rng.multinomial(days, np.full(days, 1 / days), size=draws)


def _card_shares(
    *, day: npt.NDArray, days: npt.NDArray, card: npt.NDArray, fraud: npt.NDArray, score: npt.NDArray
) -> npt.NDArray[np.float64]:
    """Each day's share of CP@100 (cards caught on earlier days left out)."""
    means = [
        card_precision(day=day[upto], card=card[upto], fraud=fraud[upto], score=score[upto]) * (k + 1)
        for k, upto in enumerate(day <= today for today in days)
    ]
    return np.diff(np.array(means), prepend=0.0)
