"""Imports files of transactions: rows are stored in chunks, good ones kept, bad ones named, and scored in batches."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from django.db import transaction
from django.db.models import Count, F, Max, Min, Q, Sum

from apps.accounts.api import Actor
from apps.audit.api import AuditEvent, record
from apps.fraud import jobs
from apps.fraud.contracts import BadRow, ImportReport, ParsedTransaction
from apps.fraud.models import Import, ImportBadRow, ImportState, ScoreBatch, Transaction
from apps.fraud.services import bulk, files
from apps.fraud.services.schemas import Schema

CHUNK_ROWS = 16_384
KEPT_BAD_ROWS = 1_000  # of each file, in the report and in the database; all are counted

Progress = Callable[[int], None]
Handle = Callable[[int], None]


def file_import(
    path: Path,
    *,
    schema: Schema,
    by: Actor,
    at: datetime,
    score: bool = True,
    replay: bool = False,
    limit: int | None = None,
    on_batch: Handle | None = None,
    on_progress: Progress | None = None,
) -> ImportReport:
    """Store the rows of a file; the same file twice stores nothing more.

    With `score`, each stored chunk becomes a batch: `on_batch(batch id)` is called for it, or, without `on_batch`,
    it goes to the gpu lane. `replay` opens alerts at the moment of their transactions. Raises FileError.
    """
    started = time.monotonic()
    rows = files.rows_read(path, schema=schema, at=at)
    if limit is not None:
        rows = islice(rows, limit)
    first = list(islice(rows, 1))  # an unreadable file fails here, before anything is written
    run = _import_begin(path, schema=schema, replay=replay, by=by, at=at)
    bad: list[BadRow] = []
    cards: dict[str, int] = {}
    terminals: dict[str, int] = {}
    try:
        for chunk in _chunks(first, rows):
            batch_id = _chunk_store(run, chunk, score=score, cards=cards, terminals=terminals, bad=bad)
            if batch_id and on_batch:
                on_batch(batch_id)
            elif batch_id:
                jobs.enqueue_score_batch(batch_id=batch_id, attempt=1)
            if on_progress:
                on_progress(len(chunk))
    except Exception:
        Import.objects.filter(pk=run.pk).update(state=ImportState.FAILED)
        raise
    _import_end(run, path=path, by=by, at=at)
    return import_report(import_id=run.pk, bad=tuple(bad), seconds=time.monotonic() - started)


def import_report(*, import_id: int, bad: tuple[BadRow, ...], seconds: float) -> ImportReport:
    """The counts of an import as they are now."""
    run = Import.objects.get(pk=import_id)
    batches = run.batches.aggregate(
        scored=Sum("rows", filter=Q(state="done"), default=0),
        queued=Sum("rows", filter=Q(state="queued"), default=0),
        alerts=Sum("alerts", default=0),
    )
    return ImportReport(
        import_id=run.pk,
        file=run.file_name,
        rows=run.rows,
        stored=run.stored,
        duplicates=run.duplicates,
        refused=run.refused,
        seconds=seconds,
        bad=bad,
        **batches,
    )


def _chunks(
    first: list[ParsedTransaction | BadRow], rest: Iterator[ParsedTransaction | BadRow]
) -> Iterator[list[ParsedTransaction | BadRow]]:
    chunk = first + list(islice(rest, CHUNK_ROWS - len(first)))
    while chunk:
        yield chunk
        chunk = list(islice(rest, CHUNK_ROWS))


@transaction.atomic
def _import_begin(path: Path, *, schema: Schema, replay: bool, by: Actor, at: datetime) -> Import:
    run = Import(
        file_name=path.name[:200],
        schema=schema.name,
        source=schema.source,
        replay=replay,
        started_at=at,
        by_name=by.name,
    )
    run.full_clean()
    run.save()
    return run


@transaction.atomic
def _import_end(run: Import, *, path: Path, by: Actor, at: datetime) -> None:
    Import.objects.filter(pk=run.pk).update(state=ImportState.DONE, finished_at=at)
    run.refresh_from_db()
    detail = {
        "file": path.name,
        "rows": run.rows,
        "stored": run.stored,
        "duplicates": run.duplicates,
        "refused": run.refused,
    }
    record(
        AuditEvent(
            actor=by, verb="transactions.import", object_type="import", object_id=str(run.pk), at=at, detail=detail
        )
    )


@transaction.atomic
def _chunk_store(
    run: Import,
    chunk: list[ParsedTransaction | BadRow],
    *,
    score: bool,
    cards: dict[str, int],
    terminals: dict[str, int],
    bad: list[BadRow],
) -> int | None:
    """Store one chunk in one transaction; returns the id of its batch, None when nothing was new."""
    good = [row for row in chunk if isinstance(row, ParsedTransaction)]
    refused = [row for row in chunk if isinstance(row, BadRow)]
    bulk.cards_ensure(good, known=cards)
    bulk.terminals_ensure(good, known=terminals)
    new, duplicates = _new_rows(good, source=run.source, cards=cards, terminals=terminals, refused=refused)
    new.sort(key=lambda row: row.at)
    last_id = Transaction.objects.aggregate(last=Max("id"))["last"] or 0
    bulk.transactions_insert(new, source=run.source, import_id=run.pk, state="queued", cards=cards, terminals=terminals)
    stored = Transaction.objects.filter(id__gt=last_id, imported_id=run.pk).aggregate(
        first=Min("id"), last=Max("id"), n=Count("id")
    )
    duplicates += len(new) - stored["n"]  # taken by somebody else in between
    Import.objects.filter(pk=run.pk).update(
        rows=F("rows") + len(chunk),
        stored=F("stored") + stored["n"],
        duplicates=F("duplicates") + duplicates,
        refused=F("refused") + len(refused),
    )
    refused = sorted(refused, key=lambda row: row.line)[: KEPT_BAD_ROWS - len(bad)]
    bad += refused
    ImportBadRow.objects.bulk_create(
        [ImportBadRow(imported=run, line=row.line, reason=row.reason) for row in refused], batch_size=300
    )
    if not score or not stored["n"]:
        return None
    return ScoreBatch.objects.create(
        imported=run, first_id=stored["first"], last_id=stored["last"], rows=stored["n"]
    ).pk


def _new_rows(
    good: list[ParsedTransaction],
    *,
    source: str,
    cards: dict[str, int],
    terminals: dict[str, int],
    refused: list[BadRow],
) -> tuple[list[ParsedTransaction], int]:
    """Rows whose id is new, and how many were there already; an id with other content goes to `refused`."""
    found = bulk.transactions_find(source=source, external_ids=[row.external_id for row in good])
    new: list[ParsedTransaction] = []
    duplicates = 0
    for row in good:
        content = (row.at, row.amount_cents, cards[row.card_token], terminals[row.terminal_key])
        stored = found.get(row.external_id)
        if stored is None:
            found[row.external_id] = content
            new.append(row)
        elif stored == content:
            duplicates += 1
        else:
            refused.append(BadRow(line=row.line, reason=f"id {row.external_id} is stored already with another content"))
    return new, duplicates
