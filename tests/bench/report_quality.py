"""How good the shipped drafts are: what their text states, on real films of patients never learnt from, and simulated.

Real and simulated figures are separate cases and never mixed. Every table holds the constant report ("no finding") and
a random label set of the training films. Findings with 10 or fewer positives are not assessed. Intervals are 95 %
bootstraps over patients. Simulated films say in their DICOM header that they are, and are judged by the rules chosen on
simulated films; the row "rules for real films" is the same model without that. Declining is measured by report-gate.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from testkit.shared import SHARED

from ml_core.contracts import Draft, DraftRequest, FindingState, ImageInput, ModelKey, ModelKind, StudyInput
from ml_core.data.chest import LabelledFilm, folder_read, label_vector
from ml_core.data.findings import FINDINGS, INDEX, NO_FINDING
from ml_core.data.labeller import sentences_split, sides_of
from ml_core.data.labeller_sides import BOTH
from ml_core.data.phantom import Film, render
from ml_core.data.phantom_dicom import Patient, StudyHeader, datetime, to_dicom
from ml_core.evals.bench import meta
from ml_core.evals.report import LEAST_POSITIVES, SHIPPED, draft_files, draft_text, f1_interval, f1_micro, stated_vector
from ml_core.seed import numpy_generator
from ml_core.serving.report import ReportDrafter

RADIOLOGY = SHARED / "data" / "radiology"
RESULT = Path(__file__).parent / "results" / "report-quality.json"
_FIRST_SEED, _SIMULATED = 970_000_000, 160  # far from every seed that the recipe uses
_RESAMPLES = 1000


def main() -> int:
    """Draft, measure, write the result file, print it as one line of JSON."""
    if not RADIOLOGY.is_dir():
        raise SystemExit(f"the shared data is not at {RADIOLOGY}")
    drafter = ReportDrafter(SHIPPED)
    rows = [*_real(drafter), *_simulated(drafter)]
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
    bodies = {str(film.seed): _bytes(film) for film in films}
    drafts = _draft(drafter, bodies)
    truth = np.zeros((len(films), len(FINDINGS)), dtype=np.float32)
    for row, film in enumerate(films):
        for name, state in film.report.states.items():
            truth[row, INDEX[name]] = state.value == "positive"
    patients = np.arange(len(films))
    rng = np.random.default_rng(0)
    systems = {"assay int8": np.stack([stated_vector(draft) for draft in drafts])}
    as_real = ReportDrafter(SHIPPED)
    as_real.rules = replace(as_real.rules, simulated={})
    systems["assay int8, rules for real films"] = np.stack([stated_vector(draft) for draft in _draft(as_real, bodies)])
    systems["constant report"] = _constant(truth)
    systems["random simulated report"] = truth[rng.permutation(len(truth))]
    rows = [row for name, stated in systems.items() for row in _table("simulated", name, truth, stated, patients)]
    hits, overlaps = _places(films, drafts)
    rows.append(_row("simulated", "assay int8", "box centre in truth", float(np.mean(hits)), "share", n=len(hits)))
    rows.append(_row("simulated", "assay int8", "box IoU", float(np.mean(overlaps)), "iou", n=len(overlaps)))
    return [*rows, *_sides(films, drafts)]


def _sides(films: list[Film], drafts: list[Draft]) -> list[dict[str, Any]]:
    """Of findings stated and there whose side is known: the same sides, no side named, left taken for right."""
    counts = {"side as in truth": 0, "no side named": 0, "left for right": 0}
    n = 0
    for film, draft in zip(films, drafts, strict=True):
        sentences = sentences_split(draft_text(draft))
        for name, sides in _true_sides(film).items():
            if not any(each.name == name and each.state is FindingState.POSITIVE for each in draft.findings):
                continue
            said = frozenset().union(*(sides_of(sentence, finding=name) for sentence in sentences))
            n += 1
            counts["side as in truth"] += said == sides
            counts["no side named"] += not said
            counts["left for right"] += len(said) == 1 and len(sides) == 1 and said != sides
    return [_row("simulated", "assay int8", name, count / n, "share", n=n) for name, count in counts.items()]


def _true_sides(film: Film) -> dict[str, frozenset[str]]:
    sides: dict[str, frozenset[str]] = {}
    for finding in film.findings:
        own = BOTH if finding.side == "bilateral" else frozenset({finding.side} - {""})
        sides[finding.name] = sides.get(finding.name, frozenset()) | own
    return {name: own for name, own in sides.items() if own}


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
    if only_micro is not None:
        return rows
    measures: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], float]]] = {
        "F1 macro": ("f1", lambda t, s: float(np.mean([f1_micro(t, s, [column]) for column in range(t.shape[1])]))),
        "false findings a report": ("count", lambda t, s: float((s * (1 - t)).sum(1).mean())),
        "missed findings a report": ("count", lambda t, s: float((t * (1 - s)).sum(1).mean())),
    }
    for name, (unit, measure) in measures.items():
        value, low, high = _drawn(truth[:, columns], stated[:, columns], patients, measure)
        rows.append(_row(case, system, name, value, unit, low=low, high=high, n=len(truth)))
    return rows


def _drawn(
    truth: np.ndarray, stated: np.ndarray, patients: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]
) -> tuple[float, float, float]:
    """The measure and its 95 % interval by bootstrap over patients."""
    _, group = np.unique(patients, return_inverse=True)
    own = [np.flatnonzero(group == index) for index in range(int(group.max()) + 1)]
    picks = numpy_generator(0, "report", "bootstrap").integers(len(own), size=(_RESAMPLES, len(own)))
    drawn = [measure(truth[rows], stated[rows]) for rows in (np.concatenate([own[i] for i in pick]) for pick in picks)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return measure(truth, stated), float(low), float(high)


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
