"""What each step of the chain CNN → ViT-B → student keeps, and what distillation gains, from the scores of one GPU run.

`--run FOLDER` holds what recipe report_chain_int8 leaves: scores.npz, the ViT-B's drafts.jsonl, and the INT8 students,
which are drafted here as far as their weights are there. The students saw the same batches: distilled from the ViT-B
(or its mean with the CNN, whichever was better on films held out; events.jsonl says which), from the CNN, and trained
on the labels alone. Real: NIH val, mean ROC-AUC over findings with more than 10 positives, and clinical F1 of what the
drafts' text states. Simulated: mean ROC-AUC of presence, micro F1 of presence at thresholds chosen on other films, F1
and word overlap of the drafts. AUCs are those of the float students. Retention is student over teacher; intervals are
95 % bootstraps over patients, with the same draws for both sides of a comparison. The shipped student comes from
another run and is asked about the same films.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from testkit.shared import SHARED
from testkit.text_scores import text_scores

from ml_core.artifacts import WEIGHTS
from ml_core.contracts import FindingState
from ml_core.data.chest import LabelledFilm, film_prepare, folder_read, label_vector
from ml_core.data.dicom import image_read
from ml_core.data.findings import FINDINGS
from ml_core.data.labeller import label_report
from ml_core.data.phantom import Film, render
from ml_core.evals.bench import meta
from ml_core.evals.report import LEAST_POSITIVES, SHIPPED, f1_micro
from ml_core.seed import numpy_generator
from ml_core.serving.report import ReportDrafter
from ml_core.train.report_choose import best_threshold
from ml_core.train.report_scores import SIMULATED_FIRST, drafts_write, scores_predict, simulated_pictures

RESULT = Path(__file__).parent / "results" / "report-chain.json"
SYSTEMS = {
    "cnn": "CNN teacher",
    "large": "ViT-B teacher",
    "mean": "ViT-B and CNN, mean",
    "student-chain": "student from ViT-B",
    "student-cnn": "student from CNN",
    "student-plain": "student without teacher",
    "shipped": "shipped student, INT8",
}
_RETAINED = (
    ("student-chain", "large"),
    ("student-chain", "mean"),
    ("student-cnn", "cnn"),
    ("large", "cnn"),
    ("shipped", "large"),
)
_GAINED = (("student-chain", "student-plain"), ("student-cnn", "student-plain"), ("student-chain", "student-cnn"))
_CHECK = 10_016_000  # the first of the simulated films that the recipe with seed 0 chooses rules by
_RESAMPLES = 1000
Values = NDArray[np.float32]
Measure = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table: a measure of some rows for each system, and whose rows are drawn together."""

    name: str
    metric: str
    unit: str
    groups: NDArray[Any]
    measures: dict[str, Measure]


def main() -> int:
    """Read the run, measure, write the result file, print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    folder = parser.parse_args().run
    scores = dict(np.load(folder / "scores.npz"))
    pictures = {
        "val": {film.image: film.path.read_bytes() for film in _val()},
        "simulated": simulated_pictures(count=len(scores["simulated/cnn/presence"]), processes=1),
    }
    check = [render(_CHECK + index) for index in range(len(scores["simulated_check/cnn/presence"]))]
    scores |= _shipped(pictures, check)
    drafts = _drafts(folder, pictures)
    about = meta("report-chain", packages=("numpy", "pycocoevalcap")) | {
        "run": json.loads((folder / "spec.json").read_text()),
        "drafted": ["large", *(student.name for student in _whole_students(folder))],
    }
    rows = [*_real(scores, drafts), *_simulated(scores, drafts, np.stack([_there(film) for film in check]))]
    RESULT.write_text(json.dumps({"meta": about, "rows": rows}, indent=1) + "\n")
    print(json.dumps({"meta": about, "rows": rows}))
    return 0


def _shipped(pictures: dict[str, dict[str, bytes]], check: list[Film]) -> dict[str, Values]:
    """The shipped model's presence logits on the run's sets of films."""
    drafter = ReportDrafter(SHIPPED)
    size = drafter.config.image_size
    greys = {name: [image_read(body) for body in bodies.values()] for name, bodies in pictures.items()}
    greys["simulated_check"] = [(film.pixels / 4095).astype(np.float32) for film in check]
    found = {}
    for name, films in greys.items():
        images = np.stack([np.round(film_prepare(grey, size=size) * 255).astype(np.uint8) for grey in films])
        found[f"{name}/shipped/presence"] = scores_predict(drafter.student, images)["presence"]
    return found


def _drafts(folder: Path, pictures: dict[str, dict[str, bytes]]) -> list[dict[str, Any]]:
    """The ViT-B's drafts from the run, its INT8 students' and the shipped one's, each kind of film by its own rules."""
    models = {f"student-{student.name}": student for student in _whole_students(folder)} | {"shipped": SHIPPED}
    lines = (folder / "drafts.jsonl").read_text().splitlines()
    with TemporaryDirectory() as work:
        path = Path(work) / "drafts.jsonl"
        for name, student in models.items():
            for kind, bodies in pictures.items():
                drafter = ReportDrafter(student)
                drafter.rules = drafter.rules.for_films(simulated=kind == "simulated")
                drafts_write(path, drafter, bodies, model=name, films=kind)
        return [json.loads(line) for line in [*lines, *path.read_text().splitlines()]]


