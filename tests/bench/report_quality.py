"""How good the shipped drafts are: findings on real films of patients never learnt from, simulated films, and the gate.

Real and simulated figures are separate cases and never mixed. Every table holds the constant report ("no finding") and
a random label set of the training films. Intervals are 95 % bootstraps over patients.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from testkit.shared import SHARED

from ml_core.contracts import Draft, DraftRequest, ImageInput, ModelKey, ModelKind, StudyInput
from ml_core.data.chest import LabelledFilm, folder_read, label_vector
from ml_core.data.findings import FINDINGS, INDEX, NO_FINDING
from ml_core.data.phantom import Film, render
from ml_core.data.phantom_dicom import Patient, StudyHeader, datetime, to_dicom
from ml_core.evals.bench import meta
from ml_core.evals.report import LEAST_POSITIVES, SHIPPED, draft_files, f1_interval, stated_vector
from ml_core.serving.report import ReportDrafter

RADIOLOGY = SHARED / "data" / "radiology"
RESULT = Path(__file__).parent / "results" / "report-quality.json"
_FIRST_SEED, _SIMULATED = 970_000_000, 160  # far from every seed that the recipe uses


def main() -> int:
    """Draft, measure, write the result file, print it as one line of JSON."""
    if not RADIOLOGY.is_dir():
        raise SystemExit(f"the shared data is not at {RADIOLOGY}")
    drafter = ReportDrafter(SHIPPED)
    rows = [*_real(drafter), *_simulated(drafter), *_gate(drafter)]
    about = meta("report-quality", packages=("torch", "timm", "pydicom")) | {"model_digest": drafter.digest}
    result = {"meta": about, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _real(drafter: ReportDrafter) -> list[dict[str, Any]]:
    folder = RADIOLOGY / "nih_cxr"
    films = folder_read(folder / "labels.csv", images=folder / "images", split="val")
    train = folder_read(folder / "labels.csv", images=folder / "images", split="train")
    drafted = draft_files(drafter, [film.path for film in films], root=folder / "images")
    truth = np.stack([label_vector(film.names) for film in films])
    patients = np.asarray([film.patient for film in films])
    systems = {"assay int8": np.stack([stated_vector(item.draft) for item in drafted]), **_nothing(truth, train)}
    rows = []
    for system, stated in systems.items():
        rows += _table("real: NIH val", system, truth, stated, patients)
        for view in ("AP", "PA"):
            own = np.asarray([film.view == view for film in films])
            rows += _table(f"real: NIH val {view}", system, truth[own], stated[own], patients[own], only_micro=truth)
    declined = sum(item.draft.declined for item in drafted)
    return [*rows, _row("real: NIH val", "assay int8", "declined", declined / len(films), "share", n=len(films))]


def _simulated(drafter: ReportDrafter) -> list[dict[str, Any]]:
    films = [render(_FIRST_SEED + index, size=512) for index in range(_SIMULATED)]
    drafts = _draft(drafter, {str(film.seed): _bytes(film) for film in films})
    truth = np.zeros((len(films), len(FINDINGS)), dtype=np.float32)
    for row, film in enumerate(films):
        for name, state in film.report.states.items():
            truth[row, INDEX[name]] = state.value == "positive"
    patients = np.arange(len(films))
    rng = np.random.default_rng(0)
    systems = {"assay int8": np.stack([stated_vector(draft) for draft in drafts])}
    systems["constant report"] = _constant(truth)
    systems["random simulated report"] = truth[rng.permutation(len(truth))]
    rows = [row for name, stated in systems.items() for row in _table("simulated", name, truth, stated, patients)]
    hits, overlaps = _places(films, drafts)
    rows.append(_row("simulated", "assay int8", "box centre in truth", float(np.mean(hits)), "share", n=len(hits)))
    rows.append(_row("simulated", "assay int8", "box IoU", float(np.mean(overlaps)), "iou", n=len(overlaps)))
    return rows


def _places(films: list[Film], drafts: list[Draft]) -> tuple[list[bool], list[float]]:
    """For findings stated and there, once a film: whether the box's centre lies in the true box, and their IoU."""
    hits, overlaps = [], []
    for film, draft in zip(films, drafts, strict=True):
        boxes = {sentence.finding: sentence.box for sentence in draft.sentences if sentence.box}
        for finding in film.findings:
            twins = [other for other in film.findings if other.name == finding.name]
            if finding.name not in boxes or len(twins) > 1:
                continue
            (x, y, w, h), (a, b, c, d) = finding.box, boxes[finding.name]
            hits.append(x <= a + c / 2 <= x + w and y <= b + d / 2 <= y + h)
            both = max(0.0, min(x + w, a + c) - max(x, a)) * max(0.0, min(y + h, b + d) - max(y, b))
            overlaps.append(both / (w * h + c * d - both))
    return hits, overlaps


