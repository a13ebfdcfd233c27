"""Pure rules of the registry: which figures head a list, and how figures are told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

_HEADLINE = {
    "fraud": ("test_ap", "ap", "test_auc", "auc", "test_cp100", "cp100", "teacher_ap", "lightgbm_ap"),
    "report": (
        "real_val_f1_micro",
        "f1_micro",
        "micro_f1",
        "test_f1_micro",
        "real_val_f1_constant",
        "simulated_f1_micro",
        "f1_macro",
        "macro_f1",
    ),
}
_TITLES = {"fraud": "Fraud score", "report": "Report draft"}
_LABELS = {
    "ap": "Average precision",
    "auc": "ROC AUC",
    "cp100": "Card Precision@100",
    "f1_micro": "F1, held-out films",
    "micro_f1": "F1, micro",
    "f1_macro": "F1, macro",
    "macro_f1": "F1, macro",
    "precision": "Precision of findings",
    "recall": "Recall of findings",
    "films": "Films",
    "n": "Examples",
    "frauds": "Frauds",
    "seconds": "Seconds",
    "loss": "Loss",
    "ece": "Calibration error",
    "brier": "Brier score",
    "declined": "Share declined",
    "f1_constant": "F1, constant report",
    "f1_no_finding": "F1, no finding",
    "f1_pneumonia": "F1, pneumonia",
    "gate_precision": "Chest-film gate, precision",
    "gate_recall": "Chest-film gate, recall",
    "real_val_f1_micro": "F1, real films",
    "real_val_f1_micro_low": "F1, real films, lower 95 % bound",
    "real_val_f1_micro_high": "F1, real films, upper 95 % bound",
    "real_val_f1_constant": "F1, constant report",
    "real_val_films": "Real films",
    "simulated_f1_micro": "F1, simulated films",
    "simulated_films": "Simulated films",
}
_OF_PART = (  # whose figure it is: prefix, and the words behind the metric's own
    ("real_val_", "real films"),
    ("simulated_", "simulated films"),
    ("float_", "before INT8"),
    ("lightgbm_", "LightGBM"),
    ("teacher_", "teacher"),
)
_LESS_IS_BETTER = ("loss", "ece", "brier", "seconds", "_ms", "latency", "bytes", "error")
_NEUTRAL = (
    "n",
    "frauds",
    "films",
    "seed",
    "epochs",
    "step",
    "steps",
    "threshold",
    "parameters",
    "days",
    "count",
    "cards",
)
_OF_OTHERS = ("lightgbm", "teacher", "constant")  # figures that a model is measured against, not its own
HEADLINE_COUNT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One metric of a candidate beside the champion's. `verdict` is better, worse, same or empty (nothing to say)."""

    name: str
    label: str
    candidate: str
    champion: str
    change: str
    verdict: str


def kind_title(kind: str) -> str:
    """What a kind of model makes, as a title."""
    return _TITLES.get(str(kind), str(kind))


def label(name: str) -> str:
    """What a metric is called on a page."""
    if name in _LABELS:
        return _LABELS[name]
    for prefix, words in (("test_", ""), ("val_", "validation"), ("long_", "long"), *_OF_PART):
        if name.startswith(prefix):
            return ", ".join(part for part in (label(name[len(prefix) :]), words) if part)
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def figure(value: float | None) -> str:
    """A metric as text: whole numbers with separators, others to three decimals (small ones to three digits)."""
    if value is None:
        return "–"
    if float(value).is_integer() and abs(value) >= 2:
        return f"{int(value):,}"
    if value and abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:,.3f}"


def headline(*, kind: str, metrics: Iterable[Mapping[str, float]]) -> list[str]:
    """The at most three metric names that a list of this kind shows, the field's usual ones first."""
    present: dict[str, None] = {}
    for each in metrics:
        present.update(dict.fromkeys(each))
    chosen: list[str] = []
    for name in (*_HEADLINE.get(kind, ()), *present):
        if name in present and label(name) not in {label(other) for other in chosen}:
            chosen.append(name)
    return chosen[:HEADLINE_COUNT]


def compare(
    *, candidate: Mapping[str, float], champion: Mapping[str, float] | None, judged: bool = True
) -> list[Comparison]:
    """Candidate and champion by metric: those that head a list first, then in the candidate's order, then the rest.

    Unless the comparison is `judged` (both measured on the same rows), there are neither differences nor verdicts.
    """
    head = list(chain.from_iterable(_HEADLINE.values()))
    names = dict.fromkeys((*candidate, *(champion or {})))
    names = dict.fromkeys((*(name for name in head if name in names), *names))
    return [_comparison(name, candidate.get(name), (champion or {}).get(name), judged=judged) for name in names]


def _comparison(name: str, candidate: float | None, champion: float | None, *, judged: bool) -> Comparison:
    change, verdict = "", ""
    if judged and candidate is not None and champion is not None:
        difference = candidate - champion
        change = f"{'+' if difference > 0 else '−' if difference < 0 else '±'}{figure(abs(difference))}"
        verdict = _verdict(name, difference)
    return Comparison(
        name=name,
        label=label(name),
        candidate=figure(candidate),
        champion=figure(champion),
        change=change,
        verdict=verdict,
    )


def _verdict(name: str, difference: float) -> str:
    if name.rpartition("_")[2] in _NEUTRAL or any(part in name for part in _OF_OTHERS):
        return ""
    if abs(difference) < 5e-4:
        return "same"
    better = difference < 0 if any(part in name for part in _LESS_IS_BETTER) else difference > 0
    return "better" if better else "worse"
