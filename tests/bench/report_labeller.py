"""The rule labeller against the hand labels of the IU reports, beside a naive peer of 16 expressions in the same run.

Cases without a prefix are the splits val and none; the rules were written on train, which has its own cases. One
study is one report, findings and impression; studies that were not indexed stay out. Intervals are 95 % bootstraps over
studies; n is studies for micro and macro, positives for a finding. The 14-finding labeller that scores drafts has rows
where a CheXpert finding corresponds; it leaves out what a report calls only probable, which the indexers took in.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from testkit.shared import SHARED

from ml_core.contracts import FindingState
from ml_core.data.labeller import INDEXED, label_findings, label_report, sentences_split, sides_of
from ml_core.data.phantom import render
from ml_core.data.phantom_report import Report
from ml_core.evals.bench import meta
from ml_core.seed import numpy_generator

REPORTS = SHARED / "data" / "radiology" / "iu_reports"
RESULT = Path(__file__).parent / "results" / "report-labeller.json"
HELD_OUT = frozenset({"val", "none"})
_RESAMPLES, _SIMULATED, _FIRST_SEED = 1000, 500, 980_000_000
_CHEXPERT: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly",),
    "atelectasis": ("Atelectasis",),
    "opacity": ("Lung Opacity",),
    "consolidation or pneumonia": ("Consolidation", "Pneumonia"),
    "oedema or congestion": ("Edema",),
    "pleural effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "nodule or mass": ("Lung Lesion",),
    "fracture": ("Fracture",),
    "device": ("Support Devices",),
}
_NAIVE = {
    "cardiomegaly": r"cardiomegaly|(enlarged|large) (heart|cardiac)|(heart|cardiac silhouette)[^.]{0,40}enlarge",
    "atelectasis": r"atelecta",
    "opacity": r"opacit|infiltrate|airspace disease|densit",
    "consolidation or pneumonia": r"consolidation|pneumonia",
    "oedema or congestion": r"edema|congestion|congestive",
    "pleural effusion": r"effusion",
    "pneumothorax": r"pneumothora",
    "nodule or mass": r"nodul|\bmass",
    "granuloma or calcification": r"granuloma|calcif",
    "scarring": r"scar|fibrosis",
    "emphysema or COPD": r"emphysema|copd|chronic obstructive",
    "fracture": r"fracture",
    "degenerative spine": r"degenerative|osteophyte|spondylosis|scoliosis|kyphosis",
    "device": r"catheter|tube|pacemaker|\bclips|\bwires|stent|\bport\b|picc|device",
    "aortic atherosclerosis": r"atherosclero|aort\w*[^.]{0,30}calcif|calcif\w*[^.]{0,30}aort",
    "hiatal hernia": r"hiat(al|us) hernia",
}
_NAIVE_NEGATION = re.compile(r"\b(no|not|without|free of|negative for|absence of|clear of|resolved)\b")
_SIDED = (
    "atelectasis", "opacity", "consolidation or pneumonia", "pleural effusion", "pneumothorax", "nodule or mass",
    "scarring", "fracture",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A report's findings and impression, what it was indexed under, and on which sides (finding to sides)."""

    text: str
    findings: frozenset[str]
    sides: dict[str, frozenset[str]]


