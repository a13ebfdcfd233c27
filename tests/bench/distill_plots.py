"""Draws docs/img/distill-*.png from tests/bench/results/distill.json: values, differences, mends, what is kept."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from testkit.distill_results import NEIGHBOURS, RESULT, ROOT, SIX, Case, Figure, cases_read

from ml_core.distill.tasks.systems import ABLATIONS, VARIANTS

OUT = ROOT / "docs" / "img"
_WIDTH = 9.0  # inches; at 160 dots an inch the picture is sharp where a page shows it 900 pixels wide
_MOST = 6  # cases in one picture of values: more are drawn student by student
# Okabe and Ito's colours, told apart by all common kinds of colour vision; shapes say the same once more
STYLES: dict[str, tuple[str, str]] = {
    "ce": ("#7f7f7f", "o"),
    "kd": ("#E69F00", "s"),
    "fitnets": ("#009E73", "^"),
    "minilm": ("#CC79A7", "v"),
    "dfad_as_published": ("#000000", "X"),
    "dfad": ("#0072B2", "D"),
}
# where a name may stand: to the right (1) or left (-1) of its point, so many dots up
_PLACES = tuple((side, up) for up in (0, 10, -10, 20, -20, 32, -32, 44, -44, 56, -56, 70, -70) for side in (1, -1))
_CASE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_CASE_SHAPES = ("o", "s", "^", "D", "v", "P")
GOAL_GAIN, GOAL_KEPT = 0.5, 98.8


def main() -> int:
    """Draw all that the result file allows, and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    for path in draw(cases_read(args.result), out=args.out):
        print(path)
    return 0


