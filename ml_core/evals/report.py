"""Measuring drafts on a folder of labelled images: findings F1 beside the constant report, with bootstrap intervals."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.contracts import Draft, DraftRequest, FindingState, ImageInput, ModelKey, ModelKind, Section, StudyInput
from ml_core.data.chest import SUFFIXES, LabelledFilm, folder_read, label_vector
from ml_core.data.findings import FINDINGS, INDEX, NIH_TO_CHEXPERT, NO_FINDING
from ml_core.data.labeller import label_report
from ml_core.errors import InputError
from ml_core.seed import numpy_generator
from ml_core.serving.report import BATCH, ReportDrafter

LEAST_POSITIVES = 10  # with no more, a figure means nothing: "not assessed"
SHIPPED = Path(__file__).resolve().parents[1] / "pretrained" / "report-student"
_RESAMPLES = 1000
Truth = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftedImage:
    """One image and its draft."""

    image: str
    draft: Draft


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m ml_core eval report`."""
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG, JPEG or DICOM files")
    parser.add_argument("--labels", type=Path, help="CSV with image and labels (separated by |)")
    parser.add_argument("--split", help="only rows of the labels whose split is this")
    parser.add_argument("--drafts", type=Path, help="write one JSON line an image here")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the model (the shipped student)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draft, and with labels measure; see `evaluate`."""
    drafter = ReportDrafter(arguments.model)
    return evaluate(
        drafter, images=arguments.images, labels=arguments.labels, split=arguments.split, drafts=arguments.drafts
    )


def evaluate(
    drafter: ReportDrafter,
    *,
    images: Path,
    labels: Path | None = None,
    split: str | None = None,
    drafts: Path | None = None,
) -> dict[str, Any]:
    """Draft every image of a folder, each as a study of its own; with labels, score the findings that the text states.

    What is scored is the draft's text, read by the rule labeller: a finding counts as stated where the text asserts it.
    A declined image states nothing. Raises InputError when there is no image.
    """
    films = folder_read(labels, images=images, split=split) if labels else []
    paths = (
        [film.path for film in films]
        if labels
        else sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES)
    )
    if not paths:
        raise InputError(f"images: nothing to draft in {images}")
    started = time.monotonic()
    drafted = draft_files(drafter, paths, root=images)
    seconds = time.monotonic() - started
    if drafts is not None:
        drafts.write_text("".join(json.dumps(draft_line(item)) + "\n" for item in drafted))
    declined = sum(item.draft.declined for item in drafted)
    result: dict[str, Any] = {
        "n": len(drafted),
        "declined": declined,
        "declined_share": declined / len(drafted),
        "seconds": seconds,
        "seconds_per_image": seconds / len(drafted),
        "model_digest": drafter.digest,
    }
    if films:
        stated = np.stack([stated_vector(item.draft) for item in drafted])
        result |= score(films, stated)
    return result


def draft_files(drafter: ReportDrafter, paths: Sequence[Path], *, root: Path) -> list[DraftedImage]:
    """Draft each file as one study, up to 16 in a call of the model."""
    key = ModelKey(kind=ModelKind.REPORT, digest=drafter.digest, folder="")
    drafted = []
    for start in range(0, len(paths), BATCH):
        chunk = paths[start : start + BATCH]
        names = [path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name for path in chunk]
        studies = tuple(
            StudyInput(key=name, images=(ImageInput(key=name, encoded=path.read_bytes()),))
            for name, path in zip(names, chunk, strict=True)
        )
        result = drafter.draft(DraftRequest(model=key, studies=studies))
        drafted += [DraftedImage(image=name, draft=draft) for name, draft in zip(names, result.drafts, strict=True)]
    return drafted


def draft_text(draft: Draft) -> str:
    """The draft as one text: findings, then the impression."""
    parts = []
    for section in Section:
        sentences = [sentence.text for sentence in draft.sentences if sentence.section is section]
        if sentences:
            parts.append(f"{section.value.upper()}: {' '.join(sentences)}")
    return "\n\n".join(parts)


def draft_line(item: DraftedImage) -> dict[str, Any]:
    """One line of the drafts file."""
    return {
        "image": item.image,
        "declined": item.draft.declined,
        "reason": item.draft.declined_reason,
        "findings": {finding.name: finding.state.value for finding in item.draft.findings},
        "text": draft_text(item.draft),
        "probabilities": {finding.name: round(finding.probability, 5) for finding in item.draft.findings},
    }


def stated_vector(draft: Draft) -> Truth:
    """1 where the draft's text asserts a finding (a declined one asserts nothing)."""
    if draft.declined:
        return np.zeros(len(FINDINGS), dtype=np.float32)
    states = label_report(draft_text(draft))
    return np.asarray([states[name] is FindingState.POSITIVE for name in FINDINGS], dtype=np.float32)


