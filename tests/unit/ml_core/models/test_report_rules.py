"""Rules for real films and for simulated ones: each kind is judged by what was shown on it."""

from ml_core.contracts import FindingState
from ml_core.data.findings import FINDINGS, INDEX
from ml_core.models.report_rules import Rules, states_decide

RULES = Rules(thresholds={"Atelectasis": 0.06}, hedges={"Cardiomegaly": 0.5}, gate=0.9, simulated={
    "Atelectasis": 0.3, "Cardiomegaly": 0.3,
})  # fmt: skip
SURE = [[0.9, 0.05, 0.01, 0.04]] * len(FINDINGS)


def decided(rules: Rules, **presence: float) -> dict[str, FindingState]:
    values = [0.0] * len(FINDINGS)
    for name, value in presence.items():
        values[INDEX[name]] = value
    return states_decide(values, SURE, rules)


def test_a_finding_without_real_examples_is_asserted_on_simulated_films_only() -> None:
    assert decided(RULES, Cardiomegaly=0.8)["Cardiomegaly"] is FindingState.UNCERTAIN
    simulated = RULES.for_films(simulated=True)
    assert decided(simulated, Cardiomegaly=0.8)["Cardiomegaly"] is FindingState.POSITIVE


def test_each_kind_of_film_has_its_own_threshold() -> None:
    assert decided(RULES, Atelectasis=0.2)["Atelectasis"] is FindingState.POSITIVE
    simulated = RULES.for_films(simulated=True)
    assert decided(simulated, Atelectasis=0.2)["Atelectasis"] is not FindingState.POSITIVE
    assert (simulated.gate, simulated.normal) == (RULES.gate, RULES.normal)


def test_without_rules_for_simulated_films_they_are_judged_as_real_ones() -> None:
    plain = Rules(thresholds={"Atelectasis": 0.06})
    assert plain.for_films(simulated=True) == plain
    assert RULES.for_films(simulated=False) == RULES
