"""Simulated films: same seed same bits, findings where they are said to be, reports to match, valid DICOM."""

import io

import numpy as np
import pytest
from pydicom import dcmread

from ml_core.contracts import FindingState
from ml_core.data.dicom import image_read
from ml_core.data.labeller import label_report
from ml_core.data.phantom import render
from ml_core.data.phantom_dicom import ENCODINGS, make_studies, to_dicom

SEEDS = range(40)


@pytest.fixture(scope="module")
def films():
    return [render(seed, size=128) for seed in SEEDS]


def test_the_same_seed_gives_the_same_film_and_another_seed_another(films):
    again = render(3, size=128)
    assert np.array_equal(again.pixels, films[3].pixels)
    assert again.report == films[3].report
    assert not np.array_equal(films[3].pixels, films[4].pixels)


def test_pixels_are_twelve_bits_and_use_them(films):
    for film in films:
        assert film.pixels.dtype == np.uint16
        assert film.pixels.max() <= 4095
        assert np.percentile(film.pixels, 99) - np.percentile(film.pixels, 1) > 1_000


def test_every_kind_of_finding_is_drawn_and_none_is_drawn_always(films):
    names = [finding.name for film in films for finding in film.findings]
    assert len(set(names)) >= 8
    assert any(not film.findings for film in films)
    assert all(names.count(name) < len(films) for name in set(names))


def test_a_finding_lies_in_its_box_on_the_film(films):
    for film in films:
        for finding in film.findings:
            x, y, width, height = finding.box
            assert 0 <= x < x + width <= 1 + 1e-9
            assert 0 <= y < y + height <= 1 + 1e-9
            assert 0 < finding.severity <= 1


def test_a_healthy_film_says_so():
    film = render(11, size=128, findings=())
    assert film.findings == ()
    said = label_report(film.report.text)
    assert said["No Finding"] is FindingState.POSITIVE


def test_the_report_states_what_is_shown(films):
    told = (FindingState.POSITIVE, FindingState.UNCERTAIN)
    for film in films:
        said = label_report(film.report.text)
        for finding in film.findings:
            assert said[finding.name] in told, (finding, film.report.text)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_an_encoded_film_is_valid_dicom_with_the_same_picture(encoding):
    (study,) = make_studies(5, patients=1, size=64, priors=0.0)
    plain = image_read(to_dicom(study.films[0], patient=study.patient, study=study.header))
    file = to_dicom(study.films[0], patient=study.patient, study=study.header, encoding=encoding)
    dataset = dcmread(io.BytesIO(file))
    assert dataset.file_meta.TransferSyntaxUID == ENCODINGS[encoding]
    assert dataset.StudyInstanceUID == study.study_uid
    error = np.abs(image_read(file) - plain).max()
    assert error <= (1 / 255 + 1e-3 if encoding == "eight_bit" else 0)


def test_priors_come_before_the_study_and_belong_to_the_patient():
    studies = make_studies(9, patients=6, size=64, priors=1.0)
    by_patient: dict[str, list] = {}
    for study in studies:
        by_patient.setdefault(study.patient.id, []).append(study)
    assert len(by_patient) == 6
    for own in by_patient.values():
        times = [study.header.at for study in own]
        assert len(own) >= 2
        assert times == sorted(times)
        assert len({study.study_uid for study in own}) == len(own)
