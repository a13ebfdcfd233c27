"""Waiting for and following the child processes of training runs."""

from datetime import UTC, datetime

import psutil

from apps.training.models import Run, RunState
from apps.training.services import following

WAIT_S = 30


def process_wait(run: Run, *, limit_s: float = WAIT_S) -> None:
    """Return when the run's child has ended."""
    try:
        psutil.wait_procs([psutil.Process(run.pid)], timeout=limit_s)
    except psutil.NoSuchProcess:
        return  # it ended before we asked


def speaks_wait(run: Run) -> None:
    """Follow until the child has reported a step: env and nice have made way for it by then."""
    while not follow(run).step and run.state == RunState.RUNNING:
        pass


def follow(run: Run, *, at: datetime | None = None) -> Run:
    """One pass over a run; the fresh row comes back."""
    following.run_follow(run_id=run.pk, at=at or datetime.now(UTC))
    run.refresh_from_db()
    return run
