"""The shipped drafter keeps its promises: one answer whatever the file, the batch, the device; no film, no draft."""

import csv
import io
from itertools import cycle

import numpy as np
import pytest
import torch
from PIL import Image
from testkit.shared import SHARED, needs_shared

from ml_core.contracts import DraftRequest, FindingState, ImageInput, ModelKey, ModelKind, Section, StudyInput
from ml_core.data.chest import other_render
from ml_core.data.labeller import label_report
from ml_core.data.phantom import render
from ml_core.data.phantom_dicom import ENCODINGS, make_studies, to_dicom
from ml_core.data.phantom_disease import Disease
from ml_core.evals.report import SHIPPED
from ml_core.serving.report import BATCH, ReportDrafter

OPACITIES = ("Edema", "Consolidation", "Pneumonia", "Lung Lesion", "Atelectasis")  # CheXpert's hierarchy
SIMULATED = make_studies(731, patients=BATCH, priors=0.0)


@pytest.fixture(scope="module")
def drafter():
    return ReportDrafter(SHIPPED, device="cpu")


@pytest.fixture(scope="module")
def sixteen(drafter):
    """Drafts of sixteen patients in one call."""
    return draft(drafter, *[(study.study_uid, study.files[0][1]) for study in SIMULATED])


def draft(drafter, *studies):
    """Drafts of (key, file, file, …)."""
    key = ModelKey(kind=ModelKind.REPORT, digest=drafter.digest, folder=str(SHIPPED))
    asked = tuple(
        StudyInput(key=name, images=tuple(ImageInput(key=str(i), encoded=file) for i, file in enumerate(files)))
        for name, *files in studies
    )
    return drafter.draft(DraftRequest(model=key, studies=asked)).drafts


def text(drafted):
    return [(sentence.section, sentence.text) for sentence in drafted.sentences]


def png(grey):
    stream = io.BytesIO()
    Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.usefixtures("shapes_checked_before")
def test_a_batch_of_sixteen_and_sixteen_batches_of_one_say_the_same(drafter, sixteen):
    for study, together in zip(SIMULATED, sixteen, strict=True):
        (alone,) = draft(drafter, (study.study_uid, study.files[0][1]))
        assert text(alone) == text(together)
        assert [finding.state for finding in alone.findings] == [finding.state for finding in together.findings]


@pytest.mark.usefixtures("shapes_checked_before")
def test_patients_in_one_batch_never_mix(drafter, sixteen):
    turned = list(reversed(SIMULATED))
    again = draft(drafter, *[(study.study_uid, study.files[0][1]) for study in turned])
    assert [each.study_key for each in again] == [study.study_uid for study in turned]
    assert {each.study_key: text(each) for each in again} == {each.study_key: text(each) for each in sixteen}


@pytest.mark.usefixtures("shapes_checked_before")
def test_more_studies_than_fit_one_call_are_all_drafted(drafter, sixteen):
    names = [f"s-{i}" for i in range(2 * BATCH + 1)]
    many = draft(drafter, *[(name, study.files[0][1]) for name, study in zip(names, cycle(SIMULATED), strict=False)])
    assert [each.study_key for each in many] == names
    assert text(many[0]) == text(many[BATCH]) == text(sixteen[0])


def test_the_same_film_in_any_encoding_gives_the_same_draft(drafter):
    study = SIMULATED[3]
    files = {
        name: to_dicom(study.films[0], patient=study.patient, study=study.header, encoding=name) for name in ENCODINGS
    }
    exact = {name: file for name, file in files.items() if name != "eight_bit"}
    drafts = draft(drafter, *exact.items())
    assert len({tuple(text(each)) for each in drafts}) == 1, {each.study_key: text(each) for each in drafts}
    (coarse,) = draft(drafter, ("eight_bit", files["eight_bit"]))
    assert [finding.state for finding in coarse.findings] == [finding.state for finding in drafts[0].findings]


def test_films_of_our_simulator_are_judged_by_rules_of_their_own_and_a_picture_of_one_is_not(drafter):
    """A heart large enough for any reader: asserted where the header says "simulated", else only raised."""
    film = render(40, findings=(Disease(name="Cardiomegaly", kind="cardiomegaly", severity=1.0),), size=512)
    study = SIMULATED[0]
    told, silent = draft(
        drafter,
        ("dicom", to_dicom(film, patient=study.patient, study=study.header)),
        ("png", png(film.pixels / 4095)),
    )
    states = [{one.name: one.state for one in each.findings} for each in (told, silent)]
    assert states[0]["Cardiomegaly"] is FindingState.POSITIVE
    assert states[1]["Cardiomegaly"] is FindingState.UNCERTAIN
    assert told.findings[0].probability == pytest.approx(silent.findings[0].probability, abs=0.02)