def draw(cases: Sequence[Case], *, out: Path) -> list[Path]:
    """Write the pictures into `out`; those that have nothing to show yet are left out. Returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_LOOK):
        for name, some in _groups(cases):
            written.append(_save(values(some), out / f"distill-{name}.png"))
        gains = [case for case in cases if case.difference("dfad", "kd") or case.difference("dfad", "fitnets")]
        if gains:
            written.append(_save(differences(gains), out / "distill-gain.png"))
        ablated = [case for case in cases if any(case.difference(name, "dfad") for name in (*ABLATIONS, *VARIANTS))]
        if ablated:
            written.append(_save(ablations(ablated), out / "distill-ablation.png"))
        if kept := [case for case in cases if case.retention("dfad")]:
            written.append(_save(retentions(kept), out / "distill-retention.png"))
    return written


def values(cases: Sequence[Case]) -> Drawing:
    """A panel a case: each system's mean with its 95% interval, the teacher's value as a line. Scales differ."""
    rows = -(-len(cases) // 2)
    figure, panels = plt.subplots(rows, 2, figsize=(_WIDTH, 0.5 + 2.15 * rows), squeeze=False)
    for axes, case in zip(panels.flat, cases, strict=False):
        _panel(axes, case)
    for axes in panels.flat[len(cases) :]:
        axes.set_visible(False)
    words = f"test split, × 100; mean of {_seeds(cases)} seeds with 95% interval; dashed: the teacher"
    figure.supxlabel(words, fontsize=10)
    return figure


def _panel(axes: Axes, case: Case) -> None:
    systems = [system for system in SIX if case.mean(system)]
    # what stands at chance would squeeze all others into a corner: it is an arrow at the edge
    inner = [case.mean(system) for system in systems if system != "dfad_as_published"]
    edges = _limits([*inner, case.teachers], share=0.08)
    axes.axvline(case.teachers.value * 100, color="#555555", lw=1.2, ls=(0, (4, 2)), zorder=1.5)
    for place, system in enumerate(systems):
        colour, shape = STYLES[system]
        _interval(axes, case.mean(system), place, colour=colour, shape=shape, edges=edges)
    axes.set_xlim(edges)
    axes.set_yticks(range(len(systems)), [system.replace("dfad_as", "dfad as").replace("_", " ") for system in systems])
    axes.set_ylim(len(systems) - 0.4, -0.6)
    axes.set_title(f"{_label(case)}: {case.metric}", fontsize=10, loc="right")


def differences(cases: Sequence[Case]) -> Drawing:
    """dfad − kd and dfad − fitnets side by side, all cases."""
    figure, both = plt.subplots(1, 2, figsize=(_WIDTH, 1.3 + 0.27 * len(cases)), sharey=True, sharex=True)
    for axes, other in zip(both, ("kd", "fitnets"), strict=True):
        _zero(axes)
        axes.axvline(GOAL_GAIN, color="#009E73", lw=1.0, ls=(0, (2, 2)), zorder=0)
        for place, case in enumerate(cases):
            if found := case.difference("dfad", other):
                sure = (found.low or 0.0) > 0.0 or (found.high or 0.0) < 0.0
                _interval(axes, found, place, colour="#0072B2", shape="D", filled=sure)
        axes.set_title(f"dfad − {other}", fontsize=11)
        axes.set_xlabel("points (95% interval, paired)")
    _case_axis(both[0], cases)
    entries = [
        _entry("#0072B2", "D", label="interval without 0"),
        _entry("#0072B2", "D", label="interval with 0", filled=False),
        plt.Line2D([], [], color="#009E73", lw=1.0, ls=(0, (2, 2)), label=f"goal: {GOAL_GAIN:+.1f}"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def ablations(cases: Sequence[Case]) -> Drawing:
    """Each mend left out, and each other choice, against dfad: one interval a case."""
    names = [n for n in (*ABLATIONS, *VARIANTS) if any(case.difference(n, "dfad") for case in cases)]
    mends = [name for name in names if name in ABLATIONS]
    per = 0.11 * len(cases) + 0.16
    figure, axes = plt.subplots(figsize=(_WIDTH, 1.8 + per * len(names)))
    found = [f for name in names for case in cases if (f := case.difference(name, "dfad"))]
    left, right = _middle(found)
    _zero(axes)
    for row, name in enumerate(names):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=-1)
        there = [(index, f) for index, case in enumerate(cases) if (f := case.difference(name, "dfad"))]
        for place, (index, difference) in enumerate(there):
            step = (place - (len(there) - 1) / 2) * 0.8 / max(len(cases), 2)
            _interval(axes, difference, row + step, **_case_style(index), edges=(left, right))
    if len(mends) < len(names):
        axes.axhline(len(mends) - 0.5, color="#555555", lw=0.8)
    axes.set_xlim(left, right)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [f"{name}\n{_says(name)}" for name in names], fontsize=8)
    axes.set_xlabel(
        "points against dfad, paired, 95% interval" + "; below the line: choices" * (len(mends) < len(names))
    )
    _legend(axes, [_entry(*_case_style(i).values(), label=_label(case)) for i, case in enumerate(cases)], columns=2)
    return figure


def retentions(cases: Sequence[Case]) -> Drawing:
    """What dfad's students keep of their teacher by their size: text as a mean over tasks; neighbours as published."""
    figure, axes = plt.subplots(figsize=(_WIDTH, 5.2))
    points = _kept(cases)
    low = min([value for *_, value in points] + [value for *_, value in NEIGHBOURS])
    axes.axhline(100, color="#999999", lw=0.8)
    axes.axhline(GOAL_KEPT, color="#009E73", lw=1.0, ls=(0, (2, 2)))
    goal = axes.text(0.42, GOAL_KEPT + 0.1, f"goal at 16 times fewer: {GOAL_KEPT}", fontsize=8, color="#00734f",
                     transform=axes.get_yaxis_transform(), va="bottom")  # fmt: skip
    published = [(name, size, value) for name, _, size, value in NEIGHBOURS]
    for _, size, value in published:
        axes.plot(size, value, marker="o", ms=6, mfc="white", mec="#777777", ls="")
    for _, size, value in points:
        axes.plot(size, value, marker="D", ms=6, color="#0072B2", ls="")
    axes.set_xscale("log")
    sizes = [size for _, size, _ in (*points, *published)]
    axes.set_xlim(min(sizes) / 2, max(sizes) * 5)
    axes.set_ylim(min(low - 1.5, 89), max(102, max(value for *_, value in points) + 0.5))
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if min(sizes) / 2 <= tick <= max(sizes) * 5]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("student's parameters, millions")
    axes.set_ylabel("of the teacher's value kept, %")
    ours = [(*point, "#00456b") for point in points]
    _names(axes, [*ours, *((*point, "#666666") for point in published)], around=goal)
    measured = plt.Line2D([], [], marker="D", color="#0072B2", ls="", label="dfad, measured here")
    others = plt.Line2D([], [], marker="o", mfc="white", mec="#777777", ls="", label="as published")
    _legend(axes, [measured, others])
    return figure


def _kept(cases: Sequence[Case]) -> list[tuple[str, float, float]]:
    """Name, millions of parameters and per cent kept: each case, those of text by student with their mean."""
    points = []
    for case in cases:
        if case.family != "text":
            points.append((_label(case), case.params[0] / 1e6, 100 * case.retention("dfad").value))
    for student in dict.fromkeys(case.student for case in cases if case.family == "text"):
        some = [case for case in cases if case.family == "text" and case.student == student and case.plain]
        kept = [100 * case.retention("dfad").value for case in some]
        tasks = f"{len(some)} task{'s' * (len(some) > 1)}"
        points.append((f"{student} (text, {tasks})", some[0].params[0] / 1e6, sum(kept) / len(kept)))
    return sorted(points, key=lambda point: point[1])


def _groups(cases: Sequence[Case]) -> list[tuple[str, list[Case]]]:
    """The pictures of values: one a family, and one a student where a family has many cases."""
    groups = []
    for family in dict.fromkeys(case.family for case in cases):
        some = [case for case in cases if case.family == family]
        if len(some) <= _MOST:
            groups.append((family, some))
            continue
        for student in dict.fromkeys(case.student for case in some):
            groups.append((f"{family}-{student}", [case for case in some if case.student == student]))
    return groups


