"""A second schema through the same pipeline: the Alteryx table by its declared mapping, beside tuned trees.

Days 0 .. 169 train, labels are a week late, days 177 .. 218 are the test. Every baseline's settings are chosen on an
earlier slice of the same shape (train to day 120, measured on 128 .. 169), never on the test. Two cases: every
row, and (as the Handbook does) without cards of which a fraud is known by that day, since a bank has blocked those.
Intervals are 95% bootstraps over test days; `lift` rows are differences on the same draws. The table is synthetic: its
figures compare systems on one file and say nothing about real traffic.

The student and its teacher learn by the recipe `fraud_dfad_schema`, which holds two of the training weeks back; the
baselines learn from all of them. --work FOLDER keeps the recipe's run, and takes one that is there already.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch
import xgboost as xgb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from testkit.fraud_scores import WeekRanking
from testkit.shared import SHARED

from ml_core.contracts import ModelKind, RunSpec
from ml_core.data.extra_inputs import ExtraInputs, fit_extras
from ml_core.data.fraud_features import FEATURES
from ml_core.data.handbook import DAY_S, events_of
from ml_core.data.mapped_table import MappedTable, read_mapped
from ml_core.data.mapping import read_mapping
from ml_core.data.replay import Replay
from ml_core.evals.bench import meta
from ml_core.evals.fraud import SHIPPED, score_mapped
from ml_core.events import EventLog
from ml_core.serving.fraud import FraudScorer
from ml_core.train.fraud import run

SOURCE = SHARED / "data" / "fraud" / "alteryx_fraud_transactions.parquet"
MAPPING = Path(__file__).resolve().parents[2] / "ml_core" / "data" / "mappings" / "alteryx_fraud_transactions.toml"
RESULT = Path(__file__).parent / "results" / "fraud-schema.json"
COMMAND = "python -m tests.bench.run fraud-schema"
VALIDATION, TEST = (121, 128, 170), (170, 177, 219)  # train before, measure from, measure before (days)
CONTEXT, BOOK = [*range(4)], [*range(3), *range(4, 16)]  # the transaction itself; the Handbook's 15 features
STUDENT, TEACHER, BANK = "Assay student INT8", "Assay teacher: LightGBM", "rules plus logistic regression"
RAW, OWN = "LightGBM tuned, raw columns", "LightGBM tuned, Assay's features"
COUNTS = (50, 100, 200, 400)  # trees: one fit of the most gives the scores of all
DRAWS = 500
Scores = Callable[[np.ndarray, int], np.ndarray]  # of the rows of a mask, by so many trees where there are trees


@dataclass(frozen=True, kw_only=True)
class Data:
    """The table with, for each row, our features (n, F), and its further inputs coded from `extras` (n, e)."""

    mapped: MappedTable
    features: np.ndarray
    extras: ExtraInputs
    coded: np.ndarray

    @property
    def day(self) -> np.ndarray:
        return self.mapped.table.day - self.mapped.table.day[0]

    @property
    def fraud(self) -> np.ndarray:
        return self.mapped.table.fraud


def main() -> int:
    """Choose, fit, score, measure; writes the result file and prints it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="keep the student's run in this folder, or take the one there")
    parser.add_argument("--workers", type=int, default=2, help="baselines at a time, one thread each")
    options = parser.parse_args()
    if not SOURCE.exists():
        raise SystemExit(f"the shared data is not at {SOURCE}")
    torch.set_num_threads(1)  # on shared cores a second thread's barriers cost six times the work (docs/log.md)
    validation, test = _data(VALIDATION), _data(TEST)
    scores, chosen = {}, {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("fork")) as pool:
        pending = {name: pool.submit(_baseline, name, validation, test) for name in _systems()}
        for name, future in pending.items():
            chosen[name], scores[name] = future.result()
    with tempfile.TemporaryDirectory() as folder:
        ours, chosen[STUDENT] = _ours(test, options.work or Path(folder))
    rows = [row for case, kept in _cases(test).items() for row in _measure(test, scores | ours, case=case, kept=kept)]
    head = meta("fraud-schema", packages=("torch", "lightgbm", "xgboost", "scikit-learn"))
    result = {"meta": {**head, "command": COMMAND, "chosen": chosen}, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _baseline(name: str, validation: Data, test: Data) -> tuple[dict, np.ndarray]:
    """What was chosen, and the scores of the test days by a fit on all training days."""
    grid, fit = _systems()[name]
    best = _choose(validation, fit, grid)
    settings = {key: value for key, value in best.items() if key not in ("trees", "ap")}
    return best, fit(test, test.day < TEST[0], settings)(test.day >= TEST[1], best["trees"])


def _data(split: tuple[int, int, int]) -> Data:
    """The whole table; vocabularies from the split's training days alone."""
    mapping = read_mapping(MAPPING)
    mapped = read_mapped(SOURCE, mapping)
    table = mapped.table
    extras = fit_extras(mapping, mapped, rows=table.day - table.day[0] < split[0])
    assert extras is not None
    features = Replay().feed(events_of(table, delay_days=mapped.delay_days), tokens=False).features
    return Data(mapped=mapped, features=features, extras=extras, coded=extras.encode(mapped.extras))


def _systems() -> dict[str, tuple[list[dict], Callable[[Data, np.ndarray, dict], Scores]]]:
    """Name → (settings to choose from, fit on the rows of a mask)."""
    trees = [{"num_leaves": leaves, "min_child_samples": 100} for leaves in (7, 15, 31)]
    coded = [{**each, "codes": codes} for each in trees for codes in ("category", "number")]
    raw = [{**each, "keys": keys} for each in coded for keys in (False, True)]
    logistic = [{"C": c, "columns": columns} for c in (0.01, 0.1, 1.0) for columns in ("book", "all")]
    return {
        RAW: (raw, _lightgbm_raw),
        "XGBoost exact, both": ([{"max_depth": depth} for depth in (3, 5)], _xgboost),
        "LightGBM tuned, both": (coded, _lightgbm_both),
        OWN: (trees, _lightgbm_features),
        "logistic regression": (logistic, _logistic),
        BANK: ([{"C": c} for c in (0.01, 0.1, 1.0)], _rules_and_logistic),
        "amount of 900.00 or more": ([{}], _large_amount),
    }


def _choose(data: Data, fit: Callable[[Data, np.ndarray, dict], Scores], grid: list[dict]) -> dict:
    """The settings and the number of trees with the best average precision on the validation days."""
    measured = (data.day >= VALIDATION[1]) & (data.day < VALIDATION[2])
    found = []
    for settings in grid:
        scores = fit(data, data.day < VALIDATION[0], settings)
        counts = COUNTS if fit in (_lightgbm_raw, _lightgbm_features, _lightgbm_both, _xgboost) else (0,)
        for count in counts:
            ap = float(average_precision_score(data.fraud[measured], scores(measured, count)))
            found.append({**settings, "trees": count, "ap": ap})
    return max(found, key=lambda each: each["ap"])


def _large_amount(data: Data, rows: np.ndarray, settings: dict) -> Scores:
    return lambda which, _: (data.features[which, 0] >= 900).astype(np.float64)


def _logistic(data: Data, rows: np.ndarray, settings: dict) -> Scores:
    inputs = sp.csr_matrix(StandardScaler().fit(data.features[rows][:, BOOK]).transform(data.features[:, BOOK]))
    if settings["columns"] == "all":
        split = len(data.extras.numbers)
        numbers, codes = data.coded[:, :split], data.coded[:, split:]
        numbers = StandardScaler().fit(numbers[rows]).transform(numbers)
        codes = OneHotEncoder(handle_unknown="ignore").fit(codes[rows]).transform(codes)
        inputs = sp.hstack([inputs, numbers, codes]).tocsr()
    model = LogisticRegression(C=settings["C"], max_iter=2_000).fit(inputs[rows], data.fraud[rows])
    return lambda which, _: model.predict_proba(inputs[which])[:, 1]


def _rules_and_logistic(data: Data, rows: np.ndarray, settings: dict) -> Scores:
    """What a bank has today: four rules as flags beside the Handbook's 15 features.

    The amount's limit is the lowest, in steps of 10, above which 95% of the training rows are fraud.
    """
    amount, fraud = data.features[:, 0], data.fraud
    limits = np.arange(10.0, amount[rows].max(), 10.0)
    sure = [limit for limit in limits if fraud[rows][amount[rows] >= limit].mean() >= 0.95]
    column = {name: data.features[:, FEATURES.index(name)] for name in ("card_fraud_35d", "run", "card_count_1d")}
    flags = [
        amount >= (sure[0] if sure else np.inf),
        column["card_fraud_35d"] > 0,
        column["run"] >= 2,
        column["card_count_1d"] >= 3,
    ]
    inputs = np.column_stack([data.features[:, BOOK], *flags])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=settings["C"], max_iter=2_000))
    model.fit(inputs[rows], fraud[rows])
    return lambda which, _: model.predict_proba(inputs[which])[:, 1]


