"""Writes the tables of docs/distillation.md from tests/bench/results/distill.json, so that no figure is set by hand.

A table stands between `<!-- table: KIND FAMILY -->` and `<!-- end -->`; KIND is values, mends, sizes or neighbours.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from testkit.distill_results import NEIGHBOURS, RESULT, ROOT, SIX, Case, Figure, cases_read

from ml_core.distill.tasks.systems import ABLATIONS, VARIANTS

PAGE = ROOT / "docs" / "distillation.md"
_BLOCK = re.compile(r"(<!-- table: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Rewrite the page's tables in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    args.page.write_text(filled(args.page.read_text(), cases=cases_read(args.result)))
    return 0


def filled(page: str, *, cases: Sequence[Case]) -> str:
    """The page with every marked table made anew. Raises KeyError for a kind of table that does not exist."""

    def block(match: re.Match[str]) -> str:
        begin, kind, family, end = match.groups()
        some = [case for case in cases if case.family == family]
        return f"{begin}{_KINDS[kind](some) if some else 'Not run yet.'}\n{end}"

    return _BLOCK.sub(block, page)


def values(cases: Sequence[Case]) -> str:
    """Teacher and systems × 100 with 95% intervals, and what dfad gains over kd and fitnets."""
    systems = [system for system in SIX if any(case.mean(system) for case in cases)]
    head = ["case", "metric", "teacher", *(f"`{system}`" for system in systems), "dfad − kd", "dfad − fitnets"]
    rows = []
    for case in cases:
        means = [_value(case.mean(system)) for system in systems]
        gains = [_difference(case.difference("dfad", other)) for other in ("kd", "fitnets")]
        name = f"{case.name} (tuned here)" if case.tuned_here else case.name
        rows.append([name, case.metric, _value(case.teachers), *means, *gains])
    return _table(head, rows)


def mends(cases: Sequence[Case]) -> str:
    """Each mend left out, and each other choice, minus dfad, by case."""
    names = [name for name in (*ABLATIONS, *VARIANTS) if any(case.difference(name, "dfad") for case in cases)]
    shown = [case for case in cases if any(case.difference(name, "dfad") for name in names)]
    if not shown:
        return "Not run yet."
    says = {**ABLATIONS, **VARIANTS}
    rows = [
        [f"`{name}`", says[name].says, *(_difference(case.difference(name, "dfad")) for case in shown)]
        for name in names
    ]
    return _table(["system", "what it is", *(case.name for case in shown)], rows)


def sizes(cases: Sequence[Case]) -> str:
    """The student's start, how many times smaller it is, and what kd and dfad keep of the teacher's value."""
    rows = []
    for case in cases:
        student, teacher = case.params
        kept = [_value(case.retention(system)) for system in ("kd", "dfad")]
        rows.append([case.name, case.start, _count(teacher), _count(student), f"{teacher / student:.1f}", *kept])
    head = ["case", "student's start", "teacher", "student", "times smaller", "kd keeps, %", "dfad keeps, %"]
    return _table(head, rows)


def neighbours(cases: Sequence[Case]) -> str:
    """What each student keeps as a mean over its tasks, beside what others published for theirs."""
    rows = []
    for student in dict.fromkeys(case.student for case in cases):
        some = [case for case in cases if case.student == student and case.plain]
        size, teacher = some[0].params
        both = [[case.retention(system) for case in some] for system in ("kd", "dfad")]
        kept = [_number(sum(each.value for each in figures if each) / len(some)) for figures in both]
        tasks = ", ".join(case.task for case in some)
        rows.append([f"**{student}**, here", f"MPNet-base, {_count(teacher)}", _count(size), *kept, tasks])
    for name, teacher, size, kept in NEIGHBOURS:
        rows.append([name, teacher, f"{size:g} M", "–", f"{kept:g}", "GLUE, as published"])
    return _table(["student", "teacher", "parameters", "kd keeps, %", "keeps, %", "on"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    if figure.low is None or figure.high is None:
        return _number(figure.value)
    return f"{_number(figure.value)} ({_number(figure.low)}–{_number(figure.high)})"


def _difference(figure: Figure | None) -> str:
    """Points with their interval; bold where that leaves 0 out."""
    if figure is None or figure.low is None or figure.high is None:
        return "–"
    text = f"{_number(figure.value)} ({_number(figure.low)} to {_number(figure.high)})"
    return f"**{text}**" if figure.low > 0.0 or figure.high < 0.0 else text


def _number(share: float) -> str:
    text = f"{share * 100:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k"


_KINDS: dict[str, Callable[[Sequence[Case]], str]] = {
    "values": values, "mends": mends, "sizes": sizes, "neighbours": neighbours,
}  # fmt: skip
