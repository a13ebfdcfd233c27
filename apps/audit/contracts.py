"""What crosses the border of the audit trail: events to append and the verifier's report."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainReport:
    """What the verifier found. `broken_at` is the sequence number of the first broken event (None: all is well).

    `next_sequence` is where to go on when the chain was longer than the limit asked for (None: the end was reached).
    """

    checked: int
    total: int
    broken_at: int | None = None
    reason: str = ""
    next_sequence: int | None = None

    @property
    def whole(self) -> bool:
        """True when the end of the chain was reached and every link held."""
        return self.broken_at is None and self.next_sequence is None
