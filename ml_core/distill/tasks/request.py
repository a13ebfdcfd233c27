"""What a run of the benchmark asks for: names of cases and systems, where their files are, how much of it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """tasks: families, cases' names or parts of them. work: folder of ledger, logits, teachers and their caches.

    text_data, teacher, student: folders of the text family (teacher's and, optionally, the small student's weights);
    films, stem: folder of labelled films and file of ImageNet tensors. A family whose files are not named has no cases.
    """

    tasks: tuple[str, ...]
    systems: tuple[str, ...] = ()
    seeds: int = 5
    quick: bool = False
    work: Path = Path("var/bench/distill")
    device: str = "auto"
    cached: bool = False
    text_data: Path | None = None
    teacher: Path | None = None
    student: Path | None = None
    films: Path | None = None
    stem: Path | None = None
