"""What tables and charts show, worked out to coordinates so that the page needs no script: pure functions on rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from apps.core.rules import money_words
from apps.fraud.models import Transaction
from apps.fraud.selectors.alerts import TerminalDay

WIDTH, HEIGHT = 760, 168
LEAST_POINTS = 0.05  # less is shown as 0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 750, 14, 138


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonBar:
    """One reason with its bar: x and width in percent of the cell, zero in the middle."""

    text: str
    points: float
    x: float
    width: float
    positive: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One transaction in the chart of a card."""

    x: float
    y: float
    title: str
    kind: str  # usual, alerted, this
    fraud: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The chart of a card: amounts over time."""

    points: tuple[Point, ...]
    ticks: tuple[tuple[float, str], ...]  # y, words
    median_y: float | None
    median_words: str
    first: datetime | None
    last: datetime | None
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DayBar:
    """One day of a terminal: the part known as fraud stands on top of the rest."""

    x: float
    y: float
    height: float
    fraud_y: float
    fraud_height: float
    title: str


def reason_bars(reasons: Sequence[dict[str, Any]], *, shown: int = 7) -> tuple[tuple[ReasonBar, ...], float]:
    """The strongest reasons with their bars, and the points of all the others together.

    Reasons of less than LEAST_POINTS are among the others, unless there is nothing else.
    """
    ordered = sorted(reasons, key=lambda reason: -abs(reason["points"]))
    counted = sum(1 for reason in ordered if abs(reason["points"]) >= LEAST_POINTS) or len(ordered)
    first, rest = ordered[: min(shown, counted)], ordered[min(shown, counted) :]
    largest = max((abs(reason["points"]) for reason in first), default=1.0) or 1.0
    bars = []
    for reason in sorted(first, key=lambda each: -each["points"]):
        width = round(46 * abs(reason["points"]) / largest, 2)
        positive = reason["points"] >= 0
        bars.append(
            ReasonBar(
                text=reason["text"],
                points=reason["points"],
                x=50 if positive else round(50 - width, 2),
                width=width,
                positive=positive,
            )
        )
    return tuple(bars), sum(reason["points"] for reason in rest)


def timeline(rows: Sequence[Transaction], *, this: Transaction) -> Timeline:
    """A card's transactions as points; `rows` the latest first, `this` is the alert's own."""
    points_of = sorted({row.pk: row for row in [*rows, this]}.values(), key=lambda row: (row.at, row.pk))
    first, last = points_of[0].at, points_of[-1].at
    span = max((last - first).total_seconds(), 1.0)
    top = _ceiling(max(row.amount_cents for row in points_of))

    def y_of(cents: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * min(cents, top) / top, 1)

    points = tuple(
        Point(
            x=round(_LEFT + (_RIGHT - _LEFT) * (row.at - first).total_seconds() / span, 1),
            y=y_of(row.amount_cents),
            title=f"{row.at:%d %b %Y %H:%M}, {money_words(row.amount_cents, currency=row.currency)}",
            kind="this" if row.pk == this.pk else "alerted" if _alerted(row) else "usual",
            fraud=row.truth is True,
        )
        for row in points_of
    )
    others = [row.amount_cents for row in points_of if row.pk != this.pk]
    middle = median(others) if others else None
    return Timeline(
        points=points,
        ticks=tuple((y_of(part * top / 2), f"{part * top / 200:,.0f}") for part in (0, 1, 2)),
        median_y=None if middle is None else y_of(middle),
        median_words="" if middle is None else money_words(round(middle), currency=this.currency),
        first=first,
        last=last,
        words=_words(points_of, this=this, middle=middle),
    )


def day_bars(days: Sequence[TerminalDay], *, width: float = 620, height: float = 64) -> tuple[DayBar, ...]:
    """A terminal's days as bars from left to right."""
    largest = max((day.transactions for day in days), default=0) or 1
    step = width / max(len(days), 1)
    bars = []
    for place, day in enumerate(days):
        whole = round(height * day.transactions / largest, 1)
        part = round(height * day.frauds / largest, 1)
        bars.append(
            DayBar(
                x=round(place * step + 1, 1),
                y=round(height - whole, 1),
                height=round(whole - part, 1) if part else whole,
                fraud_y=round(height - part, 1),
                fraud_height=part,
                title=f"{day.day:%d %b}: {day.transactions} transactions, {day.frauds} known as fraud",
            )
        )
    return tuple(bars)


def _alerted(row: Transaction) -> bool:
    return hasattr(row, "alert")


def _ceiling(cents: int) -> int:
    """The next round amount above, so that the axis has readable ticks."""
    step = 200
    while True:
        for factor in (1, 2, 5):
            if cents <= step * factor:
                return step * factor
        step *= 10


def _words(rows: Sequence[Transaction], *, this: Transaction, middle: float | None) -> str:
    frauds = sum(1 for row in rows if row.truth is True)
    usual = (
        "" if middle is None else f", the median of the others is {money_words(round(middle), currency=this.currency)}"
    )
    own = money_words(this.amount_cents, currency=this.currency)
    return f"{len(rows)} transactions of the card; this one is {own}{usual}; {frauds} known as fraud"