def _interval(
    axes: Axes,
    figure: Figure,
    y: float,
    *,
    colour: str,
    shape: str,
    filled: bool = True,
    edges: tuple[float, float] | None = None,
) -> None:
    """A dot and its interval, × 100; outside `edges` an arrow at the edge with the value beside it."""
    x = figure.value * 100
    if edges and not edges[0] <= x <= edges[1]:
        at, side = (edges[0], 1) if x < edges[0] else (edges[1], -1)
        inset = side * 0.02 * (edges[1] - edges[0])
        axes.plot(at + inset, y, marker="<" if side > 0 else ">", ms=5, color=colour, ls="")
        axes.annotate(f"{x:.1f}".replace("-", "−"), (at + 2.2 * inset, y), fontsize=7, color=colour, va="center",
                      ha="left" if side > 0 else "right")  # fmt: skip
        return
    if figure.low is not None and figure.high is not None:
        axes.plot([figure.low * 100, figure.high * 100], [y, y], color=colour, lw=1.5, solid_capstyle="butt")
    axes.plot(x, y, marker=shape, ms=5.5, color=colour, mfc=colour if filled else "white", ls="")


def _case_axis(axes: Axes, cases: Sequence[Case]) -> None:
    axes.set_yticks(range(len(cases)), [_label(case) for case in cases], fontsize=9)
    axes.set_ylim(len(cases) - 0.45, -0.55)
    for place in range(1, len(cases)):
        between = cases[place].family != cases[place - 1].family
        axes.axhline(place - 0.5, color="#888888" if between else "#e4e4e4", lw=0.8, zorder=0)


def _limits(figures: Sequence[Figure], *, share: float) -> tuple[float, float]:
    ends = [100 * end for f in figures for end in (f.value, f.low, f.high) if end is not None]
    margin = share * (max(ends) - min(ends)) + 0.1
    return min(ends) - margin, max(ends) + margin


def _middle(figures: Sequence[Figure]) -> tuple[float, float]:
    """Limits around all intervals but those whose value lies far outside the middle half: these become arrows."""
    values = sorted(f.value for f in figures)
    first, third = values[len(values) // 4], values[-1 - len(values) // 4]
    away = 4 * (third - first) + 0.01
    return _limits([f for f in figures if first - away <= f.value <= third + away], share=0.03)


def _label(case: Case) -> str:
    return f"{case.teacher} → {case.student}, {case.task}"


def _case_style(index: int) -> dict[str, Any]:
    return {"colour": _CASE_COLOURS[index % len(_CASE_COLOURS)], "shape": _CASE_SHAPES[index % len(_CASE_SHAPES)]}


def _says(name: str) -> str:
    return {**ABLATIONS, **VARIANTS}[name].says


def _seeds(cases: Sequence[Case]) -> str:
    counts = sorted({f.seeds for case in cases for s in case.systems if (f := case.mean(s))})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _zero(axes: Axes) -> None:
    axes.axvline(0, color="#333333", lw=1.0, zorder=0)


def _names(axes: Axes, labels: Sequence[tuple[str, float, float, str]], *, around: Text) -> None:
    """Write each name beside its point, at the first place where it covers no other text and no point."""
    axes.figure.canvas.draw()
    renderer = axes.figure.canvas.get_renderer()
    points = [axes.transData.transform((x, y)) for _, x, y, _ in labels]
    boxes, inside = [around.get_window_extent()], axes.get_window_extent()
    for name, x, y, colour in labels:
        for side, up in _PLACES:
            line = (
                {"arrowstyle": "-", "lw": 0.6, "color": colour, "shrinkB": 3, "relpos": (side < 0, 0.5)} if up else None
            )
            text = axes.annotate(name, (x, y), (8 * side, up), textcoords="offset points", fontsize=8, color=colour,
                                 ha="left" if side > 0 else "right", va="center", arrowprops=line)  # fmt: skip
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without its line
            free = not any(box.padded(1).overlaps(other) for other in boxes)
            free = free and not any(box.padded(5).contains(*point) for point in points)
            if free and inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1:
                break
            if (side, up) != _PLACES[-1]:
                text.remove()
        boxes.append(box)


def _entry(colour: str, shape: str, *, label: str, filled: bool = True) -> plt.Line2D:
    return plt.Line2D(
        [], [], color=colour, marker=shape, ms=5.5, lw=1.5, mfc=colour if filled else "white", label=label
    )


def _legend(axes: Axes, entries: list[plt.Line2D], *, columns: int = 4) -> None:
    axes.figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _save(figure: Drawing, path: Path) -> Path:
    figure.savefig(path, dpi=160, metadata={"Software": ""})
    plt.close(figure)
    return path


_LOOK = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#e9e9e9",
    "font.size": 10,
    "ytick.major.size": 0,
}
