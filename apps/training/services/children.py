"""The child process of a run: its folder, its launch, whether it lives, its end."""

import json
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import psutil
from django.conf import settings
from django.db import transaction

from apps.core.errors import AppError
from apps.fraud import api as fraud
from apps.registry import api as registry
from apps.training import rules
from apps.training.models import Run, RunState
from apps.training.services.runs import run_lock
from ml_core.contracts import ModelKind, RunSpec

SPEC = "spec.json"
OUTPUT = "output.log"
TRANSACTIONS = "transactions.parquet"
COMMAND = (sys.executable, "-m", "ml_core", "train")
_SECRETS = ("SECRET_KEY", "TOKEN_KEY", "DATABASE_URL", "REDIS_URL")  # the child needs none of them
_THREADS = 1
_GRACE_S = 5.0


class NoDataError(AppError):
    """The window holds nothing to learn from."""

    code = "no_data"
    status = 422


def run_launch(*, run_id: int, attempt: int, at: datetime) -> None:
    """Claim the attempt, write spec and data, launch the child, keep its number; a second delivery does nothing."""
    run = _claim(run_id, attempt=attempt, at=at)
    if run is None:
        return
    folder = Path(run.folder)
    try:
        rows = _folder_write(run, folder=folder)
    except AppError as error:
        _give_up(run_id, attempt=attempt, at=at, code=error.code, error=error.message)
        return
    except OSError as error:
        _give_up(run_id, attempt=attempt, at=at, code="folder_unwritable", error=str(error))
        return
    child = _launch(folder)
    if not _keep_pid(run_id, attempt=attempt, child=child, rows=rows):
        _end(child)


def run_stop(*, run_id: int, attempt: int) -> None:
    """End the child of an attempt, if it lives on this machine and the attempt is over or superseded."""
    run = Run.objects.filter(pk=run_id).first()
    if run is None or (run.attempt == attempt and run.is_open):
        return
    child = child_of(run)
    if run.attempt == attempt and child is not None:
        _end(child)


def child_of(run: Run) -> psutil.Process | None:
    """The child's process, or None when it is gone (a zombie is gone) or was launched on another machine."""
    if run.pid is None or run.host != socket.gethostname():
        return None
    try:
        child = psutil.Process(run.pid)
        if child.create_time() != run.pid_started or child.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return child


def child_gone(run: Run) -> bool:
    """True when we can know that the child no longer runs."""
    return run.pid is not None and run.host == socket.gethostname() and child_of(run) is None


@transaction.atomic
def _claim(run_id: int, *, attempt: int, at: datetime) -> Run | None:
    run = run_lock(run_id)
    if run.state != RunState.QUEUED or run.attempt != attempt:
        return None
    run.state, run.started_at, run.heartbeat_at = RunState.RUNNING, at, at
    run.host, run.stage = socket.gethostname(), "freezing the data"
    run.folder = str(Path(settings.RUNS_DIR) / f"run-{run.pk}" / f"attempt-{attempt}")
    try:
        run.champion_digest = registry.champion(ModelKind(run.kind)).key.digest
    except registry.NoChampionError:
        run.champion_digest = ""
    run.full_clean()
    run.save()
    return run


def _folder_write(run: Run, *, folder: Path) -> int | None:
    """Write spec.json and the frozen data; returns the number of rows, None for recipes that make their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows, inputs = None, {}
    if rules.RECIPES[run.recipe].window:
        if run.since is None or run.until is None:
            raise NoDataError("This recipe learns from transactions: say from when to when.")
        rows = fraud.labelled_transactions_write(path=folder / TRANSACTIONS, since=run.since, until=run.until)
        inputs["transactions"] = TRANSACTIONS
        if not rows:
            raise NoDataError("The window holds no transactions whose labels are known: choose a longer one.")
    parent = registry.model_get(run.champion_digest).key.folder if run.champion_digest else ""
    spec = RunSpec(
        kind=ModelKind(run.kind), recipe=run.recipe, seed=run.seed, params=run.params, inputs=inputs, parent=parent
    )
    (folder / SPEC).write_text(json.dumps(asdict(spec), indent=1), encoding="utf-8")
    return rows


def _launch(folder: Path) -> psutil.Popen:
    """Start the child in its own session, low in priority, without our secrets; it outlives this worker."""
    forget = [word for name in _SECRETS for word in ("-u", name)]
    threads = [f"{name}={_THREADS}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    command = ["env", *forget, *threads, "nice", "-n", "10", *COMMAND, str(folder)]
    with (folder / OUTPUT).open("ab") as output:
        return psutil.Popen(
            command,
            cwd=Path(settings.PRETRAINED_DIR).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@transaction.atomic
def _keep_pid(run_id: int, *, attempt: int, child: psutil.Popen, rows: int | None) -> bool:
    run = run_lock(run_id)
    if run.state != RunState.RUNNING or run.attempt != attempt:
        return False  # cancelled, or given up for lost, while the data was written
    run.pid, run.pid_started, run.rows = child.pid, child.create_time(), rows
    run.save(update_fields=["pid", "pid_started", "rows"])
    return True


@transaction.atomic
def _give_up(run_id: int, *, attempt: int, at: datetime, code: str, error: str) -> None:
    run = run_lock(run_id)
    if run.state == RunState.RUNNING and run.attempt == attempt:
        run.state, run.ended_at, run.error_code, run.error = RunState.FAILED, at, code, error
        run.save(update_fields=["state", "ended_at", "error_code", "error"])


def _end(child: psutil.Process) -> None:
    """Ask the child and its own children to stop, and make them after a while."""
    try:
        family = [*child.children(recursive=True), child]
    except psutil.NoSuchProcess:
        return
    for process in family:
        _signal(process, kill=False)
    _gone, alive = psutil.wait_procs(family, timeout=_GRACE_S)
    for process in alive:
        _signal(process, kill=True)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return  # it ended by itself, which is what was wanted
