"""Writes the tables of docs/fraud-quality.md from tests/bench/results/fraud-weeks.json: no figure is set by hand.

A table stands between `<!-- table: KIND -->` and `<!-- end -->`; KIND is one of _KINDS.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "fraud-quality.md"
RESULT = Path(__file__).parent / "results" / "fraud-weeks.json"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {
    "ceiling": "*ceiling: knows the rules*",
    "shipped": "**shipped student, INT8** (simulated banks only)",
    "student": "**student on own labels, INT8**",
    "student_tuned": "student, INT8, from the shipped weights",
    "student_unlabelled": "student, INT8, also taught on unlabelled days",
    "student_raw": "student, INT8, no windows: the transaction and the raw histories",
    "student_raw_unlabelled": "the same, also taught on unlabelled days",
    "student_float": "student before INT8",
    "teacher": "teacher: trees and transformer",
    "trees": "teacher's trees alone",
    "transformer": "teacher's transformer alone",
    "lightgbm_rich": "LightGBM on our 83 features",
    "xgboost_rich": "XGBoost on our 83 features",
    "lightgbm_book": "LightGBM on the book's 15",
    "xgboost_book": "XGBoost on the book's 15",
    "logistic_book": "logistic regression on the book's 15",
    "shipped_30d": "shipped student, 30 days of history",
    "shipped_14d": "shipped student, 14 days of history",
    "shipped_7d": "shipped student, 7 days of history",
}
COLD = ("shipped", "shipped_30d", "shipped_14d", "shipped_7d")
STANDARD, MEAN, PAST = "standard week", "mean of 4 test weeks", "mean of 4 test weeks, all of the past"
SLICED = {
    "ceiling": "ceiling", "shipped": "shipped", "student_tuned, week": "from shipped, week",
    "student_tuned, past": "from shipped, past", "student, past": "own, past",
    "lightgbm_rich, past": "LightGBM rich, past",
}  # fmt: skip
Cell = Mapping[str, Any]


class Results:
    """The rows of a result file by case, system and metric, in the file's order."""

    def __init__(self, rows: Sequence[Cell]) -> None:
        self._cells = {(row["case"], row["system"], row["metric"]): row for row in rows}

    def get(self, case: str, system: str, metric: str) -> Cell | None:
        """One row, or None."""
        return self._cells.get((case, system, metric))

    def cases(self, beginning: str, metric: str) -> list[str]:
        """The cases that begin so and have the metric."""
        return list(dict.fromkeys(c for c, _, m in self._cells if c.startswith(beginning) and m == metric))

    def systems(self, case: str) -> list[str]:
        """The systems of a case."""
        return list(dict.fromkeys(s for c, s, _ in self._cells if c == case))


def main() -> int:
    """Rewrite the page's tables in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    results = Results(json.loads(options.result.read_text())["rows"])
    options.page.write_text(filled(options.page.read_text(), results=results))
    return 0


def filled(page: str, *, results: Results) -> str:
    """The page with every marked table made anew. Raises KeyError for a kind of table that does not exist."""

    def block(match: re.Match[str]) -> str:
        begin, kind, end = match.groups()
        return f"{begin}{_KINDS[kind](results)}\n{end}"

    return _BLOCK.sub(block, page)


def _figures(case: str) -> Callable[[Results], str]:
    def table(results: Results) -> str:
        present = results.systems(case)
        names = [name for name in NAMES if name in present and (name == "shipped" or name not in COLD)]
        head = ["system", "AUC", "AP", "CP@100", "AP, share of ceiling"]
        rows = []
        for name in names:
            figures = [_interval(results.get(case, name, metric)) for metric in ("auc", "ap", "cp100")]
            rows.append([NAMES[name], *figures, _percent(results.get(case, name, "ap_of_ceiling"))])
        return _table(head, rows)

    return table


def _differences(results: Results) -> str:
    """AP of the students minus the best trees and minus the shipped student, on the same draws of days."""
    head = [
        "student",
        "labels",
        "minus LightGBM on the book's 15",
        "minus LightGBM on our 83",
        "minus shipped",
        "of its teacher",
    ]
    rows = []
    for case, labels in ((MEAN, "one week"), (PAST, "all of the past")):
        for name in (name for name in NAMES if name.startswith(("student", "shipped")) and name not in COLD[1:]):
            if results.get(case, name, "ap") is None:
                continue
            others = ("lightgbm_book", "lightgbm_rich", "shipped")
            found = [results.get(case, name, f"ap_minus_{other}") for other in others]
            of_teacher = _percent(results.get(case, name, "ap_of_teacher"))
            rows.append(
                [
                    NAMES[name],
                    f"none (trees: {labels})" if name == "shipped" else labels,
                    *map(_difference, found),
                    of_teacher,
                ]
            )
    return _table(head, rows)


def _cold(results: Results) -> str:
    rows = [
        [NAMES[name], *(_interval(results.get(MEAN, name, metric)) for metric in ("auc", "ap", "cp100"))]
        for name in COLD
        if results.get(MEAN, name, "ap") is not None
    ]
    return _table(["system", "AUC", "AP", "CP@100"], rows)


def _sliced(metric: str) -> Callable[[Results], str]:
    def table(results: Results) -> str:
        cases = results.cases("slice: ", metric)
        systems = [name for name in SLICED if any(results.get(case, name, metric) for case in cases)]
        counted = metric != "false alarms"  # of those every system has its own
        rows = []
        for case in cases:
            found = [results.get(case, name, metric) for name in systems]
            n = next(str(cell["n"]) for cell in found if cell is not None)
            rows.append([case.removeprefix("slice: "), *([n] if counted else []), *map(_short, found)])
        return _table(["slice", *(["frauds"] if counted else []), *(SLICED[name] for name in systems)], rows)

    return table


def _validation(results: Results) -> str:
    """Mean AP of the validation weeks of every setting tried and every system trained."""
    rows = []
    for case, labels in (
        ("mean of 4 validation weeks", "week"),
        ("mean of 4 validation weeks, all of the past", "past"),
    ):
        for name in results.systems(case):
            figures = [results.get(case, name, metric) for metric in ("auc", "ap", "cp100")]
            rows.append([name, labels, *map(_short, figures)])
    return _table(["system", "labels", "AUC", "AP", "CP@100"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not run yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval(cell: Cell | None) -> str:
    return "–" if cell is None else f"{_plain(cell['value'])} ({_plain(cell['low'])}–{_plain(cell['high'])})"


def _short(cell: Cell | None) -> str:
    return "–" if cell is None else _plain(cell["value"])


def _plain(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if value < 1 else f"{value:.3g}"


def _percent(cell: Cell | None) -> str:
    return "–" if cell is None else f"{100 * cell['value']:.1f}% ({100 * cell['low']:.1f}–{100 * cell['high']:.1f})"


def _difference(cell: Cell | None) -> str:
    """In points of 0.001; bold where the interval leaves 0 out."""
    if cell is None:
        return "–"
    value, low, high = (f"{1000 * cell[key]:+.0f}".replace("-", "−") for key in ("value", "low", "high"))
    text = f"{value} ({low} to {high})"
    return f"**{text}**" if cell["low"] > 0 or cell["high"] < 0 else text


_KINDS = {
    "standard": _figures(STANDARD),
    "mean": _figures(MEAN),
    "past": _figures(PAST),
    "differences": _differences,
    "cold": _cold,
    "recall": _sliced("recall"),
    "alarms": _sliced("false alarms"),
    "ap": _sliced("ap"),
    "validation": _validation,
}


if __name__ == "__main__":
    raise SystemExit(main())
