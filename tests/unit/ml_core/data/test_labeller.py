"""The rule labeller: negation and doubt in their scope, sections, sides, and the simulator's wording."""

from itertools import chain

import pytest

from ml_core.contracts import FindingState
from ml_core.data.findings import FINDINGS
from ml_core.data.labeller import (
    CHEXPERT,
    INDEXED,
    label_findings,
    label_report,
    label_sentence,
    sentences_split,
    sides_of,
)
from ml_core.data.phantom import render
from ml_core.data.phantom_wording import DEVICES, IMPRESSION, NEGATIVE, POSITIVE, UNCERTAIN
from tests.bench.report_labeller import simulated_agreement

POS, NEG, DOUBT = FindingState.POSITIVE, FindingState.NEGATIVE, FindingState.UNCERTAIN
ABSENT = FindingState.ABSENT


def test_every_report_of_the_simulator_is_read_as_it_was_meant() -> None:
    assert all(simulated_agreement(150))


@pytest.mark.parametrize(
    ("bank", "state"),
    [
        (POSITIVE, POS),
        (IMPRESSION, POS),
        (UNCERTAIN, DOUBT),
        (NEGATIVE, NEG),
        ({"Support Devices": tuple(chain.from_iterable(DEVICES.values()))}, POS),
    ],
    ids=["positive", "impression", "uncertain", "negative", "devices"],
)
def test_every_sentence_of_the_simulator_states_its_own_finding(
    bank: dict[str, tuple[str, ...]], state: FindingState
) -> None:
    for name, texts in bank.items():
        for text in texts:
            (sentence,) = sentences_split(_filled(text))
            assert label_sentence(sentence).get(name) is state, text


@pytest.mark.parametrize(
    ("sentence", "finding", "state"),
    [
        ("no pleural effusion or pneumothorax", "Pneumothorax", NEG),
        ("no pneumothorax, but there is a small effusion", "Pleural Effusion", POS),
        ("no pneumothorax; small right effusion", "Pleural Effusion", POS),
        ("no significant change in the right pleural effusion", "Pleural Effusion", POS),
        ("the effusion has not significantly changed", "Pleural Effusion", POS),
        ("the right pneumothorax has resolved", "Pneumothorax", NEG),
        ("consolidation, atelectasis and effusion of the left base have cleared", "Consolidation", NEG),
        ("pleural effusion is no longer seen", "Pleural Effusion", NEG),
        ("the previously seen nodule is not well-seen", "Lung Lesion", NEG),
        ("pneumonia cannot be excluded", "Pneumonia", DOUBT),
        ("an effusion is difficult to exclude", "Pleural Effusion", DOUBT),
        ("opacity which may represent atelectasis", "Atelectasis", DOUBT),
        ("opacity which may represent atelectasis", "Lung Opacity", POS),
        ("pneumonia is in the differential", "Pneumonia", DOUBT),
        ("considering the technique, stable cardiomegaly", "Cardiomegaly", POS),
        ("no opacity to suggest pneumonia", "Pneumonia", NEG),
        ("no suspicious nodule", "Lung Lesion", NEG),
        ("vascular engorgement appears within normal limits", "Edema", NEG),
        ("probable left effusion", "Pleural Effusion", DOUBT),
    ],
)
def test_negation_and_doubt_reach_their_findings_only(sentence: str, finding: str, state: FindingState) -> None:
    assert label_sentence(sentence)[finding] is state


@pytest.mark.parametrize(
    ("text", "finding", "state"),
    [
        ("Probable basilar atelectasis.", "atelectasis", POS),
        ("Atelectasis versus infiltrate at the left base.", "atelectasis", POS),
        ("Opacity that may represent atelectasis versus scarring.", "scarring", DOUBT),
        ("Findings suggestive of emphysema.", "emphysema or COPD", DOUBT),
        ("Abnormal opacities most suggestive of edema.", "oedema or congestion", POS),
        ("Atherosclerotic calcification of the aorta.", "aortic atherosclerosis", POS),
        ("Atherosclerotic calcification of the aorta.", "granuloma or calcification", ABSENT),
        ("Noncalcified nodule.", "granuloma or calcification", ABSENT),
        ("Calcified hilar lymph nodes.", "granuloma or calcification", POS),
        ("Mild degenerative changes of the spine.", "degenerative spine", ABSENT),
        ("Thoracic dextroscoliosis with osteophytes.", "degenerative spine", POS),
        ("Subcutaneous emphysema of the neck.", "emphysema or COPD", ABSENT),
        ("Changes of cystic fibrosis.", "scarring", ABSENT),
        ("Large hiatus hernia.", "hiatal hernia", POS),
        ("Borderline heart size.", "cardiomegaly", POS),
        ("No catheter fracture.", "fracture", ABSENT),
        ("Old healed fracture of the left fifth rib.", "fracture", POS),
        ("Surgical clips in the right upper quadrant.", "device", POS),
        ("Bone density is decreased.", "opacity", ABSENT),
    ],
)
def test_the_wider_scheme_keeps_the_conventions_of_the_indexers(text: str, finding: str, state: FindingState) -> None:
    assert label_findings(text)[finding] is state


