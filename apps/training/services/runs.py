"""Starting, cancelling and retrying a run."""

from datetime import datetime

from django.db import transaction

from apps.accounts.api import Actor
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError, NotAllowedError
from apps.training import jobs, rules
from apps.training.models import Run, RunState

_FRESH: dict[str, object] = {
    "started_at": None,
    "ended_at": None,
    "heartbeat_at": None,
    "folder": "",
    "host": "",
    "pid": None,
    "pid_started": None,
    "event_offset": 0,
    "stage": "",
    "stage_index": 0,
    "stage_of": 0,
    "step": 0,
    "steps": 0,
    "epoch": 0,
    "epochs": 0,
    "first_step_at": None,
    "champion_digest": "",
    "digest": "",
    "metrics": {},
    "error_code": "",
    "error": "",
}
_RETRIABLE = (RunState.FAILED, RunState.LOST, RunState.CANCELLED)


class RunNotFoundError(AppError):
    """No run has this number."""

    code = "run_not_found"
    status = 404


@transaction.atomic
def run_start(
    *,
    recipe: str,
    params: dict[str, int | float | str],
    seed: int,
    by: Actor,
    at: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Run:
    """Queue a run of a recipe on the labels known of transactions in [since, until)."""
    if recipe not in rules.RECIPES:
        raise NotAllowedError(f"There is no recipe {recipe}.")
    run = Run(
        kind=rules.RECIPES[recipe].kind,
        recipe=recipe,
        params=params,
        seed=seed,
        since=since,
        until=until,
        created_at=at,
        created_by=by.name,
        queued_at=at,
    )
    run.full_clean()
    run.save()
    jobs.enqueue_start(run_id=run.pk, attempt=run.attempt)
    _audit("run.start", run=run, by=by, at=at, recipe=recipe, params=params, seed=seed)
    return run


@transaction.atomic
def run_cancel(*, run_id: int, by: Actor, at: datetime) -> Run:
    """End a run that waits or works; its child is told to stop. Cancelling a cancelled run changes nothing."""
    run = run_lock(run_id)
    if run.state == RunState.CANCELLED:
        return run
    if not run.is_open:
        raise NotAllowedError(f"Run {run.pk} is {run.get_state_display()}: there is nothing to cancel.")
    run.state, run.ended_at = RunState.CANCELLED, at
    run.full_clean()
    run.save()
    jobs.enqueue_stop(run_id=run.pk, attempt=run.attempt)
    _audit("run.cancel", run=run, by=by, at=at, attempt=run.attempt)
    return run


@transaction.atomic
def run_retry(*, run_id: int, by: Actor, at: datetime) -> Run:
    """Queue a new attempt of a run that failed, was lost or was cancelled."""
    run = run_lock(run_id)
    if run.state not in _RETRIABLE:
        raise NotAllowedError(
            f"Run {run.pk} is {run.get_state_display()}: only one that ended without a model retries."
        )
    for name, value in _FRESH.items():
        setattr(run, name, value)
    run.state, run.attempt, run.queued_at, run.rows = RunState.QUEUED, run.attempt + 1, at, None
    run.full_clean()
    run.save()
    jobs.enqueue_start(run_id=run.pk, attempt=run.attempt)
    _audit("run.retry", run=run, by=by, at=at, attempt=run.attempt)
    return run


def run_lock(run_id: int) -> Run:
    """The row, locked until the transaction ends."""
    run = Run.objects.select_for_update().filter(pk=run_id).first()
    if run is None:
        raise RunNotFoundError(f"There is no run {run_id}.")
    return run


def run_read(*, run_id: int, by: Actor, at: datetime) -> Run:
    """The run for its page, with the reading of it on record."""
    run = Run.objects.filter(pk=run_id).first()
    if run is None:
        raise RunNotFoundError(f"There is no run {run_id}.")
    _audit("run.read", run=run, by=by, at=at)
    return run


def _audit(verb: str, *, run: Run, by: Actor, at: datetime, **detail: object) -> None:
    record(AuditEvent(actor=by, verb=verb, object_type="run", object_id=str(run.pk), at=at, detail=detail))
