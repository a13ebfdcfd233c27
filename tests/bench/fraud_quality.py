"""How well the shipped fraud student ranks on the Handbook's weeks, beside its teacher and tuned baselines.

Every system is scored on the same rows: the standard test week and the four prequential test weeks. Baselines learn
from the Handbook's training week of each fold; the student and its teacher have seen simulated banks only. Intervals
are 95% bootstraps over test days. The teacher's checkpoints are not in git: --teacher FOLDER gives its rows.
"""

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import lightgbm as lgb
import numpy as np
import torch
import xgboost as xgb
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from testkit.fraud_scores import CASES, RAW, TEST_FOLDS, figures

from ml_core.data.fraud_features import FEATURES
from ml_core.data.handbook import Table, events_of, fold, read_table
from ml_core.data.replay import Inputs, Replay
from ml_core.evals.bench import meta
from ml_core.evals.fraud import CHUNK, SHIPPED
from ml_core.models.fraud_student import FraudStudent
from ml_core.serving.fraud import FraudScorer
from ml_core.train.fraud_presets import fraud_dfad_int8

BOOK = [*range(3), *range(4, 16)]  # the Handbook's 15 features: amount, weekend, night and the windows
COMMAND = "python -m tests.bench.run fraud-quality --teacher CHECKPOINTS"
RESULT = Path(__file__).parent / "results" / "fraud-quality.json"
Model = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def main() -> int:
    """Score, measure, write the result file, print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, help="folder with trees.txt and transformer.safetensors")
    options = parser.parse_args()
    if not RAW.exists():
        raise SystemExit(f"the shared data is not at {RAW}")
    table = read_table(RAW)
    folds = {first: fold(table, first_day=date.fromisoformat(first)) for first in TEST_FOLDS}
    scores, features = _replay(table, folds, teacher=options.teacher)
    for name, fit in _baselines().items():
        scores[name] = {}
        for first, (train, test) in folds.items():
            predict = fit(features[train], table.fraud[train])
            scores[name][first] = predict(features[test])
    rows = [row for name, by_fold in scores.items() for row in _measure(table, folds, name=name, scores=by_fold)]
    result = {
        "meta": {
            **meta("fraud-quality", packages=("torch", "lightgbm", "xgboost", "scikit-learn")),
            "command": COMMAND,
        },
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _replay(table: Table, folds: dict, *, teacher: Path | None) -> tuple[dict, np.ndarray]:
    """Scores of the student (and of its teacher on the standard week), and the features of every row that is needed."""
    scorer, others = FraudScorer(SHIPPED), _teacher(teacher)
    wanted = np.unique(np.concatenate([test for _, test in folds.values()]))
    standard = folds[TEST_FOLDS[0]][1]
    features = np.zeros((len(table), len(FEATURES)), np.float32)
    raw = {name: np.full(len(table), np.nan) for name in ("Assay student INT8", *others)}
    events, replay = events_of(table), Replay()
    for begin in range(0, len(table), CHUNK):
        end = min(begin + CHUNK, len(table))
        rows = wanted[(wanted >= begin) & (wanted < end)] - begin
        inputs = replay.feed(events.part(begin, end), tokens=len(rows) > 0)
        features[begin:end] = inputs.features
        if not len(rows):
            continue
        part = _take(inputs, rows)
        raw["Assay student INT8"][begin + rows] = scorer.probabilities(part)
        for name, (predict, everywhere) in others.items():
            chosen = rows if everywhere else rows[np.isin(begin + rows, standard)]
            if len(chosen):
                raw[name][begin + chosen] = predict(_take(inputs, chosen))
    scores = {}
    for name, values in raw.items():
        per_fold = {first: values[test] for first, (_, test) in folds.items()}
        scores[name] = {first: value for first, value in per_fold.items() if not np.isnan(value).any()}
    return scores, features


def _take(inputs: Inputs, rows: np.ndarray) -> Inputs:
    return Inputs(features=inputs.features[rows], card=inputs.card[rows], terminal=inputs.terminal[rows])


def _teacher(folder: Path | None) -> dict[str, tuple[Callable[[Inputs], np.ndarray], bool]]:
    """Name → (predictor, on all weeks?); the transformer is slow on a CPU and runs on the standard week only."""
    if folder is None:
        return {}
    booster = lgb.Booster(model_file=str(folder / "trees.txt"))
    model = FraudStudent(fraud_dfad_int8().transformer)
    model.load_state_dict(load_file(folder / "transformer.safetensors"), strict=False)
    model.eval()

    def trees(inputs: Inputs) -> np.ndarray:
        return booster.predict(inputs.features, raw_score=True, num_threads=2)

    @torch.inference_mode()
    def both(inputs: Inputs) -> np.ndarray:
        arrays = [torch.from_numpy(a) for a in (inputs.features, inputs.card, inputs.terminal)]
        parts = zip(*(array.split(128) for array in arrays), strict=True)
        return 0.5 * (trees(inputs) + torch.cat([model(*part) for part in parts]).double().numpy())

    return {"Assay teacher: LightGBM part": (trees, True), "Assay teacher: ensemble": (both, False)}


def _baselines() -> dict[str, Model]:
    """Systems that learn from the fold's own training week."""
    tuned = {"n_estimators": 200, "learning_rate": 0.05, "num_leaves": 7, "min_child_samples": 100, "max_bin": 4_095}
    exact = {"n_estimators": 100, "learning_rate": 0.1, "max_depth": 3, "tree_method": "exact", "base_score": 0.5}
    return {
        "LightGBM tuned, 4095 bins": _sklearn(
            lambda: lgb.LGBMClassifier(random_state=0, n_jobs=2, verbose=-1, **tuned), BOOK
        ),
        "XGBoost exact, 100 x depth 3": _sklearn(lambda: xgb.XGBClassifier(random_state=0, n_jobs=2, **exact), BOOK),
        "logistic regression": _sklearn(
            lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000, random_state=0)), BOOK
        ),
        "LightGBM tuned on Assay's features": _sklearn(
            lambda: lgb.LGBMClassifier(random_state=0, n_jobs=2, verbose=-1, **tuned), [*range(len(FEATURES))]
        ),
    }


def _sklearn(make: Callable, columns: list[int]) -> Model:
    def fit(features: np.ndarray, fraud: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        model = make().fit(features[:, columns].astype(np.float64), fraud)
        return lambda rows: model.predict_proba(rows[:, columns].astype(np.float64))[:, 1]

    return fit


def _measure(table: Table, folds: dict, *, name: str, scores: dict[str, np.ndarray]) -> list[dict]:
    """Rows for the standard week and, where all four were scored, for the mean of the four."""
    out, tests = [], {first: test for first, (_, test) in folds.items()}
    for case, chosen in CASES.items():
        if set(chosen) <= set(scores):
            out += figures(table, tests=tests, scores=scores, folds=chosen).rows(case=case, system=name)
    return out


if __name__ == "__main__":
    raise SystemExit(main())
