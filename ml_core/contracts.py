"""What crosses the border between the platform and the engine: frozen dataclasses, standard library only.

Units: money is whole cents (int), times are whole seconds since 1970-01-01T00:00:00Z (int), probabilities lie in
[0, 1], boxes are (x, y, width, height) as fractions of the image, origin at the top left.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class ModelKind(StrEnum):
    """The two students that Assay serves."""

    FRAUD = "fraud"
    REPORT = "report"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelKey:
    """Which model to run: its kind, the SHA-256 digest of its manifest (64 hex) and the folder that holds it."""

    kind: ModelKind
    digest: str
    folder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDescription:
    """What an artifact's manifest says, readable without loading weights. `metrics` maps name to value."""

    kind: ModelKind
    digest: str
    folder: str
    name: str
    recipe: str
    created: str
    parameters: int
    size_bytes: int
    teacher_digest: str = ""
    data_digest: str = ""
    git_revision: str = ""
    licence: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    card: str = ""


# ---------------------------------------------------------------- fraud


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """One card transaction. `card` and `terminal` are opaque keys (a card number never comes here).

    `label` is the truth where the source already carries it (history, imports): it takes effect in the features
    only from `label_known_at` on (None: never). `utc_offset_s` turns `at` into the terminal's local time.
    """

    id: str
    at: int
    card: str
    terminal: str
    amount_cents: int
    currency: str = "EUR"
    utc_offset_s: int = 0
    label: bool | None = None
    label_known_at: int | None = None
    extras: dict[str, str | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A truth that became known later (a disposition, a chargeback) about a transaction already scored."""

    transaction_id: str
    at: int
    card: str
    terminal: str
    fraud: bool
    known_at: int


class EntityKind(StrEnum):
    """What a state belongs to."""

    CARD = "card"
    TERMINAL = "terminal"


@dataclass(frozen=True, kw_only=True, slots=True)
class EntityState:
    """The state machine's memory of one card or terminal, as versioned bytes; empty bytes mean a new entity."""

    kind: EntityKind
    key: str
    data: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """Score `transactions` (sorted by `at`, ties by id) given the states of every card and terminal they touch.

    `labels` are applied before scoring. Reasons are computed for transactions whose probability is at least
    `explain_from` (1.1: for none). `engine`: which is to compute, by the name that a result has; empty for the one that
    serves here.
    """

    model: ModelKey
    transactions: tuple[Transaction, ...]
    states: tuple[EntityState, ...] = ()
    labels: tuple[Label, ...] = ()
    explain_from: float = 1.1
    engine: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One share of a score. `points` are points of the 0-100 score, signed; they and the base sum to the score."""

    feature: str
    text: str
    points: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Counterfactual:
    """The smallest plausible change of one thing that would have brought the score below the alert threshold."""

    feature: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The answer for one transaction. `features` is the snapshot that the reasons speak of (empty if unexplained)."""

    transaction_id: str
    probability: float
    base_points: float = 0.0
    reasons: tuple[Reason, ...] = ()
    counterfactuals: tuple[Counterfactual, ...] = ()
    features: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreResult:
    """Scores in the order of the request, the states to write back (only those that changed), and who computed it.

    `engine`: engines differ by the rounding of floats, so a score is found again by the same one alone. features_s,
    reasons_s: what of `seconds` went into states and features, and into explanations; the rest is the model's.
    """

    model_digest: str
    scores: tuple[Score, ...]
    states: tuple[EntityState, ...]
    seconds: float
    engine: str = ""
    features_s: float = 0.0
    reasons_s: float = 0.0


# ---------------------------------------------------------------- radiology


class Section(StrEnum):
    """Section of a report."""

    FINDINGS = "findings"
    IMPRESSION = "impression"


class FindingState(StrEnum):
    """What a report says of a finding (CheXpert's four states)."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """One image: `encoded` holds a DICOM Part 10 file, a PNG or a JPEG (told apart by content); first frame counts."""

    key: str
    encoded: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyInput:
    """The 1..16 images of one study, in display order."""

    key: str
    images: tuple[ImageInput, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftRequest:
    """Draft a report for each study; images of all studies together go through the model in calls of up to 16."""

    model: ModelKey
    studies: tuple[StudyInput, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One of the 14 CheXpert findings with the model's probability that it is present."""

    name: str
    state: FindingState
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """One sentence of a draft; `box` says where on image `image_key` its support lies (None: no support)."""

    section: Section
    text: str
    confidence: float
    finding: str = ""
    image_key: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The draft for one study, or why it was declined (`declined_reason` is a sentence for the radiologist)."""

    study_key: str
    declined: bool
    declined_reason: str = ""
    findings: tuple[Finding, ...] = ()
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftResult:
    """Drafts in the order of the request."""

    model_digest: str
    drafts: tuple[Draft, ...]
    seconds: float


# ---------------------------------------------------------------- training runs


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """What `python -m ml_core train FOLDER` runs: FOLDER/spec.json is exactly this as JSON.

    `inputs` maps a name that the recipe expects to a path relative to FOLDER (or absolute); `parent` is the folder
    of the champion to compare with (empty: none). Results: FOLDER/events.jsonl, FOLDER/checkpoints/, FOLDER/artifact/.
    """

    kind: ModelKind
    recipe: str
    seed: int = 0
    params: dict[str, int | float | str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    parent: str = ""


class RunEventKind(StrEnum):
    """Kinds of line in events.jsonl; every line also has `kind` and `at` (float seconds since 1970)."""

    STAGE = "stage"  # name, index (from 1), of
    STEP = "step"  # step, steps, epoch, epochs, loss, alpha, lr, align: {token, layer, global}
    EVAL = "eval"  # split, metrics: {name: value}
    LOG = "log"  # text
    HEARTBEAT = "heartbeat"  # nothing more; at least every 5 s
    DONE = "done"  # digest, artifact (folder), metrics: {candidate: {...}, champion: {...}|null}
    FAILED = "failed"  # error
