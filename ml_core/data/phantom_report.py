"""Reports on simulated films in varied radiologists' wording: one sentence a finding, each with its state known."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ml_core.contracts import FindingState, Section
from ml_core.data.findings import FINDINGS, NO_FINDING
from ml_core.data.phantom_wording import DEVICES, IMPRESSION, MENTIONED, NEGATIVE, POSITIVE, UNCERTAIN, WHOLE_NORMAL


class Shown(Protocol):
    """What the wording needs to know of a finding."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def side(self) -> str: ...
    @property
    def zone(self) -> str: ...
    @property
    def severity(self) -> float: ...
    @property
    def uncertain(self) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """A finding known only by name (labels without place or size)."""

    name: str
    kind: str = ""
    side: str = ""
    zone: str = ""
    severity: float = 0.0
    uncertain: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSentence:
    """One sentence, the finding that it is about and what it says of it."""

    section: Section
    finding: str
    state: FindingState
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A whole report, in order."""

    sentences: tuple[ReportSentence, ...]

    @property
    def states(self) -> dict[str, FindingState]:
        """State of each of the 14 findings as the report says it."""
        said = dict.fromkeys(FINDINGS, FindingState.ABSENT)
        for sentence in self.sentences:
            said[sentence.finding] = sentence.state
        return said

    @property
    def text(self) -> str:
        """Findings, an empty line, impression."""
        parts = []
        for section in Section:
            body = " ".join(sentence.text for sentence in self.sentences if sentence.section is section)
            parts.append(f"{section.value.upper()}: {body}")
        return "\n\n".join(parts)


ORDER: tuple[str, ...] = (
    "Support Devices", "Lung Opacity", "Consolidation", "Pneumonia", "Atelectasis", "Edema", "Lung Lesion",
    "Pleural Effusion", "Pneumothorax", "Pleural Other", "Cardiomegaly", "Enlarged Cardiomediastinum", "Fracture",
)  # fmt: skip

# Nobody writes "the lungs are clear" beside one of these.
_LUNG = {"Consolidation", "Pneumonia", "Atelectasis", "Edema", "Lung Lesion"}


def report_write(shown: tuple[Shown, ...], rng: np.random.Generator) -> Report:
    """A report that mentions everything shown, and some of what is not there."""
    by_name: dict[str, list[Shown]] = {}
    for item in shown:
        by_name.setdefault(item.name, []).append(item)
    ill = [name for name in by_name if name not in ("Support Devices", NO_FINDING)]
    sentences = []
    for name in ORDER:
        if name in by_name:
            sentences += _stated(name, by_name[name], rng)
        elif rng.random() < MENTIONED[name] and not (name == "Lung Opacity" and _LUNG & by_name.keys()):
            text = _pick(NEGATIVE[name], rng)
            state = FindingState.NEGATIVE
            sentences.append(ReportSentence(section=Section.FINDINGS, finding=name, state=state, text=text))
    sentences += _impression(by_name, ill, rng)
    return Report(sentences=tuple(sentences))


def _stated(name: str, items: list[Shown], rng: np.random.Generator) -> list[ReportSentence]:
    state = FindingState.UNCERTAIN if all(item.uncertain for item in items) else FindingState.POSITIVE
    sentences = []
    seen: set[str] = set()
    for item in items:
        if item.kind in seen:
            continue
        seen.add(item.kind)
        if name == "Support Devices":
            bank = DEVICES[item.kind]
        else:
            bank = (UNCERTAIN if state is FindingState.UNCERTAIN else POSITIVE)[name]
        text = _fill(_pick(bank, rng), item, rng)
        sentences.append(ReportSentence(section=Section.FINDINGS, finding=name, state=state, text=text))
    return sentences


def _impression(by_name: dict[str, list[Shown]], ill: list[str], rng: np.random.Generator) -> list[ReportSentence]:
    if not ill:
        text = _pick(WHOLE_NORMAL, rng)
        return [ReportSentence(section=Section.IMPRESSION, finding=NO_FINDING, state=FindingState.POSITIVE, text=text)]
    sentences = []
    for name in (name for name in ORDER if name in ill):
        items = by_name[name]
        uncertain = all(item.uncertain for item in items)
        bank = UNCERTAIN[name] if uncertain else IMPRESSION[name]
        state = FindingState.UNCERTAIN if uncertain else FindingState.POSITIVE
        text = _fill(_pick(bank, rng), items[0], rng)
        sentences.append(ReportSentence(section=Section.IMPRESSION, finding=name, state=state, text=text))
    return sentences


def _pick(bank: tuple[str, ...], rng: np.random.Generator) -> str:
    return bank[int(rng.integers(len(bank)))]


def _fill(template: str, item: Shown, rng: np.random.Generator) -> str:
    """Put side, place and size into a template; what is not known leaves no gap."""
    text = _choose(template, int(item.side == "bilateral"))
    text = text.replace("{side} ", f"{item.side} " if item.side else "")
    text = text.replace(" {in}", _where(item, rng)).replace("{size} ", _size(item.severity, rng))
    return text[0].upper() + text[1:]


def _choose(text: str, index: int) -> str:
    while "[" in text:
        before, rest = text.split("[", 1)
        inner, after = rest.split("]", 1)
        text = before + inner.split("|")[index] + after
    return text


def _size(severity: float, rng: np.random.Generator) -> str:
    if severity <= 0:
        return ""
    words = (("small ", "mild ", "minor "), ("moderate ", "moderate ", ""), ("large ", "marked ", "extensive "))
    return words[0 if severity < 0.4 else 1 if severity < 0.72 else 2][0 if rng.random() < 0.7 else 1]


def _where(item: Shown, rng: np.random.Generator) -> str:
    if not item.side:
        return ""
    if item.side == "bilateral":
        return {"lower": " at both lung bases", "mid": " in both mid lungs", "upper": " in both upper lobes"}.get(
            item.zone, " in both lungs"
        )
    if item.zone == "lower":
        return f" {('at the', 'in the')[int(rng.random() < 0.4)]} {item.side} lung base"
    if item.zone:
        return f" in the {item.side} {item.zone} lung zone"
    return f" on the {item.side}"
