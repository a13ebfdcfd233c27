"""Training with real child processes: folders under tmp_path, a child that does what its params say."""

import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from testkit import training_child
from testkit.people import make_actor

from apps.core import clock
from apps.training import tasks  # noqa: F401 - registers the tasks, so that eager mode finds them
from apps.training.models import Run
from apps.training.services import children, runs


@pytest.fixture(autouse=True)
def child(settings: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The child process is a real one, but not the real trainer; its data come without a database of transactions."""
    settings.RUNS_DIR = tmp_path / "runs"
    settings.MEDIA_ROOT = tmp_path / "private"
    monkeypatch.setattr(children, "COMMAND", (sys.executable, training_child.__file__))
    monkeypatch.setattr(children.fraud, "labelled_transactions_write", _write)


@pytest.fixture
def start(db: None) -> Iterator[Callable[..., Run]]:
    """Queue a run of the fraud recipe; the keywords go into its params. What still lives at the end is ended."""

    def make(**params: int | float | str) -> Run:
        at = clock.now()
        return runs.run_start(
            recipe="fraud_dfad_small",
            params=params,
            seed=7,
            since=at - timedelta(days=90),
            until=at,
            by=make_actor(),
            at=at,
        )

    yield make
    for run in Run.objects.all():
        if (process := children.child_of(run)) is not None:
            process.kill()


@pytest.fixture
def launch(start: Callable[..., Run]) -> Callable[..., Run]:
    """Queue and launch a run."""

    def make(**params: int | float | str) -> Run:
        run = start(**params)
        children.run_launch(run_id=run.pk, attempt=run.attempt, at=clock.now())
        run.refresh_from_db()
        return run

    return make


def _write(*, path: Path, since: datetime, until: datetime) -> int:
    path.write_bytes(b"rows")
    return 4321
