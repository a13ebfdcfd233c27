"""What other apps may know of a model version."""

from dataclasses import dataclass, field
from datetime import datetime

from ml_core.contracts import ModelKey


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """One registered model version. `state` is candidate, champion or retired; `metrics` as in the manifest."""

    id: int
    key: ModelKey
    name: str
    state: str
    created_at: datetime
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What a synchronisation with the shipped models did; digests by kind."""

    registered: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
