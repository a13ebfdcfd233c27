"""From the findings head's probabilities to what a draft says, and in which order it says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ml_core.contracts import FindingState, Section
from ml_core.data.findings import FINDINGS, INDEX, NO_FINDING
from ml_core.data.phantom_report import ORDER
from ml_core.data.report_tokens import STATE_INDEX, Control

_ABSTAIN = 0.6  # between this share of the threshold and the threshold nothing is said
_DENIED = frozenset({
    "Lung Opacity", "Consolidation", "Pneumonia", "Edema", "Pleural Effusion", "Pneumothorax", "Cardiomegaly",
})  # fmt: skip
_LUNG = ("Lung Opacity", "Consolidation", "Pneumonia", "Atelectasis", "Edema", "Lung Lesion")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Decision rules of one artifact.

    `thresholds`: findings that may be asserted (or denied), each at its probability of presence. `hedges`: findings
    with too few real examples to be asserted, raised as uncertain from that probability on, never denied. `gate`:
    least probability of a chest film. `normal`: from this probability of No Finding on, nothing else is stated
    (above 1: off). `simulated`: thresholds for films that our own simulator made, where every finding has examples
    with a known truth; without any such films are judged as real ones are.
    """

    thresholds: dict[str, float]
    hedges: dict[str, float] = field(default_factory=dict)
    gate: float = 0.5
    normal: float = 1.1
    simulated: dict[str, float] = field(default_factory=dict)

    def for_films(self, *, simulated: bool) -> "Rules":
        """The rules for a study of simulated films, or of real ones: what was shown on one kind holds for that kind."""
        return replace(self, thresholds=self.simulated, hedges={}) if simulated and self.simulated else self


def states_decide(
    presence: Sequence[float], states: Sequence[Sequence[float]], rules: Rules
) -> dict[str, FindingState]:
    """State of each finding from its probability of presence and the probabilities of its four states.

    "No Finding" follows from the rest: positive exactly where nothing but devices is asserted or suspected.
    """
    decided = dict.fromkeys(FINDINGS, FindingState.ABSENT)
    quiet = presence[INDEX[NO_FINDING]] >= rules.normal
    for name in FINDINGS:
        if name == NO_FINDING:
            continue
        there = presence[INDEX[name]]
        if name in rules.thresholds:
            decided[name] = _stated(there, states[INDEX[name]], threshold=rules.thresholds[name], quiet=quiet)
        elif name in rules.hedges and there >= rules.hedges[name] and not quiet:
            decided[name] = FindingState.UNCERTAIN
    told = (FindingState.POSITIVE, FindingState.UNCERTAIN)
    if not any(decided[name] in told for name in FINDINGS if name not in (NO_FINDING, "Support Devices")):
        decided[NO_FINDING] = FindingState.POSITIVE
    return decided


def plan_make(decided: Mapping[str, FindingState]) -> list[Control]:
    """The sentences to write: findings in reading order, then the impression."""
    told = (FindingState.POSITIVE, FindingState.UNCERTAIN)
    ill_lung = any(decided[name] in told for name in _LUNG)
    plan = []
    for name in ORDER:
        state = decided[name]
        denied = state is FindingState.NEGATIVE and name in _DENIED and not (name == "Lung Opacity" and ill_lung)
        if state in told or denied:
            plan.append(Control(section=Section.FINDINGS, finding=name, state=state))
    for name in (*ORDER, NO_FINDING):
        if decided[name] in told and name != "Support Devices":
            plan.append(Control(section=Section.IMPRESSION, finding=name, state=decided[name]))
    return plan


def _stated(there: float, states: Sequence[float], *, threshold: float, quiet: bool) -> FindingState:
    if there >= threshold and not quiet:
        doubt = states[STATE_INDEX[FindingState.UNCERTAIN]] > states[STATE_INDEX[FindingState.POSITIVE]]
        return FindingState.UNCERTAIN if doubt else FindingState.POSITIVE
    return FindingState.NEGATIVE if there < _ABSTAIN * threshold else FindingState.ABSENT