def main() -> int:
    """Label, compare, write the result file, print it as one line of JSON."""
    if not REPORTS.is_dir():
        raise SystemExit(f"the shared data is not at {REPORTS}")
    rows = [*_rows("", studies_read(HELD_OUT)), *_rows("train: ", studies_read({"train"})), _simulated()]
    about = meta("report-labeller", packages=("numpy",)) | {"command": "python -m tests.bench.run report-labeller"}
    result = {"meta": about, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def studies_read(splits: set[str] | frozenset[str]) -> list[Study]:
    """The indexed studies of some splits that have text."""
    heads_of = {name: set(heads) for name, heads in json.loads((REPORTS / "label_map.json").read_text()).items()}
    studies = []
    for line in (REPORTS / "reports.jsonl").read_text().splitlines():
        report = json.loads(line)
        text = f"{report['findings'].strip()}\n{report['impression'].strip()}".strip()
        terms = [term.lower().split("/") for term in report["mesh_major"]]
        if report["split"] not in splits or not text or any(term[0] == "no indexing" for term in terms):
            continue
        own = {name: [term for term in terms if term[0] in heads] for name, heads in heads_of.items()}
        sides = {name: _indexed_sides(own[name]) for name in _SIDED if own[name]}
        studies.append(Study(
            text=text,
            findings=frozenset(name for name, found in own.items() if found),
            sides={name: found for name, found in sides.items() if found},
        ))  # fmt: skip
    return studies


def stated(text: str) -> frozenset[str]:
    """The findings that our labeller reads in a report."""
    return frozenset(name for name, state in label_findings(text).items() if state is FindingState.POSITIVE)


def stated_naively(text: str) -> frozenset[str]:
    """The peer: an expression a finding, denied where a negation word stands before it in its sentence."""
    found = {
        name
        for sentence in re.split(r"[.\n]+", text.lower())
        for name, pattern in _NAIVE.items()
        if any(not _NAIVE_NEGATION.search(sentence[: match.start()]) for match in re.finditer(pattern, sentence))
    }
    return frozenset(found or {"no finding"})


def figures(studies: list[Study], says: Callable[[str], frozenset[str]]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """For each finding, micro and macro: F1, precision and recall, first the value, then its 1,000 resamples."""
    names = INDEXED.findings
    truth = np.asarray([[name in study.findings for name in names] for study in studies], dtype=np.float64)
    told = np.asarray(
        [[name in said for name in names] for said in (says(study.text) for study in studies)], dtype=float
    )
    draws = numpy_generator(0, "report-labeller").multinomial(
        len(studies), np.full(len(studies), 1 / len(studies)), size=_RESAMPLES
    )
    weights = np.concatenate([np.ones((1, len(studies))), draws])
    both, there, said = weights @ (truth * told), weights @ truth, weights @ told
    parts = {name: (both[:, i], there[:, i], said[:, i]) for i, name in enumerate(names)}
    measured = {name: _measures(*part) for name, part in parts.items()}
    macro = {m: np.mean([measured[name][m] for name in names], axis=0) for m in ("F1", "precision", "recall")}
    return {"micro": _measures(both.sum(1), there.sum(1), said.sum(1)), "macro": macro, **measured}


def simulated_agreement(count: int) -> list[bool]:
    """Whether all 14 states are read from a simulated report as they were meant, for `count` reports."""
    reports = (render(_FIRST_SEED + index, size=64).report for index in range(count))
    return [label_report(report.text) == simulated_states(report) for report in reports]


def simulated_states(report: Report) -> dict[str, FindingState]:
    """What a simulated report means. "Airspace disease consistent with pneumonia" also asserts an opacity."""
    states = report.states
    if "airspace disease" in report.text:
        states["Lung Opacity"] = FindingState.POSITIVE
    return states


def _rows(prefix: str, studies: list[Study]) -> list[dict[str, Any]]:
    systems: dict[str, Callable[[str], frozenset[str]]] = {
        "assay": stated, "naive regex": stated_naively, "assay, 14 findings": _stated_14,
    }  # fmt: skip
    rows = []
    for system, says in systems.items():
        for case, measures in figures(studies, says).items():
            if says is _stated_14 and case not in _CHEXPERT:
                continue
            n = len(studies) if case in ("micro", "macro") else sum(case in study.findings for study in studies)
            for metric, drawn in measures.items():
                rows.append(_row(f"{prefix}{case}", system, metric, drawn, n=n))
    return [*rows, *_side_rows(prefix, studies)]


def _side_rows(prefix: str, studies: list[Study]) -> list[dict[str, Any]]:
    """Findings that both sides state and the index places: same sides, and left taken for right."""
    same, swapped = [], []
    for study in studies:
        for name in study.sides.keys() & stated(study.text):
            got = frozenset().union(*(sides_of(sentence, finding=name) for sentence in sentences_split(study.text)))
            same.append(got == study.sides[name])
            swapped.append(len(got) == 1 and len(study.sides[name]) == 1 and got != study.sides[name])
    rng = numpy_generator(0, "report-labeller", "sides")
    picks = rng.integers(len(same), size=(_RESAMPLES, len(same)))
    shares = {"same sides": np.asarray(same, dtype=float), "left for right": np.asarray(swapped, dtype=float)}
    return [
        _row(f"{prefix}sides", "assay", metric, np.concatenate([[share.mean()], share[picks].mean(1)]), n=len(same))
        for metric, share in shares.items()
    ]


def _simulated() -> dict[str, Any]:
    agreed = np.asarray(simulated_agreement(_SIMULATED), dtype=float)
    picks = numpy_generator(0, "report-labeller", "simulated").integers(_SIMULATED, size=(_RESAMPLES, _SIMULATED))
    drawn = np.concatenate([[agreed.mean()], agreed[picks].mean(1)])
    return _row("simulated reports", "assay, 14 findings", "all 14 states agree", drawn, n=_SIMULATED)


def _stated_14(text: str) -> frozenset[str]:
    states = label_report(text)
    return frozenset(
        name for name, own in _CHEXPERT.items() if any(states[one] is FindingState.POSITIVE for one in own)
    )


def _measures(both: NDArray[Any], there: NDArray[Any], said: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    return {
        "F1": 2 * both / np.maximum(there + said, 1),
        "precision": both / np.maximum(said, 1),
        "recall": both / np.maximum(there, 1),
    }


def _row(case: str, system: str, metric: str, drawn: NDArray[np.float64], *, n: int) -> dict[str, Any]:
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return {
        "case": case, "system": system, "metric": metric, "value": float(drawn[0]), "unit": "share",
        "low": float(low), "high": float(high), "n": n,
    }  # fmt: skip


def _indexed_sides(terms: list[list[str]]) -> frozenset[str]:
    """The sides of a finding's terms together; none where one of them names no side."""
    sides = [{"left", "right"} if "bilateral" in term else {"left", "right"} & set(term) for term in terms]
    return frozenset().union(*sides) if all(sides) else frozenset()