def _gate(drafter: ReportDrafter) -> list[dict[str, Any]]:
    """Real pictures of the val splits and of the DICOM folders; only folders that are surely one or the other."""
    with (RADIOLOGY / "dicom" / "valid" / "index.csv").open(newline="") as stream:
        slices = [row["file"] for row in csv.DictReader(stream) if row["modality"] in ("CT", "MR")]
    organs: dict[str, str] = {}
    for line in (RADIOLOGY / "vqa_rad" / "qa.jsonl").read_text().splitlines():
        question = json.loads(line)
        if question["split"] == "val":
            organs[question["image"]] = question["organ"]
    with (RADIOLOGY / "serial_cxr" / "labels.csv").open(newline="") as stream:
        series = [row["image"] for row in csv.DictReader(stream) if row["split"] == "val"]
    vqa = RADIOLOGY / "vqa_rad" / "images"
    chest = [RADIOLOGY / "serial_cxr" / "images" / name for name in series]
    chest += [vqa / name for name, organ in organs.items() if organ == "CHEST"]
    chest += sorted((RADIOLOGY / "dicom" / "cxr_batch_16").glob("*.dcm"))
    other = [RADIOLOGY / "dicom" / "valid" / name for name in slices]
    other += sorted((RADIOLOGY / "dicom" / "series_mr16").glob("*.dcm"))
    other += [vqa / name for name, organ in organs.items() if organ != "CHEST"]
    kept = [not draft.declined for draft in _draft(drafter, {str(path): path.read_bytes() for path in chest})]
    let = [not draft.declined for draft in _draft(drafter, {str(path): path.read_bytes() for path in other})]
    precision = sum(kept) / max(1, sum(kept) + sum(let))
    return [
        _row("gate: real pictures", "assay int8", "recall of chest films", sum(kept) / len(kept), "share", n=len(kept)),
        _row("gate: real pictures", "assay int8", "precision", precision, "share", n=len(kept) + len(let)),
        _row("gate: real pictures", "assay int8", "others declined", 1 - sum(let) / len(let), "share", n=len(let)),
    ]


def _table(
    case: str,
    system: str,
    truth: np.ndarray,
    stated: np.ndarray,
    patients: np.ndarray,
    *,
    only_micro: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    counts = (truth if only_micro is None else only_micro).sum(0)
    columns = [index for index in range(len(FINDINGS)) if counts[index] > LEAST_POSITIVES]
    parts = {"micro": columns} | ({} if only_micro is not None else {FINDINGS[index]: [index] for index in columns})
    rows = []
    for name, chosen in parts.items():
        figure = f1_interval(truth, stated, columns=chosen, patients=patients)
        n = int(truth[:, chosen].sum())
        rows.append(_row(case, system, f"F1 {name}", figure["f1"], "f1", low=figure["low"], high=figure["high"], n=n))
    return rows


def _nothing(truth: np.ndarray, train: list[LabelledFilm]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    picks = rng.integers(len(train), size=len(truth))
    return {
        "constant report": _constant(truth),
        "random training labels": np.stack([label_vector(train[pick].names) for pick in picks]),
    }


def _constant(truth: np.ndarray) -> np.ndarray:
    stated = np.zeros_like(truth)
    stated[:, INDEX[NO_FINDING]] = 1
    return stated


def _bytes(film: Film) -> bytes:
    patient = Patient(id=f"B{film.seed}", name="Bench^Film", sex=film.body.sex, birth="19600101")
    return to_dicom(film, patient=patient, study=StudyHeader(key=str(film.seed), at=datetime(2026, 1, 1)))


def _draft(drafter: ReportDrafter, files: dict[str, bytes]) -> list[Draft]:
    key = ModelKey(kind=ModelKind.REPORT, digest=drafter.digest, folder="")
    studies = tuple(StudyInput(key=name, images=(ImageInput(key=name, encoded=body),)) for name, body in files.items())
    return list(drafter.draft(DraftRequest(model=key, studies=studies)).drafts)


def _row(
    case: str,
    system: str,
    metric: str,
    value: float,
    unit: str,
    *,
    n: int,
    low: float | None = None,
    high: float | None = None,
) -> dict[str, Any]:
    return {
        "case": case,
        "system": system,
        "metric": metric,
        "value": value,
        "unit": unit,
        "low": value if low is None else low,
        "high": value if high is None else high,
        "n": n,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
