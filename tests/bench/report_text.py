"""Word overlap with reference reports: BLEU-4, ROUGE-L, METEOR, CIDEr, real text and simulated studies apart.

A second column: word overlap says little of what a draft is worth (see report-quality for the findings). Real: the IU
reports have no films here, so that only systems that look at nothing have rows there, on the findings sections of the
splits `val` and `none`; R2Gen's test split of 590, on which the published figures stand, is not among the 3,363 reports
that are shared and cannot be formed. Frontal films with case notes have both, but the notes are case-report prose,
written from CT too. Simulated: drafts against the simulator's reports; "the truth in other words" is the same truth put
into the simulator's words a second time. Tokens as testkit.text_scores says; needs Java.
"""

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from testkit.shared import SHARED
from testkit.text_scores import text_scores

from ml_core.contracts import Draft
from ml_core.data.phantom import Film, render
from ml_core.data.phantom_dicom import Patient, StudyHeader, datetime, to_dicom
from ml_core.data.phantom_report import Report, report_write
from ml_core.evals.bench import meta
from ml_core.evals.report import SHIPPED, draft_files
from ml_core.serving.report import ReportDrafter

RADIOLOGY = SHARED / "data" / "radiology"
RESULT = Path(__file__).parent / "results" / "report-text.json"
CONSTANT = (
    "the lungs are clear . there is no focal airspace consolidation . no pleural effusion or pneumothorax . heart size "
    "and mediastinal contour are within normal limits . there are degenerative changes of the spine ."
)  # of the shared data's README
_FIRST_SEED, _SIMULATED = 970_000_000, 160  # the films of report-quality
_TOKENS = "lower case, points are tokens, other marks dropped, no cut at 60 tokens"
_FRONTAL = ("PA", "AP", "AP Supine")
_DRAFT = "assay int8"


def main() -> int:
    """Draft, measure, write the result file, print it as one line of JSON."""
    if not RADIOLOGY.is_dir():
        raise SystemExit(f"the shared data is not at {RADIOLOGY}")
    drafter = ReportDrafter(SHIPPED)
    rows = [*_iu(), *_notes(drafter), *_simulated(drafter)]
    about = meta("report-text", packages=("pycocoevalcap", "torch", "timm")) | {
        "model_digest": drafter.digest,
        "tokens": _TOKENS,
    }
    RESULT.write_text(json.dumps({"meta": about, "rows": rows}, indent=1) + "\n")
    print(json.dumps({"meta": about, "rows": rows}))
    return 0


def _iu() -> list[dict[str, Any]]:
    """Systems that look at nothing, on the findings sections of reports outside of train."""
    lines = (RADIOLOGY / "iu_reports" / "reports.jsonl").read_text().splitlines()
    found: dict[str, list[str]] = {"train": [], "val": [], "none": []}
    for report in map(json.loads, lines):
        if report["findings"].strip():
            found[report["split"]].append(report["findings"])
    most = Counter(found["train"]).most_common(1)[0][0]
    rng = np.random.default_rng(0)
    rows = []
    for split in ("val", "none"):
        wanted = found[split]
        picks = rng.integers(len(found["train"]), size=len(wanted))
        systems = {
            "constant report": [CONSTANT] * len(wanted),
            "random training report": [found["train"][pick] for pick in picks],
            "most frequent training report": [most] * len(wanted),
        }
        for system, said in systems.items():
            rows += _rows(f"real text: IU {split}, findings", system, said, wanted)
    return rows


def _notes(drafter: ReportDrafter) -> list[dict[str, Any]]:
    folder = RADIOLOGY / "cxr_notes"
    notes = {}
    for row in map(json.loads, (folder / "notes.jsonl").read_text().splitlines()):
        if row["view"] in _FRONTAL and row["clinical_notes"].strip() and not row["duplicate"]:
            notes[row["image"]] = row["clinical_notes"]
    paths = [folder / "images" / name for name in notes]
    drafts = [item.draft for item in draft_files(drafter, paths, root=folder)]
    wanted = list(notes.values())
    said = [_body(draft) for draft in drafts]
    others = [wanted[index] for index in np.random.default_rng(0).permutation(len(wanted))]
    systems = {_DRAFT: said, "constant report": [CONSTANT] * len(wanted), "another film's notes": others}
    return [row for name, texts in systems.items() for row in _rows("real films: case notes", name, texts, wanted)]


def _simulated(drafter: ReportDrafter) -> list[dict[str, Any]]:
    films = [render(_FIRST_SEED + index, size=512) for index in range(_SIMULATED)]
    wanted = [_text(film.report) for film in films]
    rng = np.random.default_rng(0)
    normal = _text(report_write((), np.random.default_rng(0)))
    systems = {
        _DRAFT: [_body(draft) for draft in _drafts(drafter, films)],
        "constant report": [normal] * len(films),
        "random simulated report": [wanted[index] for index in rng.permutation(len(films))],
        "the truth in other words": [_text(report_write(film.findings, rng)) for film in films],
    }
    return [row for name, said in systems.items() for row in _rows("simulated", name, said, wanted)]


def _drafts(drafter: ReportDrafter, films: list[Film]) -> list[Draft]:
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{film.seed}.dcm" for film in films]
        for path, film in zip(paths, films, strict=True):
            patient = Patient(id=f"B{film.seed}", name="Bench^Film", sex=film.body.sex, birth="19600101")
            study = StudyHeader(key=str(film.seed), at=datetime(2026, 1, 1))
            path.write_bytes(to_dicom(film, patient=patient, study=study))
        return [item.draft for item in draft_files(drafter, paths, root=Path(folder))]


def _body(draft: Draft) -> str:
    """All sentences in order; nothing where it was declined."""
    return " ".join(sentence.text for sentence in draft.sentences)


def _text(report: Report) -> str:
    return " ".join(sentence.text for sentence in report.sentences)


def _rows(case: str, system: str, said: list[str], wanted: list[str]) -> list[dict[str, Any]]:
    common = {"case": case, "system": system, "n": len(wanted)}
    return [
        {**common, "metric": name, "value": score.value, "unit": name, "low": score.low, "high": score.high}
        for name, score in text_scores(said, wanted).items()
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
