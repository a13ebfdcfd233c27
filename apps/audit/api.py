"""What other apps may ask of the audit trail."""

from collections.abc import Iterable

from apps.audit import services
from apps.audit.contracts import AuditEvent

__all__ = ["AuditEvent", "record", "record_many"]


def record(event: AuditEvent) -> None:
    """Append one event to the chain, inside the caller's database transaction; call it last (it locks the head)."""
    record_many([event])


def record_many(events: Iterable[AuditEvent]) -> None:
    """Append events to the chain in order, inside the caller's database transaction.

    Bulk work (scoring, imports) records one event a batch: detail holds `count`, first and last id and a digest.
    """
    services.events_append(events=list(events))
