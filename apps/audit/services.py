"""Writes of the audit trail: appending links to the chain."""

from collections.abc import Sequence
from datetime import datetime

from django.db import connection, transaction

from apps.accounts.api import Actor
from apps.audit import rules
from apps.audit.contracts import AuditEvent, ChainReport
from apps.audit.models import ChainHead, Event
from apps.audit.selectors import chain_verify
from apps.core.prepared import Prepared

_HEAD = Prepared(lambda ids: ChainHead.objects.select_for_update().filter(pk__in=ids).values_list("sequence", "hash"))
_BATCH_ROWS = 500  # keeps one INSERT below SQLite's limit of bound variables


@transaction.atomic(savepoint=False)
def events_append(*, events: Sequence[AuditEvent]) -> list[int]:
    """Append events in order inside the caller's transaction; returns their sequence numbers.

    The head row stays locked until the caller's transaction ends (PostgreSQL: row lock; SQLite: transactions begin
    IMMEDIATE), so the chain cannot fork; callers therefore append last, after they locked their own rows.
    """
    if not events:
        return []
    sequence, last = _head_lock()
    rows = []
    for event in events:
        row = _link(event, sequence=sequence + 1, previous_hash=last)
        sequence, last = row.sequence, row.hash
        rows.append(row)
    Event.objects.bulk_create(rows, batch_size=_BATCH_ROWS)
    with connection.cursor() as cursor:  # the ORM takes longer to write the statement than the database to run it
        cursor.execute("UPDATE audit_chainhead SET sequence = %s, hash = %s WHERE id = 1", [sequence, last])
    return [row.sequence for row in rows]


def trail_read(*, verb: str, by: Actor, at: datetime, detail: dict[str, object]) -> None:
    """Put on record that somebody searched, exported or opened the trail itself."""
    events_append(
        events=[AuditEvent(actor=by, verb=verb, object_type="audit_trail", object_id="", at=at, detail=detail)]
    )


def trail_verify(*, by: Actor, at: datetime, start: int = 1, limit: int | None = None) -> ChainReport:
    """Verify the chain from `start` on, at most `limit` events; the verdict at the end goes on record."""
    report = chain_verify(start=start, limit=limit)
    if report.next_sequence is None:
        detail: dict[str, object] = {"whole": report.whole, "events": start - 1 + report.checked}
        if report.broken_at is not None:
            detail |= {"broken_at": report.broken_at, "reason": report.reason}
        trail_read(verb="audit.verify", by=by, at=at, detail=detail)
    return report


def _head_lock() -> tuple[int, str]:
    """Sequence and hash of the chain's last event; the row is locked."""
    found = _HEAD.rows([1])
    if not found:  # only on an emptied database: the migration makes the row
        last = Event.objects.order_by("-sequence").first()
        end = {"sequence": last.sequence, "hash": last.hash} if last else {}
        ChainHead.objects.get_or_create(pk=1, defaults=end)
        found = _HEAD.rows([1])
    return found[0][0], found[0][1]


def _link(event: AuditEvent, *, sequence: int, previous_hash: str) -> Event:
    def fit(field: str, value: str) -> str:
        limit = Event._meta.get_field(field).max_length  # type: ignore[union-attr]
        assert limit is not None
        return rules.storable(value, limit=limit)

    row = Event(
        sequence=sequence,
        at=event.at,
        user_id=event.actor.user_id,
        name=fit("name", event.actor.name),
        role=fit("role", event.actor.role),
        origin=fit("origin", event.actor.origin),
        verb=fit("verb", event.verb),
        object_type=fit("object_type", event.object_type),
        object_id=fit("object_id", event.object_id),
        allowed=event.allowed,
        detail_json=rules.canonical(event.detail),
        previous_hash=previous_hash,
    )
    row.hash = rules.link_hash(previous_hash=previous_hash, body=row.body)
    return row
