"""Takes files in: receives bytes, has them judged by the decoding child, and stores, quarantines or refuses each."""

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction
from django.db.models import F, Q

from apps.accounts.api import Actor, system_actor
from apps.audit.api import AuditEvent, record
from apps.radiology import jobs
from apps.radiology.models import Batch, FileState, FileStatus, Instance, Priority, UploadedFile
from apps.radiology.rules import archive
from apps.radiology.rules.dicom_header import stored_bytes
from apps.radiology.rules.limits import DEFAULT, Limits
from apps.radiology.services import drafts, placing
from apps.radiology.services.decoding import Decoder

_LARGEST_ATTEMPT = 2
_PATIENCE_S = 30


def batch_create(*, name: str, source: str, by: Actor, at: datetime, priority: int = Priority.ROUTINE) -> Batch:
    """Open a batch."""
    batch = Batch(name=name[:200], source=source, priority=priority, created_by_id=by.user_id, created_at=at)
    batch.full_clean()
    with transaction.atomic():
        batch.save()
        record(
            AuditEvent(
                actor=by, verb="batch.create", object_type="batch", object_id=str(batch.pk), at=at,
                detail={"source": source, "priority": Priority(priority).label},
            )
        )  # fmt: skip
    return batch


def file_receive(*, batch: Batch, name: str, content: File, at: datetime) -> UploadedFile:
    """Keep the bytes of one sent file under a key of ours until it is read."""
    key = default_storage.save(_new_key("incoming"), content)
    row = UploadedFile(batch=batch, name=_shown_name(name), size_bytes=content.size or 0, key=key, created_at=at)
    row.full_clean()
    row.save()
    return row


def batch_begin(*, batch: Batch) -> None:
    """Have the waiting files of a batch read by a worker."""
    with transaction.atomic():
        jobs.enqueue_take_in(batch_id=batch.pk)


def batches_resend(*, at: datetime) -> int:
    """Have every batch read again whose files have waited longer than any reader works; returns how many."""
    cutoff = at - timedelta(seconds=1.1 * settings.LANE_LIMIT_S["cpu"])
    waiting = Q(state=FileState.QUEUED, created_at__lt=cutoff) | _stale(at)
    batch_ids = set(UploadedFile.objects.filter(waiting).values_list("batch_id", flat=True))
    with transaction.atomic():
        for batch_id in sorted(batch_ids):
            jobs.enqueue_take_in(batch_id=batch_id)
    return len(batch_ids)


def batch_take_in(*, batch_id: int, now: Callable[[], datetime], seconds: float, limits: Limits = DEFAULT) -> int:
    """Read the waiting files of a batch for up to `seconds`, then queue drafts. Returns how many files were read.

    Safe to run twice at once: each row is claimed, and a claim that went stale with its worker is taken over.
    """
    handled, until = 0, now() + timedelta(seconds=seconds)
    batch = Batch.objects.get(pk=batch_id)
    by = system_actor(name="radiology intake")
    with Decoder(limits=limits) as decoder:
        while now() < until and (row := _claim(batch=batch, at=now())) is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "file"
                with default_storage.open(row.key) as source, path.open("wb") as out:
                    shutil.copyfileobj(source, out)
                _take_in_row(row=row, path=path, decoder=decoder, limits=limits, by=by, now=now)
            handled += 1
    with transaction.atomic():
        if handled and batch.files.filter(state=FileState.QUEUED).exists():
            jobs.enqueue_take_in(batch_id=batch.pk)
        if drafts.drafts_queue(batch=batch, by=by, at=now()):
            jobs.enqueue_draft()
    return handled


def entry_take_in(
    *, batch: Batch, entry: archive.Entry, name: str, decoder: Decoder, by: Actor, at: datetime
) -> UploadedFile:
    """Read one entry of an archive into the batch and remove what was unpacked."""
    if entry.path is None or entry.reason:
        row = _entry_refuse(batch=batch, name=name, path=entry.path, reason=entry.reason, at=at)
    else:
        row = path_take_in(batch=batch, path=entry.path, name=name, decoder=decoder, by=by, at=at)
    if entry.path is not None:
        entry.path.unlink()
    return row


def path_take_in(*, batch: Batch, path: Path, name: str, decoder: Decoder, by: Actor, at: datetime) -> UploadedFile:
    """Read one file from disk into the batch at once (import); zips are the caller's to open."""
    row = UploadedFile(
        batch=batch, name=_shown_name(name), size_bytes=path.stat().st_size, created_at=at, started_at=at,
        state=FileState.RUNNING, attempt=1,
    )  # fmt: skip
    row.save()
    _judge(row=row, path=path, decoder=decoder, by=by, at=at)
    return row


def file_dismiss(*, file_id: int, by: Actor, at: datetime) -> bool:
    """Delete the quarantined bytes of a file; the row and the reason stay. False where it was done before."""
    with transaction.atomic():
        changed = (
            UploadedFile.objects.filter(pk=file_id, dismissed_at=None)
            .exclude(key="")
            .filter(status__in=(FileStatus.REFUSED, FileStatus.QUARANTINED))
        )
        row = changed.select_for_update().first()
        if row is None:
            return False
        key = row.key
        changed.update(dismissed_at=at, dismissed_by_id=by.user_id, key="")
        record(
            AuditEvent(
                actor=by, verb="file.dismiss", object_type="file", object_id=str(file_id), at=at,
                detail={"sha256": row.sha256, "reason": row.reason},
            )
        )  # fmt: skip
        transaction.on_commit(lambda: default_storage.delete(key))
    return True


