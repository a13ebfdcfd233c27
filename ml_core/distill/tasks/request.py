"""What a run of the benchmark asks for: names of cases and systems, where their files are, how much of it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """tasks: families, cases' names or parts of them. work: folder of ledger, logits, teachers and their caches.

    text_data, teacher, student: folders of the text family (teacher's and, optionally, the small student's weights);
    films, stem: folder of labelled films and file of ImageNet tensors. A family whose files are not named has no cases.
    general: folder of starts for the students that have no pretrained weights (recipes text_general_*).
    recorded: what the ledger in `work` holds, and no training.
    waits: False for one of several processes that shall stop, without results, when others are at all that is left.
    """

    tasks: tuple[str, ...]
    systems: tuple[str, ...] = ()
    seeds: int = 5
    quick: bool = False
    work: Path = Path("var/bench/distill")
    device: str = "auto"
    cached: bool = False
    graphs: bool = False
    text_data: Path | None = None
    teacher: Path | None = None
    student: Path | None = None
    general: Path | None = None
    films: Path | None = None
    stem: Path | None = None
    waits: bool = True
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was chosen on one task's dev split (`tuned_on`; empty: nothing was) and is used on all others.

    The logits' temperature and share are plain KD's best; FitNets and DFAD keep them and add alignment of weight alpha.
    """

    tuned_on: str = ""
    temperature: float = 2.0
    share: float = 0.5
    fitnets_alpha: float = 0.7
    minilm_alpha: float = 0.7
    dfad_alpha: float = 0.7


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """One named distillation: a case by its whole name, the system that teaches, and that system's settings."""

    name: str
    case: str
    system: str = "dfad"
    tuned: Tuned = Tuned()


@dataclass(frozen=True, kw_only=True)
class General:
    """General distillation of one text student from unlabelled text, before any task."""

    name: str
    student: str
    epochs: int = 8
    batch: int = 256
    rate: float = 5e-4
