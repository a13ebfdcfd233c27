"""Which studies are drafted, how they are grouped into calls, and what a draft becomes in the report."""

from collections.abc import Sequence
from typing import Any, TypeVar

from ml_core.contracts import Draft, FindingState

IMAGES_A_CALL = 16
_NOT_FILMS = {
    "CT", "MR", "US", "NM", "PT", "MG", "SM", "SEG", "XA", "RF", "RTIMAGE", "RTDOSE", "RTPLAN", "RTSTRUCT", "SR", "ECG",
    "OP", "OPT", "ES", "XC", "IVUS", "IO", "PX", "BMD", "ANN",
}  # fmt: skip
_PRESSING = {"pneumothorax", "edema", "pneumonia", "lung lesion"}
_SURE = 0.5
_TEXT_LIMIT = 2_000
T = TypeVar("T")


def decline_reason(modality: str) -> str:
    """Why no draft is made for this modality; empty where the model is asked."""
    if modality.upper() not in _NOT_FILMS:
        return ""
    return f"{modality.upper()} is not a chest radiograph: drafts are made for chest radiographs only."


def grouped(counts: Sequence[tuple[T, int]], *, most: int = IMAGES_A_CALL) -> list[T]:
    """The first studies, in order, whose images together fit one call; at least one study."""
    taken: list[T] = []
    room = most
    for study, images in counts:
        if taken and images > room:
            break
        taken.append(study)
        room -= images
    return taken


def ai_flag(draft: Draft) -> str:
    """The pressing findings that the draft calls positive, most probable first; empty where there are none."""
    found = [
        finding
        for finding in draft.findings
        if finding.name.lower() in _PRESSING and finding.state == FindingState.POSITIVE and finding.probability >= _SURE
    ]
    found.sort(key=lambda finding: -finding.probability)
    return ", ".join(finding.name.lower() for finding in found)


def draft_summary_of(findings: Sequence[dict[str, Any]]) -> str:
    """The positive findings (the contract's dataclasses as JSON) in words, most probable first, for a list."""
    positive = [one for one in findings if one["state"] == FindingState.POSITIVE]
    positive.sort(key=lambda one: -float(one["probability"]))
    names = [str(one["name"]).lower() for one in positive if str(one["name"]).lower() != "no finding"]
    return ", ".join(names[:3]) or "no finding"


def report_sentences(draft: Draft) -> list[dict[str, Any]]:
    """The draft's sentences as the report keeps them.

    A sentence has support when it denies a finding (there is nothing to point at), or when the model is sure of it and
    it points at a region or names no finding.
    """
    states = {finding.name.lower(): finding.state for finding in draft.findings}
    rows = []
    for sentence in draft.sentences:
        denied = states.get(sentence.finding.lower()) in (FindingState.NEGATIVE, FindingState.ABSENT)
        shown = sentence.box is not None or not sentence.finding
        rows.append(
            {
                "section": sentence.section.value,
                "text": sentence.text[:_TEXT_LIMIT],
                "confidence": round(sentence.confidence, 4),
                "finding": sentence.finding,
                "image_key": sentence.image_key,
                "box": list(sentence.box) if sentence.box else None,
                "supported": denied or (shown and sentence.confidence >= _SURE),
                "confirmed": False,
                "origin": "draft",
            }
        )
    return rows
