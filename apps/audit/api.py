"""What other apps may ask of the audit trail."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from apps.accounts.api import Actor


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEvent:
    """One read or write. `verb` as `alert.read`; `object_type` as `alert`; `detail` is small JSON, no card numbers."""

    actor: Actor
    verb: str
    object_type: str
    object_id: str
    at: datetime
    allowed: bool = True
    detail: dict[str, object] = field(default_factory=dict)


def record(event: AuditEvent) -> None:
    """Append one event to the chain, inside the caller's database transaction."""
    record_many([event])


def record_many(events: Iterable[AuditEvent]) -> None:
    """Append events to the chain in order, inside the caller's database transaction."""
    from apps.audit import services

    services.events_append(events=list(events))
