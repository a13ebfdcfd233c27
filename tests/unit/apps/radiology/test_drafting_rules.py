"""Which sentences of a draft ask to be confirmed, and how studies are grouped into calls."""

from apps.radiology.rules.drafting import grouped, report_sentences
from ml_core.contracts import Draft, Finding, FindingState, Section, Sentence


def supported(*, confidence: float, finding: str, state: FindingState, box: bool) -> bool:
    sentence = Sentence(
        section=Section.FINDINGS, text="x", confidence=confidence, finding=finding, box=(0, 0, 1, 1) if box else None
    )
    findings = (Finding(name="Edema", state=state, probability=confidence),)
    (row,) = report_sentences(Draft(study_key="s", declined=False, findings=findings, sentences=(sentence,)))
    return bool(row["supported"])


def test_a_finding_needs_a_region_and_a_sure_model() -> None:
    yes = FindingState.POSITIVE
    assert supported(confidence=0.9, finding="Edema", state=yes, box=True)
    assert not supported(confidence=0.9, finding="Edema", state=yes, box=False)
    assert not supported(confidence=0.13, finding="Edema", state=yes, box=True)


def test_a_denied_finding_has_nothing_to_point_at() -> None:
    assert supported(confidence=0.9, finding="edema", state=FindingState.NEGATIVE, box=False)


def test_a_call_takes_the_first_studies_that_fit_and_at_least_one() -> None:
    assert grouped([("a", 10), ("b", 6), ("c", 1)]) == ["a", "b"]
    assert grouped([("a", 16), ("b", 1)]) == ["a"]
    assert grouped([("a", 17)]) == ["a"]
    assert grouped([]) == []