def test_a_study_with_a_film_from_elsewhere_is_judged_as_real(drafter):
    film = render(40, findings=(Disease(name="Cardiomegaly", kind="cardiomegaly", severity=1.0),), size=512)
    study = SIMULATED[0]
    (mixed,) = draft(
        drafter, ("mixed", to_dicom(film, patient=study.patient, study=study.header), png(film.pixels / 4095))
    )
    assert {one.name: one.state for one in mixed.findings}["Cardiomegaly"] is FindingState.UNCERTAIN


def test_what_is_asserted_stands_in_the_text_and_nothing_else_does(sixteen):
    told = (FindingState.POSITIVE, FindingState.UNCERTAIN)
    assert any(each.sentences for each in sixteen)
    for each in sixteen:
        said = label_report(" ".join(sentence.text for sentence in each.sentences))
        decided = {finding.name: finding.state for finding in each.findings}
        if any(decided[name] in told for name in OPACITIES):
            decided["Lung Opacity"] = FindingState.POSITIVE  # "airspace disease consistent with pneumonia" says both
        for name, state in said.items():
            if state in told and name != "No Finding":
                assert decided[name] in told, (name, text(each))


def test_boxes_lie_on_the_image_and_name_one_of_the_study(sixteen):
    boxes = [sentence for each in sixteen for sentence in each.sentences if sentence.box]
    assert boxes
    for sentence in boxes:
        x, y, width, height = sentence.box
        assert x >= 0
        assert y >= 0
        assert width > 0
        assert height > 0
        assert x + width <= 1 + 1e-6
        assert y + height <= 1 + 1e-6
        assert sentence.image_key == "0"


def test_findings_come_before_the_impression(sixteen):
    for each in sixteen:
        sections = [sentence.section for sentence in each.sentences]
        assert sections == sorted(sections, key=[Section.FINDINGS, Section.IMPRESSION].index)


def test_simulated_pictures_that_are_no_chest_film_are_declined(drafter):
    others = draft(drafter, *[(str(seed), png(other_render(1_000 + seed))) for seed in range(2 * BATCH)])
    declined = [each for each in others if each.declined]
    assert len(declined) == len(others), [each.study_key for each in others if not each.declined]
    assert all(each.declined_reason.endswith(".") and not each.sentences for each in declined)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_picture_is_declined_as_blank(drafter, value):
    (blank,) = draft(drafter, ("blank", png(np.full((300, 200), value / 255))))
    assert blank.declined
    assert "blank" in blank.declined_reason


def test_a_study_with_one_film_and_one_other_picture_is_drafted_from_the_film(drafter):
    film = SIMULATED[0].files[0][1]
    (mixed,) = draft(drafter, ("mixed", png(other_render(5)), film))
    (alone,) = draft(drafter, ("alone", film))
    assert not mixed.declined
    assert text(mixed) == text(alone)
    assert {sentence.image_key for sentence in mixed.sentences if sentence.box} <= {"1"}


def test_a_healthy_and_an_unreadable_image_are_told_apart(drafter):
    film = png(render(12, findings=()).pixels / 4095)
    good, bad = draft(drafter, ("good", film), ("bad", film[: len(film) // 3]))
    assert not good.declined
    assert bad.declined
    assert "cannot be read" in bad.declined_reason


@pytest.mark.shared
@needs_shared
def test_sixteen_real_encodings_get_the_drafts_of_their_plain_pictures(drafter):
    folder = SHARED / "data" / "radiology" / "dicom" / "cxr_batch_16"
    rows = list(csv.DictReader((folder / "truth.csv").open()))
    assert len(rows) == 16
    encoded = draft(drafter, *[(row["file"], (folder / row["file"]).read_bytes()) for row in rows])
    plain = draft(drafter, *[(row["file"], (folder / row["plain"]).read_bytes()) for row in rows])
    states = [[(finding.name, finding.state) for finding in each.findings] for each in encoded]
    assert [each.declined for each in encoded] == [each.declined for each in plain]
    differing = [
        row["encoding"] for row, own, each in zip(rows, states, plain, strict=True)
        if own != [(finding.name, finding.state) for finding in each.findings]
    ]  # fmt: skip
    assert differing == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_the_gpu_decides_as_the_cpu_does_and_alone_as_in_a_batch(sixteen):
    """Wording may differ between devices: convolutions round differently, and INT8 steps make that visible."""
    fast = ReportDrafter(SHIPPED, device="cuda")
    together = draft(fast, *[(study.study_uid, study.files[0][1]) for study in SIMULATED])
    alone = [draft(fast, (study.study_uid, study.files[0][1]))[0] for study in SIMULATED]
    states = [[finding.state for finding in each.findings] for each in together]
    assert states == [[finding.state for finding in each.findings] for each in sixteen]
    assert [text(each) for each in together] == [text(each) for each in alone]
