"""Scores of the tuned baselines, the shipped student and the ceiling on the Handbook's weeks, one file each.

Every baseline learns the week (D .. D+6) or all of the past up to D+6, on the book's 15 features or on our rich ones.
Of each family's settings the one with the best mean AP on the validation weeks is fitted again for the test weeks. A
file that is already there is not made again, so that a run may be cut off. The files hold scores of data without a
licence: they never go into git.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import xgboost as xgb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from testkit.fraud_scores import RAW, TEST_FOLDS, VALIDATION_FOLDS, scores_path, scores_write, test_rows

from ml_core.data.fraud_features import FEATURES
from ml_core.data.handbook import Table, events_of, fold, read_table
from ml_core.data.replay import Replay
from ml_core.evals.fraud import CHUNK, SHIPPED, score_table
from ml_core.serving.fraud import FraudScorer
from tests.bench.fraud_ceiling import rule_beliefs

WARM_DAYS = 30  # only fill histories, as in the recipe fraud_past
BOOK = [*range(3), *range(4, 16)]  # the Handbook's 15 features: amount, weekend, night and the windows
RICH = [*range(len(FEATURES))]
HISTORIES = (7, 14, 30)  # days of history in the cold starts
Settings = dict[str, Any]
Fitted = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]

_LOGISTIC: list[Settings] = [{"C": 1.0}]
_XGB: list[Settings] = [
    {"n_estimators": 100, "learning_rate": 0.1, "max_depth": 3},
    {"n_estimators": 200, "learning_rate": 0.05, "max_depth": 4},
]
_LGB: list[Settings] = [
    {"n_estimators": 200, "learning_rate": 0.05, "num_leaves": 7, "min_child_samples": 100},
    {"n_estimators": 300, "learning_rate": 0.05, "num_leaves": 15, "min_child_samples": 200},
]
_LGB_RICH: list[Settings] = [{**settings, "colsample_bytree": 0.5, "reg_lambda": 5.0} for settings in _LGB]
# what the peers' search on the same validation weeks chose for long training: one setting, no search of our own
_LGB_PAST: Settings = {
    "n_estimators": 400, "learning_rate": 0.03, "num_leaves": 15, "min_child_samples": 200, "colsample_bytree": 0.3,
    "reg_lambda": 5.0,
}  # fmt: skip
# exact splits on a million rows and all features take an hour: there XGBoost gets 4,095 bins
_XGB_PAST: Settings = {**_XGB[0], "tree_method": "hist", "max_bin": 4_095}
FAMILIES: dict[tuple[str, str], tuple[list[int], list[Settings]]] = {
    ("week", "logistic_book"): (BOOK, _LOGISTIC),
    ("week", "lightgbm_book"): (BOOK, _LGB),
    ("week", "lightgbm_rich"): (RICH, _LGB_RICH),
    ("past", "lightgbm_rich"): (RICH, [_LGB_PAST]),
    ("week", "xgboost_book"): (BOOK, _XGB),
    ("past", "lightgbm_book"): (BOOK, _LGB[:1]),
    ("past", "logistic_book"): (BOOK, _LOGISTIC),
    ("past", "xgboost_book"): (BOOK, _XGB[:1]),
    ("week", "xgboost_rich"): (RICH, _XGB[:1]),
    ("past", "xgboost_rich"): (RICH, [_XGB_PAST]),
}


def main() -> int:
    """Make every file that is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=Path, default=Path("var/fraud-weeks/scores"), help="folder of the files")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    folder = options.scores
    folder.mkdir(parents=True, exist_ok=True)
    table = read_table(RAW)
    tests = test_rows(table, TEST_FOLDS)
    _without_training(table, tests, folder)
    features = _features(table)

    def mean_ap(protocol: str, system: str, settings: Settings, folds: Sequence[str]) -> float:
        columns, _ = FAMILIES[protocol, system.partition(".")[0]]
        cells = [(protocol, first, system) for first in folds]
        data = (table, features[:, columns])
        return float(np.mean([_cell(*data, folder, cell, settings, threads=options.threads) for cell in cells]))

    for (protocol, family), (_, candidates) in FAMILIES.items():
        best = candidates[0]
        if len(candidates) > 1:
            means = [
                mean_ap(protocol, f"{family}.{number}", settings, VALIDATION_FOLDS)
                for number, settings in enumerate(candidates)
            ]
            best = candidates[int(np.argmax(means))]
            print(protocol, family, "validation AP", np.round(means, 4), "chosen:", best, flush=True)
        print(protocol, family, f"test AP {mean_ap(protocol, family, best, TEST_FOLDS):.4f}", flush=True)
    return 0


