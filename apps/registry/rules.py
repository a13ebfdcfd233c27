"""Pure rules of the registry: which figures head a list, and how figures are told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_HEADLINE = {
    "fraud": ("test_ap", "ap", "test_auc", "auc", "test_cp100", "cp100"),
    "report": ("f1_micro", "micro_f1", "test_f1_micro", "f1_macro", "macro_f1"),
}
_TITLES = {"fraud": "Fraud score", "report": "Report draft"}
_LABELS = {
    "ap": "average precision",
    "auc": "ROC AUC",
    "cp100": "Card Precision@100",
    "f1_micro": "F1, micro",
    "micro_f1": "F1, micro",
    "f1_macro": "F1, macro",
    "macro_f1": "F1, macro",
    "n": "examples",
    "frauds": "frauds",
    "seconds": "seconds",
    "loss": "loss",
    "ece": "calibration error",
    "brier": "Brier score",
    "declined": "share declined",
}
_LESS_IS_BETTER = ("loss", "ece", "brier", "seconds", "_ms", "latency", "bytes", "error")
_NEUTRAL = ("n", "frauds", "seed", "epochs", "step", "steps", "threshold", "parameters", "days", "count", "cards")
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
    for prefix, words in (("test_", ""), ("val_", "validation "), ("long_", "long ")):
        if name.startswith(prefix):
            return words + label(name[len(prefix) :])
    return _LABELS.get(name, name.replace("_", " "))


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


def compare(*, candidate: Mapping[str, float], champion: Mapping[str, float] | None) -> list[Comparison]:
    """Candidate and champion by metric, in the candidate's order; metrics of the champion alone follow."""
    names = dict.fromkeys((*candidate, *(champion or {})))
    return [_comparison(name, candidate.get(name), (champion or {}).get(name)) for name in names]


def _comparison(name: str, candidate: float | None, champion: float | None) -> Comparison:
    change, verdict = "", ""
    if candidate is not None and champion is not None:
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
    if name.rpartition("test_")[2] in _NEUTRAL:
        return ""
    if abs(difference) < 5e-4:
        return "same"
    better = difference < 0 if any(part in name for part in _LESS_IS_BETTER) else difference > 0
    return "better" if better else "worse"
