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
DRAWS = 1_000
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
    """One test week, ranked by a system's scores once, so that any resampling of its days is two cumulative sums."""

    def __init__(
        self, *, day: npt.NDArray[Any], card: npt.NDArray[Any], fraud: npt.NDArray[Any], score: npt.NDArray[Any]
    ) -> None:
        self.n = len(day)
        days, number = np.unique(day, return_inverse=True)
        self.days = len(days)
        order = np.argsort(-np.asarray(score, np.float64), kind="stable")
        ranked = np.asarray(score, np.float64)[order]
        self._last = np.append(np.flatnonzero(np.diff(ranked)), self.n - 1)  # equal scores are one threshold
        self._day, self._fraud = number[order], np.asarray(fraud)[order].astype(np.float64)
        self._shares = _card_shares(day=day, days=days, card=card, fraud=fraud, score=score)

    def figures(self, times: npt.NDArray[np.int64] | None = None) -> tuple[float, float, float]:
        """AUC, AP and CP@100 with day d taken `times[d]` times (each once by default)."""
        times = np.ones(self.days, np.int64) if times is None else times
        weight = times[self._day].astype(np.float64)
        caught = np.cumsum(weight * self._fraud)[self._last]
        alerts = np.cumsum(weight)[self._last]
        frauds, false = caught[-1], alerts - caught
        precision = caught / np.maximum(alerts, 1e-300)
        ap = float(np.sum(np.diff(caught, prepend=0.0) * precision) / frauds)
        heights = 0.5 * (caught + np.concatenate([[0.0], caught[:-1]]))
        auc = float(np.sum(np.diff(false, prepend=0.0) * heights) / (frauds * false[-1]))
        return auc, ap, float(np.sum(times * self._shares) / times.sum())


def test_rows(table: Table, folds: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Row numbers of each fold's test week, known cards left out."""
    return {first: fold(table, first_day=date.fromisoformat(first))[1] for first in folds}


def scores_path(folder: Path, *, protocol: str, first_day: str, system: str) -> Path:
    """Where one system's scores of one test week lie. Protocols: week, past, none (not trained on the file)."""
    return folder / f"{protocol}-{first_day}-{system}.npz"


def scores_write(path: Path, score: npt.NDArray[Any]) -> None:
    """Leave `score` (one a test row, higher is worse) whole or not at all."""
    partial = path.with_suffix(".partial.npz")
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
    drawn = np.zeros((draws, len(METRICS)))
    for draw in range(draws):
        times = [np.bincount(rng.integers(0, week.days, week.days), minlength=week.days) for week in weeks]
        drawn[draw] = np.mean([week.figures(t) for week, t in zip(weeks, times, strict=True)], axis=0)
    values = np.mean([week.figures() for week in weeks], axis=0)
    return Figures(values=values, draws=drawn, n=sum(week.n for week in weeks))


def _card_shares(
    *, day: npt.NDArray, days: npt.NDArray, card: npt.NDArray, fraud: npt.NDArray, score: npt.NDArray
) -> npt.NDArray[np.float64]:
    """Each day's share of CP@100 (cards caught on earlier days left out)."""
    means = [
        card_precision(day=day[upto], card=card[upto], fraud=fraud[upto], score=score[upto]) * (k + 1)
        for k, upto in enumerate(day <= today for today in days)
    ]
    return np.diff(np.array(means), prepend=0.0)
