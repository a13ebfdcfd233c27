"""Measures every system's scores of the Handbook's weeks and writes tests/bench/results/fraud-weeks.json.

Scores lie one file a test week, `PROTOCOL-FIRST_DAY-SYSTEM.npz` with the array `score`: those of the baselines come
from `fraud-baselines`, those of students and teachers trained on the weeks from `fraud-weeks train`. Only the ranks of
scores count here; what needs probabilities stands in the training's cells.jsonl.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from testkit.fraud_scores import (
    CASES,
    METRICS,
    RAW,
    TEST_FOLDS,
    VALIDATION_FOLDS,
    Figures,
    figures,
    test_rows,
)
from testkit.fraud_slices import slice_rows, story_read

from ml_core.data.handbook import Table, read_table
from ml_core.evals.bench import meta
from tests.bench.fraud_baselines import FAMILIES

RESULT = Path(__file__).parent / "results" / "fraud-weeks.json"
COMMAND = "python -m tests.bench.run fraud-weeks evaluate --scores FOLDER --scores FOLDER"
PAST = "mean of 4 test weeks, all of the past"
VALIDATION = {"week": "mean of 4 validation weeks", "past": "mean of 4 validation weeks, all of the past"}
SLICED = (
    ("none", "ceiling"), ("none", "shipped"), ("week", "student_tuned"), ("past", "student_tuned"), ("past", "student"),
    ("past", "lightgbm_rich"),
)  # fmt: skip
_NAME = re.compile(r"(week|past|none)-(\d{4}-\d\d-\d\d)-(\w+(?:\.\d+)?)\.npz")
Scores = Mapping[tuple[str, str], Mapping[str, npt.NDArray[Any]]]  # (protocol, system) → fold → one a row


def main(words: list[str] | None = None) -> int:
    """Measure, write the result file, print how many rows it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=Path, action="append", help="folder of score files (may be given again)")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(words)
    folders = options.scores or [Path("var/fraud-weeks/scores")]
    table = read_table(RAW)
    rows = evaluate(table, scores_read(folders))
    versions = meta("fraud-weeks", packages=("torch", "lightgbm", "xgboost", "scikit-learn"))
    options.out.write_text(json.dumps({"meta": {**versions, "command": COMMAND}, "rows": rows}, indent=1) + "\n")
    print(json.dumps({"out": str(options.out), "rows": len(rows)}))
    return 0


def scores_read(folders: list[Path]) -> dict[tuple[str, str], dict[str, npt.NDArray[Any]]]:
    """Every score file of the folders. Raises ValueError where two folders have the same one."""
    out: dict[tuple[str, str], dict[str, npt.NDArray[Any]]] = defaultdict(dict)
    for folder in folders:
        for path in sorted(folder.glob("*.npz")):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            protocol, first, system = match.groups()
            if first in out[protocol, system]:
                raise ValueError(f"{path} is there twice")
            with np.load(path) as stored:
                out[protocol, system][first] = stored["score"]
    return dict(out)


def evaluate(table: Table, scores: Scores) -> list[dict[str, Any]]:
    """All rows: figures of the three cases, shares of ceiling and teacher, validation weeks, slices."""
    tests = test_rows(table, (*TEST_FOLDS, *VALIDATION_FOLDS))
    rows: list[dict[str, Any]] = []
    for case, folds, protocols in _cases():
        rows += _case(table, tests, scores, case=case, folds=folds, protocols=protocols)
    for protocol, case in VALIDATION.items():
        for (of, system), by_fold in scores.items():
            if of == protocol and set(VALIDATION_FOLDS) <= set(by_fold):
                found = figures(table, tests=tests, scores=by_fold, folds=VALIDATION_FOLDS)
                rows += found.rows(case=case, system=_title(protocol, system))
    told = story_read(table)
    for protocol, system in (key for key in SLICED if _complete(scores.get(key, {}))):
        rows += slice_rows(
            table, told, tests=tests, scores=scores[protocol, system], folds=TEST_FOLDS, system=_of(protocol, system)
        )
    return rows


def _cases() -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Case, its folds, and the protocols of its systems; what was not trained on the file stands in every case."""
    weeks = [(case, folds, ("none", "week")) for case, folds in CASES.items()]
    return [*weeks, (PAST, TEST_FOLDS, ("none", "past"))]


def _case(
    table: Table,
    tests: Mapping[str, npt.NDArray[np.int64]],
    scores: Scores,
    *,
    case: str,
    folds: tuple[str, ...],
    protocols: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Figures of every complete system, each one's share of the ceiling's AP, and of its teacher's, and differences."""
    found: dict[str, Figures] = {}
    for (protocol, system), by_fold in scores.items():
        if protocol in protocols and set(folds) <= set(by_fold):
            found[system] = figures(table, tests=tests, scores=by_fold, folds=folds)
    rows = []
    for system, one in found.items():
        rows += one.rows(case=case, system=system)
        if "ceiling" in found:
            rows.append(_share(one, found["ceiling"], case=case, system=system, metric="ap_of_ceiling"))
        if system.startswith("student") and "teacher" in found:
            rows.append(_share(one, found["teacher"], case=case, system=system, metric="ap_of_teacher"))
        if system.startswith(("student", "shipped")):
            for other in ("lightgbm_rich", "lightgbm_book", "shipped", "ceiling"):
                if other in found and other != system:
                    difference = one.minus(found[other])
                    rows += [
                        {**row, "metric": f"{row['metric']}_minus_{other}"}
                        for row in difference.rows(case=case, system=system)
                    ]
    return rows


def _share(one: Figures, other: Figures, *, case: str, system: str, metric: str) -> dict[str, Any]:
    """AP as a share of another system's, with its interval."""
    k = METRICS.index("ap")
    low, high = np.percentile(one.draws[:, k] / other.draws[:, k], [2.5, 97.5])
    return {
        "case": case, "system": system, "metric": metric, "value": float(one.values[k] / other.values[k]), "unit": "1",
        "low": float(low), "high": float(high), "n": one.n,
    }  # fmt: skip


def _complete(by_fold: Mapping[str, Any]) -> bool:
    return set(TEST_FOLDS) <= set(by_fold)


def _of(protocol: str, system: str) -> str:
    """The name of a system in a case where both protocols stand."""
    return system if protocol == "none" else f"{system}, {protocol}"


def _title(protocol: str, system: str) -> str:
    """A candidate of a baseline with its settings: `lightgbm_rich: n_estimators=200, ...`."""
    family, point, number = system.partition(".")
    if not point:
        return system
    settings = FAMILIES[protocol, family][1][int(number)]
    return f"{family}: " + ", ".join(f"{key}={value}" for key, value in settings.items())