def _lightgbm_raw(data: Data, rows: np.ndarray, settings: dict) -> Scores:
    parts = [data.features[:, CONTEXT], data.coded]
    if settings["keys"]:
        table = data.mapped.table
        parts += [np.unique(key, return_inverse=True)[1][:, None] for key in (table.terminal, table.card)]
    return _lightgbm(data, np.hstack(parts), rows, settings, first_code=len(CONTEXT) + len(data.extras.numbers))


def _lightgbm_features(data: Data, rows: np.ndarray, settings: dict) -> Scores:
    return _lightgbm(data, data.features, rows, settings, first_code=len(FEATURES))


def _lightgbm_both(data: Data, rows: np.ndarray, settings: dict) -> Scores:
    inputs = np.hstack([data.features, data.coded])
    return _lightgbm(data, inputs, rows, settings, first_code=len(FEATURES) + len(data.extras.numbers))


def _lightgbm(data: Data, inputs: np.ndarray, rows: np.ndarray, settings: dict, *, first_code: int) -> Scores:
    model = lgb.LGBMClassifier(
        n_estimators=max(COUNTS), learning_rate=0.05, max_bin=4_095, random_state=0, n_jobs=1, deterministic=True,
        force_row_wise=True, verbose=-1, num_leaves=settings["num_leaves"],
        min_child_samples=settings["min_child_samples"],
    )  # fmt: skip
    codes = [*range(first_code, inputs.shape[1])] if settings.get("codes") == "category" else []
    model.fit(inputs[rows], data.fraud[rows], categorical_feature=codes)
    return lambda which, count: model.predict_proba(inputs[which], num_iteration=count)[:, 1]


