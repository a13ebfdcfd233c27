"""Whether a file is told to be a simulated film: by what its header says, and by nothing else."""

import io

import pytest
from PIL import Image
from pydicom import dcmread

from ml_core.data.dicom import is_simulated
from ml_core.data.phantom_dicom import ENCODINGS, make_studies, to_dicom

STUDY = make_studies(5, patients=1, size=64, priors=0.0)[0]


def film(encoding: str = "explicit_le") -> bytes:
    return to_dicom(STUDY.films[0], patient=STUDY.patient, study=STUDY.header, encoding=encoding)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_our_simulator_s_films_say_so_in_every_encoding(encoding: str) -> None:
    assert is_simulated(film(encoding))


def test_a_film_of_another_maker_is_not_simulated() -> None:
    dataset = dcmread(io.BytesIO(film()))
    for maker in ("Siemens", ""):
        dataset.Manufacturer = maker
        stream = io.BytesIO()
        dataset.save_as(stream)
        assert not is_simulated(stream.getvalue())
    del dataset.Manufacturer
    stream = io.BytesIO()
    dataset.save_as(stream)
    assert not is_simulated(stream.getvalue())


def test_a_picture_without_a_header_is_not_simulated() -> None:
    stream = io.BytesIO()
    Image.fromarray((STUDY.films[0].pixels >> 4).astype("uint8")).save(stream, "PNG")
    assert not is_simulated(stream.getvalue())
