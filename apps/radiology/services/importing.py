"""Imports a folder or zip from disk in this process, and drafts in the way that was asked for."""

import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from celery import current_app
from django.db import transaction
from kombu.exceptions import OperationalError

from apps.accounts.api import Actor
from apps.core.errors import AppError
from apps.radiology import jobs
from apps.radiology.contracts import BatchResult, FileResult
from apps.radiology.models import Batch, Instance, Priority, UploadedFile
from apps.radiology.rules import archive
from apps.radiology.rules.limits import DEFAULT, Limits
from apps.radiology.services import drafts, intake
from apps.radiology.services.decoding import Decoder
from apps.registry import api as registry
from ml_core.contracts import ModelKind

DraftMode = Literal["auto", "queue", "here", "none"]
_HERE_S = 24 * 3600.0


class ImportPathError(AppError):
    """There is nothing to import at the path."""

    code = "no_such_path"


def path_import(
    *,
    path: Path,
    draft: DraftMode,
    by: Actor,
    now: Callable[[], datetime],
    progress: Callable[[int, int], None],
    limits: Limits = DEFAULT,
    source: str = "import",
    priority: int = Priority.ROUTINE,
) -> BatchResult:
    """Take in every file under `path`. `progress` hears (files done, files known so far)."""
    if not path.exists():
        raise ImportPathError(f"There is no file or folder {path}.")
    began = time.monotonic()
    batch = intake.batch_create(name=path.name, source=source, by=by, at=now(), priority=priority)
    files = sorted(one for one in path.rglob("*") if one.is_file() or one.is_symlink()) if path.is_dir() else [path]
    rows: list[UploadedFile] = []
    with Decoder(limits=limits) as decoder:
        for done, file in enumerate(files):
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            rows.extend(_file_rows(batch=batch, file=file, name=name, decoder=decoder, limits=limits, by=by, now=now))
            progress(done + 1, len(files))
    waiting = drafts.drafts_queue(batch=batch, by=by, at=now()) if draft != "none" else 0
    stored = {row.instance_id for row in rows if row.instance_id}
    return BatchResult(
        batch_id=batch.pk,
        files=tuple(FileResult(file=row.name, status=row.status, reason=row.reason) for row in rows),
        studies=Instance.objects.filter(pk__in=stored).values("series__study").distinct().count(),
        images=len(stored),
        drafts=_draft(mode=draft, waiting=waiting, now=now),
        seconds=round(time.monotonic() - began, 3),
    )


def _file_rows(
    *, batch: Batch, file: Path, name: str, decoder: Decoder, limits: Limits, by: Actor, now: Callable[[], datetime]
) -> Iterator[UploadedFile]:
    if file.is_symlink():
        entry = archive.Entry(name=name, path=None, reason="a symbolic link")
        yield intake.entry_take_in(batch=batch, entry=entry, name=name, decoder=decoder, by=by, at=now())
        return
    if not archive.is_zip(file):
        yield intake.path_take_in(batch=batch, path=file, name=name, decoder=decoder, by=by, at=now())
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            for entry in archive.entries(file, folder=Path(folder), limits=limits):
                yield intake.entry_take_in(
                    batch=batch, entry=entry, name=f"{name}: {entry.name}", decoder=decoder, by=by, at=now()
                )
    except archive.ArchiveError as error:
        whole = archive.Entry(name=name, path=None, reason=str(error))
        yield intake.entry_take_in(batch=batch, entry=whole, name=name, decoder=decoder, by=by, at=now())


def _draft(*, mode: DraftMode, waiting: int, now: Callable[[], datetime]) -> str:
    """Do what the mode says with the drafts that wait. Returns: none, queued, done or waiting."""
    if mode == "none" or not waiting:
        return "none"
    if mode == "here":
        drafts.drafts_run(now=now, seconds=_HERE_S)
        return "done"
    if mode == "queue" or _broker_answers():
        with transaction.atomic():
            jobs.enqueue_draft()
        return "queued"
    if not _has_champion():
        return "waiting"
    drafts.drafts_run(now=now, seconds=_HERE_S)
    return "done"


def _broker_answers() -> bool:
    try:
        with current_app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=1, interval_start=0.1)
    except (OperationalError, OSError):
        return False
    return True


def _has_champion() -> bool:
    try:
        registry.champion(ModelKind.REPORT)
    except registry.NoChampionError:
        return False
    return True
