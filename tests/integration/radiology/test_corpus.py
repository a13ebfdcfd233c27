"""The shared DICOM corpus through intake: what is valid is shown, the rest is named, and pixels equal pydicom's."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from testkit.shared import SHARED, needs_shared

from apps.accounts.contracts import Actor
from apps.core import clock
from apps.radiology.models import Instance, Study
from apps.radiology.rules.display import Window, windowed
from apps.radiology.selectors import study_images
from apps.radiology.services.decoding import Decoder
from apps.radiology.services.importing import path_import

DICOM = SHARED / "data" / "radiology" / "dicom"
ME = Actor(user_id=None, name="test", role="system")
pytestmark = [needs_shared, pytest.mark.shared]

GOLDEN_GREY = (
    "pydicomdata_693_UNCR.dcm",
    "pydicom_693_J2KI.dcm",
    "pydicom_MR_small_RLE.dcm",
    "pydicom_MR_small_implicit.dcm",
    "pydicom_6154.dcm",
    "pydicomdata_MR2_J2KI.dcm",
    "pydicomdata_RG1_J2KI.dcm",
    "pydicomdata_RG3_J2KR.dcm",
    "pylibjpegdata_RG2_JLSN.dcm",
    "pylibjpegdata_RG2_JPLY_fixed.dcm",
    "pylibjpegdata_ELSCINT1_JP2vsJ2K.dcm",
    "pylibjpegdata_JPEGLossless_1s_1f_u_16_12.dcm",
    "pylibjpegdata_TOSHIBA_J2K_SIZ1_PixRep0.dcm",
    "pylibjpegdata_MAROTECH_CT_JP2Lossy.dcm",
    "pydicom_J2K_pixelrep_mismatch.dcm",
    "pydicomdata_JPGLosslessP14SV1_1s_1f_8b.dcm",
    "highdicom_dx_image.dcm",
    "pynetdicom_MRImageStorage_ExplicitVRBigEndian.dcm",
)
GOLDEN_VALUES = (
    "pydicomdata_mlut_18.dcm",
    "pydicom_rtdose.dcm",
    "pydicom_rtdose_rle.dcm",
    "pydicomdata_parametric_map_float.dcm",
    "pydicomdata_parametric_map_double_float.dcm",
    "pynetdicom_CTImageStorage.dcm",
    "pydicom_liver_expb_1frame.dcm",
    "torchxrayvision_Fake_MONOHR1.dcm",
)
GOLDEN_COLOUR = (
    "pydicom_SC_rgb_dcmtk__eb_cy_n2.dcm",
    "pydicom_examples_palette.dcm",
    "pydicomdata_SC_rgb_expb_16bit.dcm",
    "pydicomdata_US1_J2KI.dcm",
    "pydicom_SC_ybr_full_422_uncompressed.dcm",
    "pydicomdata_gdcm-US-ALOKA-16.dcm",
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as child:
        yield child


@pytest.fixture(autouse=True)
def private_storage(settings: object, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "private"  # type: ignore[attr-defined]


def test_every_valid_file_is_displayable(decoder: Decoder, tmp_path: Path) -> None:
    files = sorted((DICOM / "valid").glob("*.dcm"))
    answers = {file.name: decoder.examine(file, folder=tmp_path) for file in files}
    assert len(answers) == 108
    assert {name: one["reason"] for name, one in answers.items() if one["status"] != "displayable"} == {}


@pytest.mark.django_db
def test_importing_all_of_it_loses_nothing_and_quarantines_only_contradictions() -> None:
    result = path_import(path=DICOM / "valid", draft="none", by=ME, now=clock.now, progress=lambda _done, _known: None)
    found = [one for one in result.files if one.file.endswith(".dcm")]
    assert len(found) == 108
    assert {one.status for one in found} == {"stored", "quarantined"}
    uids = [
        str(pydicom.dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
        for file in (DICOM / "valid").glob("*.dcm")
    ]
    assert sum(one.status == "stored" for one in found) == len(set(uids))
    assert Instance.objects.filter(displayable=True).count() == len(set(uids))


@pytest.mark.django_db
@pytest.mark.parametrize(
    "name", [row["file"] for row in csv.DictReader((DICOM / "odd" / "index.csv").open())] if DICOM.is_dir() else []
)
def test_every_odd_file_is_stored_or_refused_by_name(name: str) -> None:
    result = path_import(path=DICOM / "odd" / name, draft="none", by=ME, now=clock.now, progress=lambda _d, _k: None)
    (one,) = result.files
    assert one.status in ("stored", "not_displayable", "refused")
    assert one.status == "stored" or one.reason


@pytest.mark.django_db
@pytest.mark.parametrize(
    "entry", json.loads((DICOM / "malformed_made" / "manifest.json").read_text()) if DICOM.is_dir() else []
)
def test_every_malformed_file_gets_what_the_manifest_wants(entry: dict[str, str]) -> None:
    path = DICOM / "malformed_made" / entry["file"]
    (one,) = path_import(path=path, draft="none", by=ME, now=clock.now, progress=lambda _d, _k: None).files
    wanted = {"refuse": "refused", "store_not_displayable": "not_displayable", "accept": "stored"}
    assert one.status == wanted[entry["want"]]
    if entry["want"] != "accept":
        assert entry["reason"] in one.reason


@pytest.mark.django_db
def test_sixteen_slices_are_one_study_in_the_order_of_their_position() -> None:
    path_import(path=DICOM / "series_mr16", draft="none", by=ME, now=clock.now, progress=lambda _done, _known: None)
    images = study_images(study=Study.objects.get())
    positions = [image.position for image in images]
    assert len(images) == 16
    assert positions == sorted(positions)  # type: ignore[type-var]


@pytest.mark.parametrize("name", GOLDEN_GREY)
def test_grey_images_look_as_pydicom_shows_them(decoder: Decoder, tmp_path: Path, name: str) -> None:
    dataset = pydicom.dcmread(DICOM / "valid" / name)
    values, display = _values(decoder, tmp_path, name)
    theirs = apply_modality_lut(dataset.pixel_array, dataset)
    np.testing.assert_allclose(values, theirs, rtol=1e-6, atol=1e-3)
    low, high = _range_of(dataset)
    shown = apply_voi_lut(theirs, dataset)
    ours = windowed(values, Window(**display["windows"][0]))
    assert display["windows_from_file"]
    assert np.abs(ours - (shown - low) / (high - low)).max() <= 1 / 255


@pytest.mark.parametrize("name", GOLDEN_VALUES)
def test_values_survive_tables_wide_integers_and_floats(decoder: Decoder, tmp_path: Path, name: str) -> None:
    dataset = pydicom.dcmread(DICOM / "valid" / name)
    values, _display = _values(decoder, tmp_path, name)
    theirs = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
    spread = float(np.ptp(theirs)) or 1.0
    assert np.abs(values - theirs.reshape(values.shape)).max() <= spread / 65_535


@pytest.mark.parametrize("name", GOLDEN_COLOUR)
def test_colours_are_those_of_pydicom(decoder: Decoder, tmp_path: Path, name: str) -> None:
    dataset = pydicom.dcmread(DICOM / "valid" / name)
    decoder.examine(DICOM / "valid" / name, folder=tmp_path)
    theirs = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        theirs = apply_color_lut(theirs, dataset)[..., :3]
    if theirs.dtype.itemsize > 1:
        theirs = theirs / (2 ** (8 * theirs.dtype.itemsize) - 1) * 255
    ours = np.fromfile(tmp_path / "frames.raw", np.uint8).reshape(theirs.shape).astype(float)
    assert np.abs(ours - theirs).max() <= 1


def _values(decoder: Decoder, folder: Path, name: str) -> tuple[np.ndarray, dict[str, object]]:
    answer = decoder.examine(DICOM / "valid" / name, folder=folder)
    display, claims = answer["display"], answer["claims"]
    kind = "u1" if display["bits"] == 8 else "<i2" if display["signed"] else "<u2"
    shape = (claims["rows"], claims["columns"])
    if claims["frames"] > 1:
        shape = (claims["frames"], *shape)
    stored = np.fromfile(folder / "frames.raw", kind).reshape(shape)
    return stored * display["slope"] + display["intercept"], display


def _range_of(dataset: pydicom.Dataset) -> tuple[float, float]:
    """The output range of pydicom's windowing: that of the stored bits, after the modality transformation."""
    bits = int(dataset.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept
