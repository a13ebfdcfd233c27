"""How rows of radiology are put on pages: lists, what a search found, the series strip, sentences, metadata."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.http import QueryDict
from django.urls import reverse

from apps.radiology.models import DraftState, Instance, Report, ReportState, Study
from apps.radiology.rules.drafting import draft_summary_of
from apps.radiology.selectors import TextFound

_LEVELS = ("STAT", "urgent", "routine")


def list_row(study: Study, *, at: datetime) -> dict[str, Any]:
    """One line of the reading list; `study` carries the annotations of selectors.reading_list."""
    row = study.__dict__
    return {
        "study": study,
        "priority": _LEVELS[study.priority],
        "waits": (at - study.arrived_at).total_seconds(),
        "lifted": bool(row["lifted"]) and study.priority != 0,
        "title": study_title(study),
        "person": person_words(study),
        "images": row["images"],
        "says": _says(row),
        "declined": row["draft_declined"],
        "state": ReportState(row["report_state"]).label if row["report_state"] else _work_state(row["draft_state"]),
        "final": row["report_state"] == ReportState.FINAL,
    }


def found_rows(texts: Sequence[TextFound], *, sentences: int = 2) -> list[dict[str, Any]]:
    """Lines of found texts: the study, its state, and the first sentences that hold the words."""
    return [
        {
            "study": one.study,
            "title": study_title(one.study),
            "person": person_words(one.study),
            "state": one.state,
            "final": one.state == ReportState.FINAL.label,
            "quote": " … ".join(one.sentences[:sentences]),
        }
        for one in texts
    ]


def study_title(study: Study) -> str:
    """What was examined, as the study says it."""
    return study.description or " ".join(part for part in (study.modality, study.body_part.lower()) if part)


def person_words(study: Study) -> str:
    """Age and sex: `61 F`, `5 months M`; a DICOM age is three digits and D, W, M or Y (PS3.5 6.2)."""
    number, unit = study.age[:-1], study.age[-1:]
    words = {"Y": "", "M": " months", "W": " weeks", "D": " days"}
    age = f"{int(number)}{words[unit]}" if number.isdecimal() and unit in words else ""
    return f"{age} {study.patient.sex}".strip()


def filter_chips(query: QueryDict, *, counts: dict[str, int]) -> list[dict[str, Any]]:
    """The filters above the list, each with its count, its link and whether it is on."""
    here = query.get("priority", "")
    chips = [
        {"name": word, "count": counts[word.lower()], "query": f"priority={word.lower()}", "on": here == word.lower()}
        for word in _LEVELS
    ]
    mine = query.get("mine") == "1"
    signed = query.get("state") == "final"
    chips.append({"name": "mine", "count": counts["mine"], "query": "mine=1", "on": mine})
    chips.append({"name": "signed", "count": None, "query": "state=final", "on": signed})
    everything = not here and not mine and not signed
    return [{"name": "all open", "count": counts["open"], "query": "", "on": everything}, *chips]


def report_rows(report: Report) -> list[dict[str, Any]]:
    """The sentences with their place in the list, and whether each still asks to be confirmed or cut."""
    return [
        {**one, "source": index, "asks": not one.get("supported", True) and not one.get("confirmed", False)}
        for index, one in enumerate(report.sentences)
    ]


def strip_rows(study: Study, images: list[Instance]) -> list[dict[str, Any]]:
    """The images as the viewer wants them: addresses, labels, and why one cannot be shown."""
    return [
        {
            "key": image.sop_uid,
            "series": image.series.uid,
            "label": image.view or image.laterality or f"{image.modality} {image.number or ''}".strip(),
            "frames": image.frames,
            "displayable": image.displayable,
            "reason": image.reason,
            "metadata": _address("metadata", study, image) if image.displayable else "",
            "thumbnail": _address("thumbnail", study, image) if image.displayable else "",
        }
        for image in images
    ]


def instance_metadata(image: Instance) -> dict[str, Any]:
    """DICOM JSON of the display frames (not of the file): what was decoded once at intake, ready to be shown."""
    colour = image.samples == 3
    return {
        "00080018": _value("UI", image.sop_uid),
        "00080060": _value("CS", image.modality),
        "0020000D": _value("UI", image.series.study.uid),
        "0020000E": _value("UI", image.series.uid),
        "00200013": _value("IS", image.number),
        "00280002": _value("US", image.samples),
        "00280004": _value("CS", "RGB" if colour else "MONOCHROME1" if image.inverted else "MONOCHROME2"),
        "00280006": _value("US", 0),
        "00280008": _value("IS", image.frames),
        "00280010": _value("US", image.rows),
        "00280011": _value("US", image.columns),
        "00280100": _value("US", image.bits),
        "00280101": _value("US", image.bits),
        "00280102": _value("US", image.bits - 1),
        "00280103": _value("US", int(image.signed)),
        "00281050": {"vr": "DS", "Value": [window["center"] for window in image.windows]},
        "00281051": {"vr": "DS", "Value": [window["width"] for window in image.windows]},
        "00281052": _value("DS", image.intercept),
        "00281053": _value("DS", image.slope),
        "00281055": {"vr": "LO", "Value": [window["name"] or "as sent" for window in image.windows]},
        "00281056": _value("CS", image.windows[0]["function"] if image.windows else "LINEAR"),
        "00280106": _value("DS", image.low),
        "00280107": _value("DS", image.high),
    }


def _value(vr: str, value: object) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _address(view: str, study: Study, image: Instance) -> str:
    return reverse(f"radiology:{view}", args=[study.uid, image.series.uid, image.sop_uid])


def _says(row: dict[str, Any]) -> str:
    state = row["draft_state"]
    if state is None:
        return "no draft"
    if state == DraftState.DONE:
        return f"declined: {row['draft_reason']}" if row["draft_declined"] else draft_summary_of(row["draft_findings"])
    if state in (DraftState.FAILED, DraftState.LOST):
        return f"failed: {row['draft_error']}"
    return "drafting" if state == DraftState.RUNNING else "waits for a draft"


def _work_state(draft_state: str | None) -> str:
    return "drafting" if draft_state in (DraftState.QUEUED, DraftState.RUNNING) else "to read"