def _without_training(table: Table, tests: dict[str, npt.NDArray[np.int64]], folder: Path) -> None:
    """The shipped student with all of the history and with the last few days of it, and the ceiling."""
    for system, days in {"shipped": 0, **{f"shipped_{days}d": days for days in HISTORIES}}.items():
        for first, rows in tests.items():
            path = scores_path(folder, protocol="none", first_day=first, system=system)
            if path.exists():
                continue
            begin = 0 if not days else int(np.searchsorted(table.day, table.day[rows[0]] - days))
            known = Table(**{name: getattr(table, name)[begin : rows[-1] + 1] for name in Table.__slots__})
            score = score_table(FraudScorer(SHIPPED), known, first=0, only=rows - begin)
            scores_write(path, score[rows - begin])
            print(path.name, flush=True)
    paths = {first: scores_path(folder, protocol="none", first_day=first, system="ceiling") for first in tests}
    if not all(path.exists() for path in paths.values()):
        ceiling = rule_beliefs(table).fraud
        for first, path in paths.items():
            scores_write(path, ceiling[tests[first]])


def _features(table: Table) -> npt.NDArray[np.float32]:
    """Rich features (n, F) of every row, labels 7 days late."""
    events, replay = events_of(table), Replay()
    parts = [
        replay.feed(events.part(begin, min(begin + CHUNK, len(table))), tokens=False).features
        for begin in range(0, len(table), CHUNK)
    ]
    return np.concatenate(parts)


def _cell(
    table: Table,
    features: npt.NDArray[np.float32],
    folder: Path,
    name: tuple[str, str, str],
    settings: Settings,
    *,
    threads: int,
) -> float:
    """Fit one baseline for one fold unless its file is there; returns AP on the fold's test week."""
    protocol, first, system = name
    first_day = date.fromisoformat(first)
    oldest = date.fromordinal(date(1970, 1, 1).toordinal() + int(table.day[0]) + WARM_DAYS)
    train, test = fold(table, first_day=first_day, train_from=oldest if protocol == "past" else None)
    path = scores_path(folder, protocol=protocol, first_day=first, system=system)
    if not path.exists():
        began = time.monotonic()
        predict = _fit(system, settings, features[train], table.fraud[train], threads=threads)
        scores_write(path, predict(features[test]))
        print(path.name, f"{time.monotonic() - began:.0f} s", flush=True)
    with np.load(path) as stored:
        return float(average_precision_score(table.fraud[test], stored["score"]))


def _fit(
    system: str, settings: Settings, x: npt.NDArray[np.float32], fraud: npt.NDArray[np.bool_], *, threads: int
) -> Fitted:
    """A function from rows to logits (float32 inputs: see the traps in the data's README)."""
    if system.startswith("logistic"):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000, random_state=0, **settings))
        fitted = model.fit(x.astype(np.float64), fraud)
        return lambda rows: fitted.decision_function(rows.astype(np.float64))
    if system.startswith("xgboost"):
        exact = {"tree_method": "exact", "base_score": 0.5}
        boosted = xgb.XGBClassifier(random_state=0, n_jobs=threads, **{**exact, **settings}).fit(x, fraud)
        return lambda rows: boosted.predict(rows, output_margin=True)
    common: Settings = {"random_state": 0, "n_jobs": threads, "verbose": -1, "max_bin": 4_095}
    leafy = lgb.LGBMClassifier(**common, subsample=0.8, subsample_freq=1, **settings).fit(x, fraud)
    return lambda rows: np.asarray(leafy.predict(rows, raw_score=True))


if __name__ == "__main__":
    raise SystemExit(main())
