"""Reads of training: lists, counts, charts, log."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet

from apps.training import rules
from apps.training.models import OPEN_STATES, Note, Point, Run, RunState

CHART_POINTS = 400
LOG_LINES = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One chart: `steps` along x and named series of equal length (None: nothing said at this step)."""

    key: str
    title: str
    steps: tuple[int, ...]
    series: tuple[tuple[str, tuple[float | None, ...]], ...]
    latest: str

    @property
    def legend(self) -> list[tuple[str, str]]:
        """The series by name, each with its last value; nothing for one series alone, which the title names."""
        if len(self.series) < 2:
            return []
        return [(name, "–" if (last := _last(values)) is None else f"{last:.3g}") for name, values in self.series]

    @property
    def rows(self) -> list[tuple[int, list[float | None]]]:
        """The last values as rows of a table, the newest first."""
        last = range(len(self.steps) - 1, max(-1, len(self.steps) - 21), -1)
        return [(self.steps[i], [values[i] for _name, values in self.series]) for i in last]


def run_list(*, kind: str = "", state: str = "") -> QuerySet[Run]:
    """Runs, the newest first."""
    runs = Run.objects.order_by("-id")
    if kind:
        runs = runs.filter(kind=kind)
    return runs.filter(state=state) if state else runs


def state_counts() -> dict[str, int]:
    """How many runs are open, and how many there are."""
    return {"open": Run.objects.filter(state__in=OPEN_STATES).count(), "runs": Run.objects.count()}


def seconds_left(run: Run, *, now: datetime) -> float | None:
    """Time left of the optimiser's steps at the pace so far."""
    if run.state != RunState.RUNNING or run.first_step_at is None:
        return None
    elapsed = (now - run.first_step_at).total_seconds()
    return rules.seconds_left(step=run.step, steps=run.steps, elapsed=elapsed)


def charts(run: Run) -> list[Chart]:
    """Loss, alignment by level, validation average precision and learning rate of the current attempt."""
    rows = list(Point.objects.filter(run=run, attempt=run.attempt).order_by("step", "id"))
    kept = [rows[i] for i in rules.thinned(len(rows), most=CHART_POINTS)]
    steps = tuple(point.step for point in kept)

    def column(name: str) -> tuple[float | None, ...]:
        return tuple(getattr(point, name) for point in kept)

    levels = tuple((level, column(f"align_{level}")) for level in ("token", "layer", "global"))
    return [
        _chart("loss", "Loss", steps, (("loss", column("loss")),)),
        _chart("align", "Alignment", steps, levels),
        _validation(run),
        _chart("lr", "Learning rate", steps, (("learning rate", column("lr")),)),
    ]


def log_notes(run: Run) -> list[Note]:
    """The last lines of the current attempt's log, the oldest first."""
    notes = Note.objects.filter(run=run, attempt=run.attempt).order_by("-id")[:LOG_LINES]
    return list(reversed(notes))


def stages(run: Run) -> list[str]:
    """The stages entered so far, in order."""
    notes = Note.objects.filter(run=run, attempt=run.attempt, kind=Note.Kind.STAGE).order_by("id")
    return list(notes.values_list("text", flat=True))


def _validation(run: Run) -> Chart:
    """The score that tells how well it generalises: average precision, else micro F1; one series a split."""
    notes = list(Note.objects.filter(run=run, attempt=run.attempt, kind=Note.Kind.EVAL).order_by("id"))
    name = next(
        (key for note in notes for key in note.metrics if key.rpartition("_")[2] in {"ap", "f1"} or "f1" in key), ""
    )
    told = [note for note in notes if name in note.metrics]
    splits = list(dict.fromkeys(note.text for note in told))
    steps = tuple(sorted({note.step for note in told}))
    values = {(note.text, note.step): note.metrics[name] for note in told}
    series = tuple((split, tuple(values.get((split, step)) for step in steps)) for split in splits)
    title = "Validation F1" if "f1" in name else "Validation average precision"
    return _chart("validation", title, steps, series)


def _chart(
    key: str, title: str, steps: tuple[int, ...], series: tuple[tuple[str, tuple[float | None, ...]], ...]
) -> Chart:
    words = " · ".join(f"{last:.3g}" for _name, values in series if (last := _last(values)) is not None)
    return Chart(key=key, title=title, steps=steps, series=series, latest=words)


def _last(values: tuple[float | None, ...]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
