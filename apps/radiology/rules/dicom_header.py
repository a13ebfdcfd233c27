"""Reads a DICOM header with distrust: what pydicom swallowed, what is absent, what cannot be true."""

import re
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import VR

PREAMBLE = 128
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_DIRECTORY = "1.2.840.10008.1.3.10"
_PIXEL_TAGS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_UNDEFINED = 0xFFFFFFFF
_TEXT_LIMIT = 200


class RefusedError(Exception):
    """The file is damaged, hostile or no DICOM; the message is the reason for the person who sent it."""


class NotDisplayableError(Exception):
    """The file is whole, but there is no picture to show; the message is the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What intake keeps of a header. Texts are as the file has them, so pages and exports must escape them."""

    sop_class: str
    sop_class_name: str
    sop_uid: str
    study_uid: str
    series_uid: str
    made_uids: bool
    transfer_syntax: str
    transfer_syntax_name: str
    modality: str
    body_part: str
    view: str
    laterality: str
    patient_name: str
    patient_id: str
    patient_sex: str
    patient_age: str
    patient_birth_date: str
    study_date: str
    study_time: str
    study_description: str
    series_description: str
    series_number: int
    instance_number: int
    position: float | None


def header_read(data: bytes) -> tuple[Dataset, Header, bool]:
    """Parse a whole file. Returns the data set, what is kept of it, and whether it had a file header (`DICM`).

    Raises RefusedError with the reason: no DICOM, a header that cannot be parsed, required tags absent.
    """
    marked = data[PREAMBLE : PREAMBLE + 4] == b"DICM"
    if not marked and data[1:2] != b"\x00":  # a bare data set begins with a low group number, as 0008
        raise RefusedError("not DICOM: no DICM mark at byte 128")
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=not marked)
        _check_elements(dataset)
    except InvalidDicomError as error:
        raise RefusedError("not DICOM: no DICM mark at byte 128") from error
    except (RefusedError, MemoryError):
        raise
    except RecursionError as error:
        raise RefusedError("the header cannot be parsed: sequences are nested too deeply") from error
    except Exception as error:
        raise RefusedError(f"the header cannot be parsed: {_brief(error)}") from error
    if not marked and not dataset.get("SOPClassUID"):
        raise RefusedError("not DICOM: no DICM mark at byte 128, and no data set without one")
    return dataset, _header(dataset), marked


def has_pixels(dataset: Dataset) -> bool:
    """Whether any of the three kinds of pixel data is there."""
    return any(tag in dataset for tag in _PIXEL_TAGS)


def stored_bytes(data: bytes) -> bytes:
    """The bytes to keep: the preamble is zeroed unless it is a TIFF header, so that no other format hides there.

    CVE-2019-11687: PS3.10 section 7.1 leaves the 128 bytes free; only dual-personality TIFF is a known use.
    """
    if data[PREAMBLE : PREAMBLE + 4] != b"DICM" or data[:4] in (b"II*\x00", b"MM\x00*"):
        return data
    return bytes(PREAMBLE) + data[PREAMBLE:]


def _check_elements(dataset: Dataset) -> None:
    """A VR that is none makes pydicom read a length of rubbish and swallow the rest without an error."""
    for tag, element in dataset._dict.items():
        if not isinstance(element, RawDataElement):
            continue
        value = element.value or b""
        if element.length not in (_UNDEFINED, len(value)):
            if tag == 0x7FE00010:
                raise RefusedError(
                    f"pixel data shorter than rows x columns say: {len(value):,} of {element.length:,} bytes are there"
                )
            raise RefusedError(f"the header cannot be parsed: the value of {_tag_words(tag)} runs past the end")
        if element.VR is not None and element.VR not in VR.__members__ and element.VR not in _DOUBLE_VRS:
            raise RefusedError(f"the header cannot be parsed: {_tag_words(tag)} has a VR that is none")


_DOUBLE_VRS = {"US or SS", "OB or OW", "US or OW", "US or SS or OW"}