def score(films: Sequence[LabelledFilm], stated: Truth) -> dict[str, Any]:
    """F1 per assessed finding, micro and macro, with 95 % intervals over patients; the constant report beside."""
    truth = np.stack([label_vector(film.names) for film in films])
    assessed = [name for name in FINDINGS if truth[:, INDEX[name]].sum() > LEAST_POSITIVES]
    patients = np.asarray([film.patient for film in films])
    constant = np.zeros_like(stated)
    constant[:, INDEX[NO_FINDING]] = 1
    columns = [INDEX[name] for name in assessed]
    per_finding: dict[str, dict[str, Any]] = {}
    for name in FINDINGS:
        positives = int(truth[:, INDEX[name]].sum())
        per_finding[name] = {"positives": positives, "assessed": name in assessed}
        if name in assessed:
            per_finding[name] |= f1_interval(truth, stated, columns=[INDEX[name]], patients=patients)
            per_finding[name]["f1_constant"] = f1_micro(truth, constant, [INDEX[name]])
    views = {
        view: np.asarray([film.view == view for film in films])
        for view in sorted({film.view for film in films})
        if view
    }
    return {
        "assessed": assessed,
        "label_map": NIH_TO_CHEXPERT,
        "findings": per_finding,
        "micro": f1_interval(truth, stated, columns=columns, patients=patients),
        "macro": {"f1": float(np.mean([f1_micro(truth, stated, [c]) for c in columns])) if columns else None},
        "constant": {
            "micro": f1_interval(truth, constant, columns=columns, patients=patients),
            "macro": {"f1": float(np.mean([f1_micro(truth, constant, [c]) for c in columns])) if columns else None},
        },
        "views": {
            view: {"n": int(rows.sum()), "f1": f1_micro(truth[rows], stated[rows], columns)}
            for view, rows in views.items()
        },
        "false_per_report": float((stated * (1 - truth))[:, columns].sum() / len(films)),
        "missed_per_report": float((truth * (1 - stated))[:, columns].sum() / len(films)),
    }


def f1_micro(truth: Truth, stated: Truth, columns: Sequence[int]) -> float:
    """Micro F1 over the given findings; 0 where nothing is there and nothing is stated."""
    t, s = truth[:, columns], stated[:, columns]
    both = float((t * s).sum())
    total = float(t.sum() + s.sum())
    return 2 * both / total if total else 0.0


def f1_interval(truth: Truth, stated: Truth, *, columns: Sequence[int], patients: NDArray[Any]) -> dict[str, float]:
    """Micro F1, precision, recall and a 95 % percentile interval of F1 by bootstrap over patients."""
    t, s = truth[:, columns], stated[:, columns]
    _, group = np.unique(patients, return_inverse=True)
    count = int(group.max()) + 1
    sums = np.zeros((count, 3))
    for column, values in enumerate(((t * s).sum(1), t.sum(1), s.sum(1))):
        np.add.at(sums[:, column], group, values)
    rng = numpy_generator(0, "report", "bootstrap")
    picks = rng.integers(count, size=(_RESAMPLES, count))
    both, there, said = sums[picks].sum(1).T
    drawn = 2 * both / np.maximum(there + said, 1e-9)
    total = sums.sum(0)
    return {
        "f1": f1_micro(truth, stated, columns),
        "low": float(np.quantile(drawn, 0.025)),
        "high": float(np.quantile(drawn, 0.975)),
        "precision": float(total[0] / total[2]) if total[2] else 0.0,
        "recall": float(total[0] / total[1]) if total[1] else 0.0,
    }
