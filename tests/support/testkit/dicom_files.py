"""DICOM files for tests, good and hostile, made here so that everybody has them."""

import io
import stat
import zipfile
from collections.abc import Callable

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

SIDE = 64


def make_dataset(*, name: str = "Doe^Jane", identifier: str = "ID1", syntax: UID = ExplicitVRLittleEndian) -> Dataset:
    """A whole chest radiograph of 64 x 64 pixels of 12 bits, in a study of its own."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientName, dataset.PatientID = name, identifier
    dataset.PatientSex, dataset.PatientAge, dataset.StudyDate = "F", "061Y", "20240501"
    dataset.StudyDescription = "Chest"
    dataset.InstanceNumber = 1
    set_pixels(dataset, np.tile(np.arange(SIDE, dtype=np.uint16) * 60, (SIDE, 1)), bits=12)
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    return dataset


def set_pixels(dataset: Dataset, pixels: np.ndarray, *, bits: int, photometric: str = "MONOCHROME2") -> None:
    """Plain pixels: one frame of grey or colour."""
    allocated = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"


def to_bytes(dataset: Dataset) -> bytes:
    """The file, header and all."""
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def good(**changes: object) -> bytes:
    """A good file; keywords set or (None) delete tags."""
    dataset = make_dataset()
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return to_bytes(dataset)


def in_syntax(syntax: UID) -> bytes:
    """The good picture in a transfer syntax (plain ones and RLE)."""
    dataset = make_dataset(syntax=ExplicitVRLittleEndian if syntax == RLELossless else syntax)
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    return to_bytes(dataset)


PLAIN_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
)


def truncated() -> bytes:
    return good()[:-3000]


def rows_lie() -> bytes:
    return good(Rows=4096)


def pixel_flood() -> bytes:
    return good(Rows=65_000, Columns=65_000)


def frames_flood() -> bytes:
    return good(NumberOfFrames="19999", Rows=16_000)


def bad_vr() -> bytes:
    """The VR of PatientName is none, so that its length swallows the rest of the header."""
    return good().replace(b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00\x12\x99", 1)


def no_pixel_data() -> bytes:
    return good(PixelData=None)


def text_renamed() -> bytes:
    return b"Findings: none. This is a letter, not a picture.\n" * 20


def wrong_transfer_syntax() -> bytes:
    return good().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1)


def codestream_lies() -> bytes:
    """The header says 64 x 64, the JPEG within 60,000 x 60,000."""
    dataset = make_dataset(syntax=JPEGBaseline8Bit)
    set_pixels(dataset, np.zeros((SIDE, SIDE), np.uint8), bits=8)
    frame = b"\xff\xd8\xff\xc0\x00\x0b\x08" + (60_000).to_bytes(2) + (60_000).to_bytes(2) + b"\x01\x01\x11\x00\xff\xd9"
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset)


def no_study_no_pixels() -> bytes:
    return good(StudyInstanceUID=None, PixelData=None)


def path_in_uid() -> bytes:
    return good().replace(b"1.2.826.0.1.3680043.8.498.", b"../../../../etc/passwd/../")


def deep_nesting() -> bytes:
    """Sequences in sequences, deeper than any object needs."""
    dataset = make_dataset()
    data = to_bytes(dataset)
    begin = b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return data[: data.index(b"\xe0\x7f\x10\x00")] + begin * 3000 + data[data.index(b"\xe0\x7f\x10\x00") :]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.dcm": (truncated, "pixel data shorter than rows x columns say"),
    "rows_lie.dcm": (rows_lie, "pixel data shorter than rows x columns say"),
    "pixel_flood.dcm": (pixel_flood, "the limit is"),
    "frames_flood.dcm": (frames_flood, "the limit is"),
    "bad_vr.dcm": (bad_vr, "the header cannot be parsed"),
    "text_renamed.dcm": (text_renamed, "not DICOM"),
    "wrong_syntax.dcm": (wrong_transfer_syntax, "pixel data is not what the transfer syntax says"),
    "codestream_lies.dcm": (codestream_lies, "the compressed frame 60000 x 60000"),
    "no_study.dcm": (no_study_no_pixels, "a required tag is absent: StudyInstanceUID"),
    "path_in_uid.dcm": (path_in_uid, "is not a UID"),
}


def polyglot() -> bytes:
    return b"GIF89a" + b"\x01" * 122 + good()[128:]


def absurd_window() -> bytes:
    return good(WindowCenter="1e300", WindowWidth="0")


def html_names() -> bytes:
    return good(PatientName="<script>alert(1)</script>", StudyDescription="<img src=x onerror=alert(1)>")


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def zip_with_symlink() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return out.getvalue()