def _claim(*, batch: Batch, at: datetime) -> UploadedFile | None:
    free = Q(state=FileState.QUEUED) | _stale(at)
    while (row := UploadedFile.objects.filter(free, batch=batch).first()) is not None:
        claimed = UploadedFile.objects.filter(free, pk=row.pk, attempt=row.attempt).update(
            state=FileState.RUNNING, attempt=F("attempt") + 1, started_at=at
        )
        if claimed:
            row.refresh_from_db()
            return row
    return None


def _stale(at: datetime) -> Q:
    """Rows whose reader must have died: no reader runs for longer than the lane's limit."""
    return Q(state=FileState.RUNNING, started_at__lt=at - timedelta(seconds=1.1 * settings.LANE_LIMIT_S["cpu"]))


def _take_in_row(
    *, row: UploadedFile, path: Path, decoder: Decoder, limits: Limits, by: Actor, now: Callable[[], datetime]
) -> None:
    incoming = row.key
    if row.attempt > _LARGEST_ATTEMPT:
        _finish(row, status=FileStatus.REFUSED, reason="reading it ended the worker twice", at=now())
        return
    if archive.is_zip(path):
        _take_in_zip(row=row, path=path, decoder=decoder, limits=limits, by=by, now=now)
        return
    row.key = ""
    _judge(row=row, path=path, decoder=decoder, by=by, at=now())
    default_storage.delete(incoming)


def _take_in_zip(
    *, row: UploadedFile, path: Path, decoder: Decoder, limits: Limits, by: Actor, now: Callable[[], datetime]
) -> None:
    """Each entry becomes a row of its own, and the zip's row goes; a zip refused as a whole stays in quarantine."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for entry in archive.entries(path, folder=Path(folder), limits=limits):
                label = f"{row.name}: {entry.name}"
                entry_take_in(batch=row.batch, entry=entry, name=label, decoder=decoder, by=by, at=now())
        except archive.ArchiveError as error:
            _finish(row, status=FileStatus.REFUSED, reason=str(error), at=now())
            return
    key = row.key
    row.delete()
    default_storage.delete(key)


def _entry_refuse(*, batch: Batch, name: str, path: Path | None, reason: str, at: datetime) -> UploadedFile:
    """Note a file of an archive that is refused unread; what came out of it is kept in quarantine."""
    row = UploadedFile(
        batch=batch, name=_shown_name(name), created_at=at, size_bytes=path.stat().st_size if path else 0,
    )  # fmt: skip
    if path is None:
        _finish(row, status=FileStatus.REFUSED, reason=reason, at=at)
    else:
        _quarantine(row, path=path, status=FileStatus.REFUSED, reason=reason, at=at)
    return row


def _judge(*, row: UploadedFile, path: Path, decoder: Decoder, by: Actor, at: datetime) -> None:
    """Decide about one file and write the decision; refused and conflicting bytes go to quarantine."""
    row.sha256 = _sha256(path)
    known = Instance.objects.filter(sha256=row.sha256).first()
    if known is not None:
        row.instance = known
        _finish(row, status=FileStatus.DUPLICATE, reason="", at=at)
        return
    with tempfile.TemporaryDirectory() as folder:
        answer = decoder.examine(path, folder=Path(folder))
        if answer["status"] == "refused":
            _quarantine(row, path=path, status=FileStatus.REFUSED, reason=answer["reason"], at=at)
            return
        try:
            _store(row=row, path=path, folder=Path(folder), answer=answer, by=by, at=at)
        except placing.ConflictingFileError as error:
            _quarantine(row, path=path, status=FileStatus.QUARANTINED, reason=str(error), at=at)


def _store(*, row: UploadedFile, path: Path, folder: Path, answer: dict[str, Any], by: Actor, at: datetime) -> None:
    content = stored_bytes(path.read_bytes())
    keys = placing.Keys(file=_new_key("files"), frames="", thumb="")
    if answer["status"] == "displayable":
        keys = placing.Keys(file=keys.file, frames=_new_key("frames"), thumb=_new_key("thumbs"))
    facts = placing.FileFacts(
        sha256=row.sha256, stored_sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), keys=keys
    )
    try:
        with transaction.atomic():
            row.instance = placing.instance_place(batch=row.batch, answer=answer, facts=facts, at=at)
            placing.bytes_write(content=content, folder=folder, keys=keys)
            status = FileStatus.STORED if row.instance.displayable else FileStatus.NOT_DISPLAYABLE
            _finish(row, status=status, reason=answer["reason"], at=at)
            record(
                AuditEvent(
                    actor=by, verb="image.store", object_type="image", object_id=row.instance.sop_uid, at=at,
                    detail={"sha256": row.sha256, "batch": row.batch_id},
                )
            )  # fmt: skip
    except IntegrityError as error:
        raise placing.ConflictingFileError("the same SOP Instance UID arrived twice at the same time") from error
    except BaseException:
        placing.bytes_delete(keys=keys)
        raise


def _quarantine(row: UploadedFile, *, path: Path, status: FileStatus, reason: str, at: datetime) -> None:
    with path.open("rb") as source:
        row.key = default_storage.save(_new_key("quarantine"), File(source))
    row.instance = None
    _finish(row, status=status, reason=reason, at=at)


def _finish(row: UploadedFile, *, status: FileStatus, reason: str, at: datetime) -> None:
    row.state, row.status, row.reason, row.finished_at = FileState.DONE, status, reason[:300], at
    row.full_clean()
    row.save()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_key(kind: str) -> str:
    name = uuid.uuid4().hex
    return f"radiology/{kind}/{name[:2]}/{name}"


def _shown_name(name: str) -> str:
    return "".join(sign for sign in name if sign.isprintable())[-255:] or "unnamed"
