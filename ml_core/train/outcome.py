"""What a student's run function hands back to the runner."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """The artifact written, and its metrics beside the champion's on the same held-out data (None: no champion)."""

    digest: str
    artifact: Path
    candidate: Mapping[str, float]
    champion: Mapping[str, float] | None = None