def _header(dataset: Dataset) -> Header:
    meta = getattr(dataset, "file_meta", Dataset())
    sop_class = _uid(dataset, "SOPClassUID") or _uid(meta, "MediaStorageSOPClassUID")
    if sop_class == _DIRECTORY:
        raise RefusedError("a DICOMDIR: a directory of files, send the files that it lists")
    sop_uid = _uid(dataset, "SOPInstanceUID")
    if not sop_class or not sop_uid:
        absent = "SOPClassUID" if not sop_class else "SOPInstanceUID"
        raise RefusedError(f"a required tag is absent: {absent}")
    study_uid, series_uid = _uid(dataset, "StudyInstanceUID"), _uid(dataset, "SeriesInstanceUID")
    made = not study_uid or not series_uid
    if made and not (has_pixels(dataset) and dataset.get("Rows") and dataset.get("Columns")):
        absent = "StudyInstanceUID" if not study_uid else "SeriesInstanceUID"
        raise RefusedError(f"a required tag is absent: {absent}")
    if "Image Storage" in UID(sop_class).name and not has_pixels(dataset) and not dataset.get("Rows"):
        raise RefusedError("the header ends before the description of the image: the file is cut off")
    syntax = _uid(meta, "TransferSyntaxUID")
    return Header(
        sop_class=sop_class,
        sop_class_name=UID(sop_class).name,
        sop_uid=sop_uid,
        study_uid=study_uid or generate_uid(entropy_srcs=["study", sop_uid]),
        series_uid=series_uid or generate_uid(entropy_srcs=["series", sop_uid]),
        made_uids=made,
        transfer_syntax=syntax,
        transfer_syntax_name=UID(syntax).name if syntax else "no file header",
        modality=_text(dataset, "Modality", 16) or "OT",
        body_part=_text(dataset, "BodyPartExamined", 64),
        view=_text(dataset, "ViewPosition", 16),
        laterality=_text(dataset, "ImageLaterality", 16) or _text(dataset, "Laterality", 16),
        patient_name=_text(dataset, "PatientName"),
        patient_id=_text(dataset, "PatientID"),
        patient_sex=_text(dataset, "PatientSex", 1),
        patient_age=_text(dataset, "PatientAge", 8),
        patient_birth_date=_text(dataset, "PatientBirthDate", 8),
        study_date=_text(dataset, "StudyDate", 8),
        study_time=_text(dataset, "StudyTime", 16),
        study_description=_text(dataset, "StudyDescription"),
        series_description=_text(dataset, "SeriesDescription"),
        series_number=whole(dataset, "SeriesNumber", default=0, low=-(2**31), high=2**31 - 1),
        instance_number=whole(dataset, "InstanceNumber", default=0, low=-(2**31), high=2**31 - 1),
        position=_position(dataset),
    )


def whole(dataset: Dataset, keyword: str, *, default: int, low: int, high: int) -> int:
    """A number of the header, or the default where it is absent, no number or out of bounds."""
    try:
        value = int(str(dataset.get(keyword, default)))
    except (ValueError, TypeError, OverflowError):
        return default
    return value if low <= value <= high else default


def _uid(dataset: Dataset, keyword: str) -> str:
    value = str(dataset.get(keyword) or "").strip().rstrip("\0")
    if value and (len(value) > 64 or not _UID.fullmatch(value)):
        raise RefusedError(f"{keyword} is not a UID")
    return value


def _text(dataset: Dataset, keyword: str, limit: int = _TEXT_LIMIT) -> str:
    try:
        value = str(dataset.get(keyword) or "")
    except Exception:  # noqa: BLE001  an absurd character set must not lose the picture
        return ""
    return "".join(sign for sign in value if sign.isprintable()).strip()[:limit]


def _position(dataset: Dataset) -> float | None:
    """Distance of the slice along the normal of its plane, in mm (PS3.3 C.7.6.2.1.1), to order a series by."""
    try:
        where = [float(value) for value in dataset.get("ImagePositionPatient", [])]
        turn = [float(value) for value in dataset.get("ImageOrientationPatient", [])]
    except (ValueError, TypeError):
        return None
    if len(where) != 3 or len(turn) != 6:
        return None
    (a, b, c), (d, e, f) = turn[:3], turn[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    distance = sum(x * y for x, y in zip(where, normal, strict=True))
    return distance if abs(distance) < 1e7 else None


def _tag_words(tag: BaseTag) -> str:
    name = pydicom.datadict.keyword_for_tag(tag)
    return f"{name} ({tag >> 16:04X},{tag & 0xFFFF:04X})".strip()


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
