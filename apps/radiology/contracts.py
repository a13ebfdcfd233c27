"""What radiology hands across its border and between its modules."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class FileResult:
    """What became of one file: `status` is a FileStatus, `reason` a sentence (empty where all is well)."""

    file: str
    status: str
    reason: str = ""

    @property
    def row(self) -> dict[str, str]:
        """As the scripts' contract has it."""
        return {"file": self.file, "status": self.status, "reason": self.reason}


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchResult:
    """A batch that was handled. `drafts` says what became of the drafting: queued, done, waiting or none."""

    batch_id: int
    files: tuple[FileResult, ...]
    studies: int
    images: int
    drafts: str = "none"
    seconds: float = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """How many files of each status, every status named."""
        found = Counter(result.status for result in self.files)
        return {name: found[name] for name in ("stored", "duplicate", "quarantined", "not_displayable", "refused")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Whether a signed report still is what was signed; `faults` are sentences."""

    intact: bool
    faults: tuple[str, ...] = field(default=())
