"""Declining what is no frontal chest film, on every folder of the shared radiology data.

A folder's row gives the share declined, with a 95 % interval over patients, cases or files. The summary rows give
precision and recall of declining (of what was declined, how much is no chest film; of what is none, how much was
declined), on pictures never learnt from and on all. The `train` splits of NIH, Hannover and VQA-RAD were learnt from,
and so were most pictures of cxr_batch_16: their rows say so. MedPix, never learnt from, shares some pictures with
VQA-RAD. Lateral films are chest films that the model does not draft well: a row of their own, in no summary. What
cannot be read is declined with the reader's reason and counted apart ("unreadable"): no success of the gate, and in no
summary either.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from testkit.shared import SHARED

from ml_core.evals.bench import meta
from ml_core.evals.report import SHIPPED, draft_files
from ml_core.serving.report import ReportDrafter

RADIOLOGY = SHARED / "data" / "radiology"
RESULT = Path(__file__).parent / "results" / "report-gate.json"
_SYSTEM = "assay int8"
_UNREADABLE = "The image cannot be read"
_CHEST_OBJECTS = ("pydicomdata_RG1_J2KI.dcm", "torchxrayvision_Fake_MONOHR1.dcm")  # by eye; one more chest is a dog's
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Pictures that are all frontal chest films (`chest`) or all something else; None: of both kinds or neither.

    `groups` has one name a path: what is resampled together. `learnt` where training saw them.
    """

    name: str
    paths: tuple[Path, ...]
    groups: tuple[str, ...]
    chest: bool | None
    learnt: bool = False


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the drafter did with a folder's pictures: those it could read, and how many of all it could not."""

    folder: Folder
    declined: np.ndarray
    groups: np.ndarray
    unreadable: int


def main() -> int:
    """Show every picture to the drafter, write the result file, print it as one line of JSON."""
    if not RADIOLOGY.is_dir():
        raise SystemExit(f"the shared data is not at {RADIOLOGY}")
    drafter = ReportDrafter(SHIPPED)
    answers = [_answers(drafter, folder) for folder in folders()]
    rows = [row for answer in answers for row in _rows(answer)]
    rows += summary("gate: pictures never learnt from", [one for one in answers if not one.folder.learnt])
    rows += summary("gate: all pictures", answers)
    about = meta("report-gate", packages=("torch", "timm", "pydicom")) | {"model_digest": drafter.digest}
    RESULT.write_text(json.dumps({"meta": about, "rows": rows}, indent=1) + "\n")
    print(json.dumps({"meta": about, "rows": rows}))
    return 0


def folders() -> list[Folder]:
    """All of the shared folders with pictures, told apart by what is on them and by whether training saw them."""
    return [*_films(), *_questions(), *_notes(), *_medpix(), *_objects()]


def _films() -> Iterable[Folder]:
    for name, patient in (("nih_cxr", "patient"), ("serial_cxr", "patient_id")):
        rows = _table(RADIOLOGY / name / "labels.csv")
        for split in ("val", "train"):
            own = [row for row in rows if row["split"] == split]
            paths = [RADIOLOGY / name / "images" / row["image"] for row in own]
            groups = [row[patient] for row in own]
            yield _folder(f"{name} {split}", paths, groups, chest=True, learnt=split == "train")


def _questions() -> Iterable[Folder]:
    about = {}
    for line in (RADIOLOGY / "vqa_rad" / "qa.jsonl").read_text().splitlines():
        question = json.loads(line)
        about[question["image"]] = (question["organ"] == "CHEST", question["split"])
    for split in ("val", "train"):
        for chest in (True, False):
            names = sorted(name for name, value in about.items() if value == (chest, split))
            paths = [RADIOLOGY / "vqa_rad" / "images" / name for name in names]
            label = f"vqa_rad {'chest' if chest else 'other'} {split}"
            yield _folder(label, paths, names, chest=chest, learnt=split == "train")


def _notes() -> Iterable[Folder]:
    views: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for row in map(json.loads, (RADIOLOGY / "cxr_notes" / "notes.jsonl").read_text().splitlines()):
        views[row["view"] != "L"][row["image"]] = row["patient"]
    for frontal, label in ((True, "cxr_notes frontal"), (False, "cxr_notes lateral")):
        paths = [RADIOLOGY / "cxr_notes" / "images" / name for name in views[frontal]]
        yield _folder(label, paths, list(views[frontal].values()), chest=True if frontal else None)