def test_each_scheme_answers_for_all_its_findings_and_only_those() -> None:
    assert tuple(label_report("Clear lungs.")) == FINDINGS
    assert set(label_findings("Clear lungs.")) == set(INDEXED.findings)
    assert set(label_findings("Clear lungs.", scheme=CHEXPERT)) == set(FINDINGS)


def test_a_normal_report_has_no_finding_and_an_abnormality_without_a_name_of_its_own_forbids_that() -> None:
    normal = "Heart size is normal. No effusion or pneumothorax. The lungs are clear."
    assert label_findings(normal)["no finding"] is POS
    assert label_findings(f"{normal} The lungs are hyperexpanded.")["no finding"] is ABSENT
    assert label_report(normal)["No Finding"] is POS
    assert label_report(f"{normal} An endotracheal tube is in place.")["No Finding"] is POS
    assert label_report(f"{normal} Possible rib fracture.")["No Finding"] is ABSENT


@pytest.mark.parametrize("text", ["", "  \n", "INDICATION: pneumonia?", "COMPARISON: None."])
def test_a_text_that_says_nothing_of_the_study_states_nothing(text: str) -> None:
    assert set(label_report(text).values()) == {ABSENT}
    assert set(label_findings(text).values()) == {ABSENT}


@pytest.mark.parametrize(
    "text",
    [
        "INDICATION: Pneumothorax after fall.\nCOMPARISON: Film with pneumothorax.\nFINDINGS: Small effusion.",
        "History: pneumothorax. Technique: PA and lateral. Findings: Small effusion. Impression: Effusion.",
        "CLINICAL HISTORY:\n\nPneumothorax, chest tube removed.\n\nSmall effusion.",
        "Small effusion.\n\nREASON FOR EXAM: pneumothorax",
        "EXAM: Chest, pneumothorax protocol\nSmall effusion.",
        "**Indication:** pneumothorax\n\n**Findings:** Small effusion.",
    ],
)
def test_only_findings_and_impression_assert(text: str) -> None:
    states = label_report(text)
    assert states["Pneumothorax"] is ABSENT
    assert states["Pleural Effusion"] is POS


def test_a_sentence_broken_by_a_margin_stays_one_sentence() -> None:
    states = label_report(
        "There is no pleural effusion\n  or pneumothorax. Heart is\nenlarged\nImpression: Cardiomegaly"
    )
    assert (states["Pneumothorax"], states["Cardiomegaly"]) == (NEG, POS)
    assert label_report("No effusion\nCardiomegaly")["Cardiomegaly"] is POS


def test_sentences_lose_headings_numbering_and_decimal_points() -> None:
    text = "FINDINGS: A 1.5 cm nodule.The heart is large.\n\nIMPRESSION:\n1. Nodule. 2) Seen by Dr. Who."
    parts = sentences_split(text)
    assert parts[:2] == ["a 15 cm nodule", "the heart is large"]
    assert "nodule" in parts
    assert not any("impression" in part or part.endswith("dr") for part in parts)


@pytest.mark.parametrize(
    ("sentence", "finding", "sides"),
    [
        ("small left pleural effusion and right basilar atelectasis", "Pleural Effusion", {"left"}),
        ("small left pleural effusion and right basilar atelectasis", "Atelectasis", {"right"}),
        ("opacity at the left base and right pleural effusion", "Lung Opacity", {"left"}),
        ("opacity at the left base and right pleural effusion", "Pleural Effusion", {"right"}),
        ("bibasilar atelectasis", "atelectasis", {"left", "right"}),
        ("right greater than left pleural effusions", "pleural effusion", {"left", "right"}),
        ("in the right lung there is opacity and atelectasis", "atelectasis", {"right"}),
        ("right middle lobe scarring", "scarring", {"right"}),
        ("opacity of the right base compared to the left", "opacity", {"right"}),
        ("lungs demonstrate left upper lobe opacity", "opacity", {"left"}),
        ("enlarged left ventricle and pleural effusion", "Pleural Effusion", set()),
        ("no left pleural effusion", "Pleural Effusion", set()),
        ("left pleural effusion", "Pneumothorax", set()),
    ],
)
def test_a_side_belongs_to_the_finding_that_it_stands_beside(sentence: str, finding: str, sides: set[str]) -> None:
    assert sides_of(sentence, finding=finding) == sides


def test_sides_of_an_unknown_finding_are_refused() -> None:
    with pytest.raises(KeyError):
        sides_of("left effusion", finding="Gout")


def test_sides_of_simulated_findings_are_read_as_drawn() -> None:
    read = 0
    for seed in range(60):
        film = render(985_000_000 + seed, size=64)
        for name in {finding.name for finding in film.findings}:
            drawn = [finding.side for finding in film.findings if finding.name == name]
            texts = [sentence.text.lower() for sentence in film.report.sentences if sentence.finding == name]
            got = frozenset().union(*(sides_of(text, finding=name) for text in texts))
            if len(drawn) == 1 and drawn[0] and got:
                assert got == ({"left", "right"} if drawn[0] == "bilateral" else {drawn[0]}), texts
                read += 1
    assert read > 50


def _filled(text: str) -> str:
    """A template of the simulator with side, size and place put in."""
    while "[" in text:
        before, rest = text.split("[", 1)
        inner, after = rest.split("]", 1)
        text = before + inner.split("|")[0] + after
    return text.replace("{side}", "left").replace("{size}", "small").replace("{in}", "at the left lung base")
