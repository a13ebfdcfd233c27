"""Writes the tables of docs/performance.md and draws docs/img/kernels-*.png from tests/bench/results/{dpe,...}.json.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, NAME a result file. What has not run says so.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from testkit.shared import ROOT

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "tests" / "bench" / "results"
PICTURES = ROOT / "docs" / "img"
NAMES = ("dpe", "segments", "superops", "graphs", "decode", "report", "long-documents")
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LESS = ("ms", "s", "joules_per_report", "peak", "ratio", "launches", "capture", "pool")  # less of it is better
_SHOWN = ("ms", "s", "tok_s", "joules_per_report", "accuracy", "macro_average_precision", "ratio", "latency_saved_pct")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """engine.md's goal and stretch for a case's figure; on an H200."""

    goal: float
    stretch: float | None = None


GOALS: Mapping[tuple[str, str], Goal] = {
    ("dpe/n8192/fwd", "ms"): Goal(goal=0.58, stretch=0.50),
    ("dpe/n8192/fwdbwd", "ms"): Goal(goal=2.5, stretch=2.1),
    ("dpe/n32768/fwd", "ms"): Goal(goal=8.6, stretch=7.5),
    ("dpe/n32768/fwdbwd", "ms"): Goal(goal=38.0, stretch=31.0),
    ("segments/n32768/fwd", "ms"): Goal(goal=1.0, stretch=0.7),
    ("segments/memory_32k_over_4k", "ratio"): Goal(goal=1.19),
    ("segments/needle_32k", "accuracy"): Goal(goal=0.95),
    ("encoder4x768/b1n128", "ms"): Goal(goal=0.20, stretch=0.12),
    ("encoder4x768/b1n512", "ms"): Goal(goal=0.22, stretch=0.15),
    ("encoder4x768/b32n128", "ms"): Goal(goal=0.60, stretch=0.48),
    ("graphs/b1n128", "latency_saved_pct"): Goal(goal=38.0),
    ("decode7b/b1/bf16", "tok_s"): Goal(goal=270.0),
    ("decode7b/b1/int8", "tok_s"): Goal(goal=400.0),
    ("report/16x128", "s"): Goal(goal=0.06, stretch=0.04),
    ("report/16x128", "joules_per_report"): Goal(goal=1.5),
}


def main() -> int:
    """Rewrite the page's tables in place, draw what can be drawn, print what was drawn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    args = parser.parse_args()
    args.page.write_text(filled(args.page.read_text(), results=args.results))
    for path in draw(args.results, out=args.pictures):
        print(path)
    return 0


def filled(page: str, *, results: Path) -> str:
    """The page with every marked table made anew. Raises KeyError for a name that no benchmark has."""

    def block(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in NAMES:
            raise KeyError(name)
        path = results / f"{name}.json"
        return f"{begin}{table(json.loads(path.read_text())) if path.exists() else 'Not run yet.'}\n{end}"

    return _BLOCK.sub(block, page)


def table(result: Mapping[str, Any]) -> str:
    """Where it ran, and each case's systems by their median, the best first, with the 5th and 95th percentile."""
    lines = [
        _where(result["meta"]),
        "",
        "| case | metric | system | median | 5% to 95% | goal | stretch |",
        "|" + "---|" * 7,
    ]
    for (case, metric), rows in _groups(result["rows"]).items():
        goal = GOALS.get((case, metric))
        for at, each in enumerate(rows):
            own = each["system"] == "assay" and goal is not None
            marks = [_against(each, goal.goal), _against(each, goal.stretch)] if own and goal is not None else ["", ""]
            name = [case, _unit(metric, each["unit"])] if at == 0 else ["", ""]
            span = f"{_number(each['low'])} to {_number(each['high'])}" if each["n"] > 1 else ""
            lines.append("| " + " | ".join([*name, f"`{each['system']}`", _number(each["value"]), span, *marks]) + " |")
    return "\n".join(lines)


def draw(results: Path, *, out: Path) -> list[Path]:
    """One picture a result file: of each case a bar a system, ours blue, and the goal as a line."""
    written = []
    for name in NAMES:
        path = results / f"{name}.json"
        if not path.exists():
            continue
        groups = _groups(json.loads(path.read_text())["rows"])
        out.mkdir(parents=True, exist_ok=True)
        written.append(_picture(groups, path=out / f"kernels-{name}.png"))
    return written


def _picture(groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], *, path: Path) -> Path:
    figure, axes = plt.subplots(len(groups), 1, figsize=(9.0, 0.9 + 1.15 * len(groups)), squeeze=False)
    for axis, ((case, metric), rows) in zip(axes[:, 0], groups.items(), strict=True):
        goal = GOALS.get((case, metric))
        for at, each in enumerate(reversed(rows)):
            colour = "#0072B2" if each["system"].startswith("assay") else "#7f7f7f"
            axis.barh(at, each["value"], color=colour, height=0.7)
            axis.text(each["value"], at, f" {_number(each['value'])}", va="center", fontsize=7)
        axis.set_yticks(range(len(rows)), [each["system"] for each in reversed(rows)], fontsize=7)
        axis.set_title(f"{case}, {_unit(metric, rows[0]['unit'])}", fontsize=8, loc="left")
        if goal is not None:
            axis.axvline(goal.goal, color="#D55E00", linewidth=1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", labelsize=7)
        axis.margins(x=0.12)
    figure.set_figheight(0.6 + sum(0.55 + 0.19 * len(rows) for rows in groups.values()))
    figure.tight_layout()
    figure.savefig(path, dpi=160, metadata={"Software": None})
    plt.close(figure)
    return path


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows by case and metric, in the order in which they came, the best system first."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in rows:
        if each["metric"] in _SHOWN:
            found.setdefault((each["case"], each["metric"]), []).append(each)
    return {
        key: sorted(some, key=lambda each: each["value"] * (1 if key[1] in _LESS else -1))
        for key, some in found.items()
    }


def _where(about: Mapping[str, Any]) -> str:
    gpu = about.get("gpu")
    where = gpu["name"] if gpu else about["machine"]["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version != "absent")
    return f"{where}, {about['date'][:10]}, {versions}; `{about['command']}`."


def _against(each: Mapping[str, Any], goal: float | None) -> str:
    if goal is None:
        return ""
    met = each["value"] <= goal if each["metric"] in _LESS else each["value"] >= goal
    return f"{_number(goal)} {'met' if met else 'missed'}"


def _unit(metric: str, unit: str) -> str:
    return metric if unit in (metric, "1", "share") else f"{metric}, {unit}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    raise SystemExit(main())
