"""Pure rules of training: the recipes on offer, progress, time left, and lines of a run's events."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ml_core.contracts import ModelKind

STALE_S = 60  # a heartbeat older than this means that nobody works any more
LAUNCH_S = 150  # how long writing the data may take before the child beats: the lane's limit and some
REQUEUE_S = 90  # a run that waits longer is sent again; the attempt number makes that harmless
READ_BYTES = 1_000_000  # of events.jsonl a pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One named run of ml_core that the form offers; `window` says whether it learns from the platform's own labels."""

    name: str
    kind: ModelKind
    title: str
    epochs: int
    window: bool
    params: tuple[str, ...]  # which of the form's fields its spec takes
    teachers: tuple[tuple[str, str], ...]
    students: tuple[tuple[str, str], ...]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="fraud_dfad_small",
            kind=ModelKind.FRAUD,
            title="Fraud: trees → transformer, INT8",
            epochs=2,
            window=True,
            params=("epochs", "teacher", "student"),
            teachers=(("lightgbm", "LightGBM"), ("lightgbm+transformer", "LightGBM and a larger transformer")),
            students=(("base", "as the champion"), ("small", "smaller, from random weights")),
        ),
        Recipe(
            name="report_dfad_small",
            kind=ModelKind.REPORT,
            title="Reports: simulated films → small drafter, INT8",
            epochs=2,
            window=False,
            params=("epochs", "teacher", "student"),
            teachers=(("cnn", "a CNN on the same films"), ("self", "the champion as it is")),
            students=(("small", "small"),),
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of events.jsonl."""

    kind: str
    at: float
    fields: dict[str, object] = field(default_factory=dict)


def lines_parse(body: bytes, *, now: datetime) -> tuple[list[Line], int]:
    """The whole lines of `body` and how many bytes they take; a line that is no event becomes a log line."""
    whole = body.rfind(b"\n") + 1
    return [_line(raw, now=now) for raw in body[:whole].splitlines() if raw.strip()], whole


def progress(*, step: int, steps: int, stage: int, stages: int) -> float:
    """The share that is done, 0 to 1: by optimiser steps while they run, else by stages."""
    if steps and step < steps:
        return step / steps
    if stages:
        return min(1.0, max(0, stage - (0 if steps else 1)) / stages)
    return 1.0 if steps else 0.0


def seconds_left(*, step: int, steps: int, elapsed: float) -> float | None:
    """Seconds until the last step at the pace so far, or None when there is no pace yet."""
    if not steps or step <= 0 or step >= steps or elapsed <= 0:
        return None
    return elapsed / step * (steps - step)


def thinned(count: int, *, most: int) -> list[int]:
    """At most `most` + 1 indices spread evenly over 0..count-1, first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def number(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def numbers(value: object) -> dict[str, float]:
    """The numbers of a mapping."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): found for key, item in value.items() if (found := number(item)) is not None}


def _line(raw: bytes, *, now: datetime) -> Line:
    try:
        fields = json.loads(raw)
        return Line(kind=str(fields.pop("kind")), at=float(fields.pop("at")), fields=fields)
    except (ValueError, KeyError, AttributeError, TypeError):
        text = raw.decode("utf-8", "replace")[:500]
        return Line(kind="log", at=now.timestamp(), fields={"text": f"unreadable event: {text}"})
