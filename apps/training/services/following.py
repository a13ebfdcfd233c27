"""Reading what running children write into their runs, and noticing those that are lost."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from django.db import transaction

from apps.accounts.api import system_actor
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError
from apps.registry import api as registry
from apps.training import jobs, rules
from apps.training.models import Note, Point, Run, RunState
from apps.training.rules import Line
from apps.training.services import children
from apps.training.services.runs import run_lock
from ml_core.contracts import RunEventKind

_log = logging.getLogger(__name__)
_EVENTS = "events.jsonl"
_TAIL_BYTES = 2_000


def runs_follow(*, at: datetime) -> None:
    """One pass over every open run: read its new events, see whether it lives, send waiting ones again."""
    for run in Run.objects.filter(state=RunState.RUNNING).order_by("id"):
        run_follow(run_id=run.pk, at=at)
    waiting = Run.objects.filter(state=RunState.QUEUED, queued_at__lt=at - timedelta(seconds=rules.REQUEUE_S))
    for run_id in waiting.values_list("pk", flat=True):
        _send_again(run_id, at=at)


def run_follow(*, run_id: int, at: datetime) -> None:
    """Read one run's new events into it. Two at once are harmless: the offset moves in the same transaction."""
    run = Run.objects.get(pk=run_id)
    gone = children.child_gone(run)  # before reading: what a child wrote before it ended is then read for certain
    lines, read = _read(run, now=at)
    done = next((line for line in lines if line.kind == RunEventKind.DONE), None)
    produced, problem = _register(run, done, at=at) if done else ("", "")
    with transaction.atomic():
        now = run_lock(run_id)
        if (now.state, now.attempt, now.event_offset) != (RunState.RUNNING, run.attempt, run.event_offset):
            return
        for line in lines:
            _apply(now, line)
        _points_write(now, lines)
        now.event_offset += read
        if done:
            _finish(now, done, digest=produced, problem=problem, at=at)
        elif now.state == RunState.RUNNING:
            _check_alive(now, gone=gone and not read, at=at)
        now.full_clean(validate_constraints=False)
        now.save()
        if now.state != RunState.RUNNING:
            _audit(now, at=at)


def _read(run: Run, *, now: datetime) -> tuple[list[Line], int]:
    path = Path(run.folder) / _EVENTS
    if not path.exists():
        return [], 0
    with path.open("rb") as stream:
        stream.seek(run.event_offset)
        return rules.lines_parse(stream.read(rules.READ_BYTES), now=now)


def _register(run: Run, done: Line, *, at: datetime) -> tuple[str, str]:
    """Take the artifact in as a candidate; returns its digest, or why it was refused."""
    folder = Path(run.folder) / str(done.fields.get("artifact", "artifact"))
    try:
        ref = registry.model_register(folder=str(folder), by=system_actor(name=f"run {run.pk}"), at=at)
    except AppError as error:
        return "", error.message
    if ref.key.digest != done.fields.get("digest"):
        return "", f"the run speaks of {done.fields.get('digest')}, its folder holds {ref.key.digest}"
    return ref.key.digest, ""


def _apply(run: Run, line: Line) -> None:
    at = datetime.fromtimestamp(line.at, UTC)
    run.heartbeat_at = max(run.heartbeat_at or at, at)
    fields = line.fields
    if line.kind == RunEventKind.STAGE:
        run.stage = str(fields.get("name", ""))[:100]
        run.stage_index, run.stage_of = _count(fields, "index"), _count(fields, "of")
        _note(run, at=at, kind=Note.Kind.STAGE, text=run.stage)
    elif line.kind == RunEventKind.STEP:
        run.step, run.steps = _count(fields, "step"), _count(fields, "steps")
        run.epoch, run.epochs = _count(fields, "epoch"), _count(fields, "epochs")
        run.first_step_at = run.first_step_at or at
    elif line.kind == RunEventKind.EVAL:
        _note(
            run,
            at=at,
            kind=Note.Kind.EVAL,
            text=str(fields.get("split", "")),
            metrics=rules.numbers(fields.get("metrics")),
        )
    elif line.kind == RunEventKind.LOG:
        _note(run, at=at, kind=Note.Kind.LOG, text=str(fields.get("text", "")))
    elif line.kind == RunEventKind.FAILED:
        run.state, run.ended_at = RunState.FAILED, at
        run.error_code, run.error = "run_failed", str(fields.get("error", ""))


def _points_write(run: Run, lines: list[Line]) -> None:
    points = []
    for line in lines:
        if line.kind != RunEventKind.STEP:
            continue
        align = rules.numbers(line.fields.get("align"))
        points.append(
            Point(
                run=run,
                attempt=run.attempt,
                step=_count(line.fields, "step"),
                loss=rules.number(line.fields.get("loss")),
                alpha=rules.number(line.fields.get("alpha")),
                lr=rules.number(line.fields.get("lr")),
                align_token=align.get("token"),
                align_layer=align.get("layer"),
                align_global=align.get("global"),
            )
        )
    Point.objects.bulk_create(points, batch_size=90)


def _finish(run: Run, done: Line, *, digest: str, problem: str, at: datetime) -> None:
    metrics = done.fields.get("metrics")
    both = metrics if isinstance(metrics, dict) else {}
    champion = both.get("champion")
    run.metrics = {
        "candidate": rules.numbers(both.get("candidate")),
        "champion": rules.numbers(champion) if champion is not None else None,
    }
    run.ended_at = at
    if problem:
        run.state, run.error_code, run.error = RunState.FAILED, "artifact_invalid", problem
    else:
        run.state, run.digest = RunState.DONE, digest


def _check_alive(run: Run, *, gone: bool, at: datetime) -> None:
    limit = rules.LAUNCH_S if run.pid is None else rules.STALE_S
    silent = (at - run.heartbeat_at).total_seconds() if run.heartbeat_at else 0.0
    if not gone and silent <= limit:
        return
    run.state, run.ended_at = RunState.LOST, at
    run.error_code = "process_gone" if gone else "heartbeat_stale"
    run.error = _last_words(run) if gone else f"Nothing was heard of it for {silent:.0f} s."
    jobs.enqueue_stop(run_id=run.pk, attempt=run.attempt)


def _last_words(run: Run) -> str:
    path = Path(run.folder) / children.OUTPUT
    text = path.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip() if path.exists() else ""
    return text or "The process ended without a word; it may have been killed, as for want of memory."


@transaction.atomic
def _send_again(run_id: int, *, at: datetime) -> None:
    run = run_lock(run_id)
    if run.state == RunState.QUEUED:
        _log.warning("run %s has waited since %s: sent again", run.pk, run.queued_at)
        run.queued_at = at
        run.save(update_fields=["queued_at"])
        jobs.enqueue_start(run_id=run.pk, attempt=run.attempt)


def _note(run: Run, *, at: datetime, kind: str, text: str, metrics: dict[str, float] | None = None) -> None:
    Note.objects.create(run=run, attempt=run.attempt, at=at, kind=kind, step=run.step, text=text, metrics=metrics or {})


def _count(fields: dict[str, object], name: str) -> int:
    return max(0, int(rules.number(fields.get(name)) or 0))


def _audit(run: Run, *, at: datetime) -> None:
    verb = {RunState.DONE: "run.finish", RunState.FAILED: "run.fail", RunState.LOST: "run.lose"}[RunState(run.state)]
    detail = {"attempt": run.attempt, "digest": run.digest, "error_code": run.error_code}
    actor = system_actor(name="training")
    record(AuditEvent(actor=actor, verb=verb, object_type="run", object_id=str(run.pk), at=at, detail=detail))