def _whole_students(folder: Path) -> list[Path]:
    """Those whose weights came back: a run leaves out what its size limit does not hold."""
    return sorted(path.parent for path in (folder / "students").glob(f"*/{WEIGHTS}"))


def _val() -> list[LabelledFilm]:
    folder = SHARED / "data" / "radiology" / "nih_cxr"
    return folder_read(folder / "labels.csv", images=folder / "images", split="val")


def _real(scores: dict[str, Values], drafts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    films = _val()
    truth = np.stack([label_vector(film.names) for film in films])
    groups = np.asarray([film.patient for film in films])
    columns = [index for index in range(len(FINDINGS)) if truth[:, index].sum() > LEAST_POSITIVES]
    texts = _texts(drafts, films="val", keys=[film.image for film in films])
    stated = {name: np.stack([_stated(text) for text in said]) for name, said in texts.items()}
    ranked = Case(
        name="real: NIH val", metric="mean AUC", unit="auc", groups=groups,
        measures={name: mean_auc(truth[:, columns], _presence(scores, "val", name)[:, columns]) for name in SYSTEMS},
    )  # fmt: skip
    written = Case(
        name="real: NIH val", metric="F1 micro of the text", unit="f1", groups=groups,
        measures={name: _f1(truth, values, columns) for name, values in stated.items()},
    )  # fmt: skip
    return [*rows_of(ranked), *rows_of(written)]


def _simulated(scores: dict[str, Values], drafts: list[dict[str, Any]], check: Values) -> list[dict[str, Any]]:
    n = len(scores["simulated/cnn/presence"])
    films = [render(SIMULATED_FIRST + index, size=512) for index in range(n)]
    truth = np.stack([_there(film) for film in films])
    columns = [index for index in range(len(FINDINGS)) if truth[:, index].sum() > LEAST_POSITIVES]
    ranked, decided = {}, {}
    for name in SYSTEMS:
        own = _presence(scores, "simulated", name)
        limits = [best_threshold(check[:, i], _presence(scores, "simulated_check", name)[:, i]) for i in columns]
        said = np.zeros_like(truth)
        said[:, columns] = own[:, columns] >= np.asarray(limits)
        ranked[name] = mean_auc(truth[:, columns], own[:, columns])
        decided[name] = _f1(truth, said, columns)
    common: dict[str, Any] = {"name": "simulated", "groups": np.arange(n)}
    rows = rows_of(Case(metric="mean AUC", unit="auc", measures=ranked, **common))
    rows += rows_of(Case(metric="F1 micro of presence", unit="f1", measures=decided, **common))
    wanted = [" ".join(sentence.text for sentence in film.report.sentences) for film in films]
    texts = _texts(drafts, films="simulated", keys=[str(film.seed) for film in films])
    positive = np.stack([_there(film, told=(FindingState.POSITIVE,)) for film in films])
    assessed = [index for index in range(len(FINDINGS)) if positive[:, index].sum() > LEAST_POSITIVES]
    stated = {name: np.stack([_stated(text) for text in said]) for name, said in texts.items()}
    written = {name: _f1(positive, values, assessed) for name, values in stated.items()}
    rows += rows_of(Case(metric="F1 micro of the text", unit="f1", measures=written, **common))
    for name, said_texts in texts.items():
        for metric, score in text_scores(said_texts, wanted).items():
            rows.append(_row("simulated", SYSTEMS[name], metric, metric, (score.value, score.low, score.high), n=n))
    return rows


def rows_of(case: Case) -> list[dict[str, Any]]:
    """The measure of each system, then retention and gain of the pairs that are there."""
    _, group = np.unique(case.groups, return_inverse=True)
    own = [np.flatnonzero(group == index) for index in range(int(group.max()) + 1)]
    picks = numpy_generator(0, "report", "bootstrap").integers(len(own), size=(_RESAMPLES, len(own)))
    draws = [np.arange(len(group)), *(np.concatenate([own[index] for index in pick]) for pick in picks)]
    drawn = {name: np.asarray([measure(rows) for rows in draws]) for name, measure in case.measures.items()}
    n = len(group)
    rows = [
        _row(case.name, SYSTEMS[name], case.metric, case.unit, _interval(values), n=n) for name, values in drawn.items()
    ]
    for kind, pairs in (("retention", _RETAINED), ("gain", _GAINED)):
        for first, second in pairs:
            if first in drawn and second in drawn:
                a, b = drawn[first], drawn[second]
                joined = f"{SYSTEMS[first]} {'/' if kind == 'retention' else '-'} {SYSTEMS[second]}"
                unit = "ratio" if kind == "retention" else case.unit
                compared = _interval(a / b if kind == "retention" else a - b)
                rows.append(_row(case.name, joined, f"{kind}, {case.metric}", unit, compared, n=n))
    return rows


def mean_auc(truth: Values, scores: Values) -> Measure:
    """Mean ROC-AUC over the columns of which the drawn rows hold both kinds (the rank-sum form)."""

    def measure(rows: NDArray[np.int64]) -> float:
        there, ranks = truth[rows], rankdata(scores[rows], axis=0)
        ill = there.sum(0)
        well = len(rows) - ill
        kept = (ill > 0) & (well > 0)
        return float(np.mean((((ranks * there).sum(0) - ill * (ill + 1) / 2)[kept]) / (ill * well)[kept]))

    return measure


def _f1(truth: Values, stated: Values, columns: list[int]) -> Measure:
    return lambda rows: f1_micro(truth[rows], stated[rows], columns)


def _presence(scores: dict[str, Values], films: str, name: str) -> Values:
    return scores[f"{films}/{name}/presence"]


def _texts(drafts: list[dict[str, Any]], *, films: str, keys: list[str]) -> dict[str, list[str]]:
    """By system, what it wrote of each key in order."""
    said: dict[str, dict[str, str]] = {}
    for draft in drafts:
        if draft["films"] == films:
            said.setdefault(draft["model"], {})[draft["key"]] = " ".join(text for _, _, text in draft["sentences"])
    return {name: [texts[key] for key in keys] for name, texts in said.items()}


def _stated(text: str) -> Values:
    states = label_report(text)
    return np.asarray([states[name] is FindingState.POSITIVE for name in FINDINGS], dtype=np.float32)


def _there(film: Film, *, told: tuple[FindingState, ...] = (FindingState.POSITIVE, FindingState.UNCERTAIN)) -> Values:
    states = film.report.states
    return np.asarray([states[name] in told for name in FINDINGS], dtype=np.float32)


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float, float]:
    """The value (the first, of all rows) and its 95 % interval."""
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return float(drawn[0]), float(low), float(high)


def _row(
    case: str, system: str, metric: str, unit: str, drawn: tuple[float, float, float], *, n: int
) -> dict[str, Any]:
    value, low, high = drawn
    return {"case": case, "system": system, "metric": metric, "value": value, "unit": unit, "low": low, "high": high,
            "n": n}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
