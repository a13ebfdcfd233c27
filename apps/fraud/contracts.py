"""What travels inside the fraud app and out of it: plain frozen data."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any


def api_source(owner_id: int, /) -> str:
    """The source of the rows that a user's requests make; ids of transactions are unique in it."""
    return f"api-{owner_id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedTransaction:
    """One good row of a file or one request, in the units of the database: whole cents, aware UTC moments."""

    line: int
    external_id: str
    at: datetime
    card_token: str
    card_display: str
    terminal_key: str
    terminal_name: str
    amount_cents: int
    currency: str
    terminal_category: str = ""
    utc_offset_s: int = 0
    label: bool | None = None
    label_known_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One scoring request on its way to the worker; `token` is what its answer comes back under."""

    token: str
    owner_id: int
    key: str  # the Idempotency-Key, empty for none
    body_sha256: str
    row: ParsedTransaction

    @property
    def source(self) -> str:
        """The source of the rows of this owner's requests."""
        return api_source(self.owner_id)

    def as_json(self) -> dict[str, Any]:
        """As a message holds it."""
        body = asdict(self)
        body["row"]["at"] = self.row.at.isoformat()
        return body

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Asked":
        """What `as_json` made."""
        row = ParsedTransaction(**body["row"] | {"at": datetime.fromisoformat(body["row"]["at"])})
        return cls(**body | {"row": row})


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a request was not taken: the code, sentence and HTTP status of the AppError that it met."""

    code: str
    message: str
    status: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """One row that was not stored: where it stands and why."""

    line: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What became of a file. `bad` is capped; `refused` counts all of them."""

    import_id: int
    file: str
    rows: int
    stored: int
    duplicates: int
    refused: int
    scored: int
    alerts: int
    queued: int
    seconds: float
    bad: tuple[BadRow, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleHit:
    """A rule of the rule book that a transaction met, with the version that was in force."""

    code: str
    version: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreAnswer:
    """What the scoring API says about one transaction, ready for JSON."""

    id: int
    transaction_id: str
    state: str
    probability: float | None = None
    score: int | None = None
    band: str | None = None
    alert_id: int | None = None
    model_digest: str = ""
    scored_at: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueFilter:
    """Filters of the queue as they stand in its URL; empty means not filtered."""

    bands: tuple[int, ...] = ()
    state: str = ""
    mine: bool = False
    terminal: str = ""
    card: str = ""
    amount_from_cents: int | None = None
    amount_to_cents: int | None = None
    older_than_h: int | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputeReport:
    """The outcome of scoring an alert again from its stored states with its stored model."""

    identical: bool
    probability: float
    difference: float
    reasons_equal: bool
    at: datetime
    notes: tuple[str, ...] = field(default=())