def _xgboost(data: Data, rows: np.ndarray, settings: dict) -> Scores:
    inputs = np.hstack([data.features, data.coded])
    model = xgb.XGBClassifier(
        n_estimators=max(COUNTS), learning_rate=0.05, tree_method="exact", base_score=0.5, random_state=0, n_jobs=1,
        **settings,
    )  # fmt: skip
    model.fit(inputs[rows], data.fraud[rows])
    return lambda which, count: model.predict_proba(inputs[which], iteration_range=(0, count))[:, 1]


def _ours(data: Data, folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The recipe on the training days, then the test from the artifact alone; the teacher's trees beside it.

    Besides, the shipped student as it is, which saw simulated banks only.
    """
    if not (folder / "artifact").is_dir():
        _train(folder, end=datetime.fromtimestamp((int(data.mapped.table.day[0]) + TEST[0]) * DAY_S, UTC))
    scorer = FraudScorer(folder / "artifact")
    first = int(np.searchsorted(data.day, TEST[1]))
    assert scorer.extras is not None
    inputs = np.hstack([data.features, scorer.extras.encode(data.mapped.extras)])[first:]
    booster = lgb.Booster(model_file=str(folder / "checkpoints" / "trees.txt"))
    scores = {
        TEACHER: booster.predict(inputs, raw_score=True, num_threads=1),
        STUDENT: score_mapped(scorer, data.mapped, first=first),
        "Assay student INT8 as shipped": score_mapped(FraudScorer(SHIPPED), data.mapped, first=first),
    }
    return scores, {"artifact": scorer.digest}


def _train(folder: Path, *, end: datetime) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = pq.read_table(SOURCE)
    before = pc.less(source["datetime"], pa.scalar(end.replace(tzinfo=None), source["datetime"].type))
    pq.write_table(source.filter(before), folder / "train.parquet")
    spec = RunSpec(
        kind=ModelKind.FRAUD,
        recipe="fraud_dfad_schema",
        inputs={"transactions": "train.parquet", "mapping": str(MAPPING)},
    )
    with EventLog(folder) as log:
        run(spec, folder, log)


def _cases(data: Data) -> dict[str, np.ndarray]:
    """Test rows to measure: every one, and those of cards without a fraud known at the day's beginning."""
    table, day = data.mapped.table, data.day
    _, card = np.unique(table.card, return_inverse=True)
    first_fraud = np.full(card.max() + 1, 10**6)
    np.minimum.at(first_fraud, card[table.fraud], day[table.fraud])
    test = day >= TEST[1]
    return {
        "every row": np.ones(int(test.sum()), bool),
        "no card known as compromised": (first_fraud[card] + data.mapped.delay_days >= day)[test],
    }


def _measure(data: Data, scores: dict[str, np.ndarray], *, case: str, kept: np.ndarray) -> Iterable[dict]:
    """Rows of every system, a perfect ranking's, and the lift of student and teacher over others."""
    test = np.flatnonzero(data.day >= TEST[1])[kept]
    table = data.mapped.table
    chosen = {name: score[kept] for name, score in scores.items()}
    chosen["perfect ranking"] = table.fraud[test].astype(float)
    days = np.unique(table.day[test])
    drawn_days = np.random.default_rng(0).integers(0, len(days), (DRAWS, len(days)))
    drawn = np.stack([np.bincount(each, minlength=len(days)) for each in drawn_days])
    picks = np.vstack([np.ones((1, len(days)), np.int64), drawn])
    columns = {"day": table.day[test], "card": table.card[test], "fraud": table.fraud[test]}
    figures = {name: WeekRanking(**columns, score=score).figures(picks) for name, score in chosen.items()}
    pairs = ((STUDENT, BANK), (STUDENT, RAW), (STUDENT, OWN), (TEACHER, OWN), (STUDENT, TEACHER))
    figures |= {f"lift: {a} over {b}": figures[a] - figures[b] for a, b in pairs}
    for name, values in figures.items():
        for k, metric in enumerate(("auc", "ap", "cp100")):
            low, high = np.percentile(values[1:, k], [2.5, 97.5])
            yield {
                "case": case, "system": name, "metric": metric, "value": float(values[0, k]), "unit": "1",
                "low": float(low), "high": float(high), "n": len(test),
            }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