def _medpix() -> Iterable[Folder]:
    rows = [json.loads(line) for line in (RADIOLOGY / "medpix" / "images.jsonl").read_text().splitlines()]
    for kind in ("CT", "MR"):
        own = [row for row in rows if row["type"] == kind]
        paths = [RADIOLOGY / "medpix" / "images" / row["image"] for row in own]
        yield _folder(f"medpix {kind}", paths, [row["case"] for row in own], chest=False)


def _objects() -> Iterable[Folder]:
    dicom = RADIOLOGY / "dicom"
    valid = sorted((dicom / "valid").glob("*.dcm"))
    yield _files("dicom/valid chest", [dicom / "valid" / name for name in _CHEST_OBJECTS], chest=True)
    yield _files("dicom/valid other", [path for path in valid if path.name not in _CHEST_OBJECTS], chest=False)
    yield _files("dicom/series_mr16", sorted((dicom / "series_mr16").glob("*.dcm")), chest=False)
    rows = _table(dicom / "cxr_batch_16" / "truth.csv")
    yield _files("dicom/cxr_batch_16", [dicom / "cxr_batch_16" / row["file"] for row in rows], chest=True, learnt=True)
    yield _files("dicom/odd", sorted((dicom / "odd").glob("*.dcm")), chest=None)
    yield _files("dicom/malformed_made", sorted((dicom / "malformed_made").glob("*.dcm")), chest=None)


def _files(name: str, paths: list[Path], *, chest: bool | None, learnt: bool = False) -> Folder:
    return _folder(name, paths, [path.name for path in paths], chest=chest, learnt=learnt)


def _folder(name: str, paths: list[Path], groups: list[str], *, chest: bool | None, learnt: bool = False) -> Folder:
    if not paths:
        raise SystemExit(f"{name}: nothing there")
    return Folder(name=name, paths=tuple(paths), groups=tuple(groups), chest=chest, learnt=learnt)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _answers(drafter: ReportDrafter, folder: Folder) -> Answers:
    drafts = [item.draft for item in draft_files(drafter, folder.paths, root=RADIOLOGY)]
    read = np.asarray([not draft.declined_reason.startswith(_UNREADABLE) for draft in drafts])
    declined = np.asarray([draft.declined for draft in drafts])
    groups = np.asarray(folder.groups)
    return Answers(folder=folder, declined=declined[read], groups=groups[read], unreadable=int((~read).sum()))


def _rows(answer: Answers) -> list[dict[str, Any]]:
    case = f"gate: {answer.folder.name}" + (" (learnt from)" if answer.folder.learnt else "")
    rows = []
    if len(answer.declined):
        low, high = _interval(answer.declined, answer.groups)
        share = float(answer.declined.mean())
        rows.append(_row(case, "declined", share, low=low, high=high, n=len(answer.declined)))
    if answer.unreadable or not rows:
        shown = len(answer.declined) + answer.unreadable
        share = answer.unreadable / shown
        rows.append(_row(case, "unreadable", share, low=share, high=share, n=shown))
    return rows


def summary(case: str, answers: list[Answers]) -> list[dict[str, Any]]:
    """Precision and recall of declining over folders of a known kind."""
    known = [answer for answer in answers if answer.folder.chest is not None and len(answer.declined)]
    declined = np.concatenate([answer.declined for answer in known])
    other = np.concatenate([np.full(len(answer.declined), not answer.folder.chest) for answer in known])
    groups = np.concatenate([[f"{answer.folder.name}/{group}" for group in answer.groups] for answer in known])
    rows = []
    for metric, kept in (("precision of declining", declined), ("recall of declining", other)):
        right = (declined & other)[kept]
        low, high = _interval(right, groups[kept])
        rows.append(_row(case, metric, float(right.mean()), low=low, high=high, n=int(kept.sum())))
    return rows


def _interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean by bootstrap over groups."""
    _, at = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(at, weights=values), np.bincount(at)
    draws = np.random.default_rng(0).integers(len(counts), size=(_RESAMPLES, len(counts)))
    low, high = np.percentile(sums[draws].sum(1) / counts[draws].sum(1), [2.5, 97.5])
    return float(low), float(high)


def _row(case: str, metric: str, value: float, *, low: float, high: float, n: int) -> dict[str, Any]:
    common = {"case": case, "system": _SYSTEM, "metric": metric, "unit": "share"}
    return {**common, "value": value, "low": low, "high": high, "n": n}


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
