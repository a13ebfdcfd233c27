"""Simulated films as DICOM objects, and whole studies with priors. Every name is invented."""

import hashlib
import io
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_core.data.dicom import SIMULATOR
from ml_core.data.phantom import Film, render
from ml_core.data.phantom_body import body_sample
from ml_core.data.phantom_disease import Disease, disease_sample

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DX, _CR = "1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1"
# Encoding to transfer syntax; the picture is the same in all of them.
ENCODINGS: dict[str, str] = {
    "explicit_le": "1.2.840.10008.1.2.1",
    "implicit_le": "1.2.840.10008.1.2",
    "explicit_be": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "jpegls": "1.2.840.10008.1.2.4.80",
    "j2k": "1.2.840.10008.1.2.4.90",
    "mono1": "1.2.840.10008.1.2.1",
    "signed_rescale": "1.2.840.10008.1.2.1",
    "eight_bit": "1.2.840.10008.1.2.1",
}
_FAMILY = (
    "Almeida",
    "Brandt",
    "Castellan",
    "Dupont",
    "Eriksen",
    "Farkas",
    "Grohl",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kovac",
    "Lindqvist",
    "Moreau",
    "Novak",
    "Okafor",
    "Petrov",
    "Quist",
    "Rossi",
    "Santos",
    "Tanaka",
)
_GIVEN = {
    "F": ("Ana", "Britta", "Clara", "Dora", "Elif", "Fatima", "Greta", "Hanna", "Ines", "Julia"),
    "M": ("Adam", "Boris", "Carlos", "David", "Emil", "Felix", "Goran", "Henrik", "Ivan", "Jonas"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """Who is named in the header. `sex` is F or M, `birth` a date as YYYYMMDD."""

    id: str
    name: str
    sex: str
    birth: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyHeader:
    """What the header says of the study; `key` makes the UIDs (same key, same study)."""

    key: str
    at: datetime
    accession: str = ""
    description: str = "CHEST"
    referrer: str = "Simulated^Referrer"


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedStudy:
    """One study: its files (name, bytes), the films behind them and a reference report on the first."""

    patient: Patient
    header: StudyHeader
    study_uid: str
    films: tuple[Film, ...]
    files: tuple[tuple[str, bytes], ...]
    report: str


def to_dicom(
    film: Film,
    *,
    patient: Patient,
    study: StudyHeader,
    series: int = 1,
    instance: int = 1,
    encoding: str = "explicit_le",
) -> bytes:
    """A DICOM Part 10 file of the film: DX for standing (PA) films, CR for bedside (AP) ones. Same input, same bytes.

    `encoding` is one of ENCODINGS. Raises KeyError for another.
    """
    from pydicom import dcmwrite
    from pydicom.uid import UID

    syntax = UID(ENCODINGS[encoding])
    dataset = _header(film, patient=patient, study=study, series=series, instance=instance)
    _pixels(dataset, film, encoding)
    if encoding in ("rle", "jpegls", "j2k"):
        dataset.file_meta.TransferSyntaxUID = UID(ENCODINGS["explicit_le"])
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # big endian is retired; it is written on purpose
        dcmwrite(
            stream,
            dataset,
            enforce_file_format=True,
            little_endian=syntax.is_little_endian,
            implicit_vr=syntax.is_implicit_VR,
        )
    return stream.getvalue()


def make_studies(
    seed: int, *, patients: int, size: int = 512, until: datetime | None = None, priors: float = 0.6
) -> list[SimulatedStudy]:
    """Studies of invented patients, oldest first for each: with probability `priors` one or two earlier ones.

    Between studies a finding grows, shrinks, goes or comes; anatomy stays. `until` is when the last study was made.
    """
    end = until or datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    studies = []
    for index in range(patients):
        rng = np.random.default_rng([seed, index, 41])
        body = body_sample(rng)
        patient = _patient(rng, number=seed * 10_000 + index, sex=body.sex, age=body.age, end=end)
        count = 1 + (int(rng.integers(1, 3)) if rng.random() < priors else 0)
        at = end - timedelta(minutes=int(rng.integers(5, 3 * 24 * 60)))
        dates = [at]
        for _ in range(count - 1):
            dates.insert(0, dates[0] - timedelta(days=int(rng.integers(2, 220)), minutes=int(rng.integers(600))))
        diseases = disease_sample(rng, view=body.view, normal=0.3)
        for number, when in enumerate(dates):
            header = StudyHeader(
                key=f"{seed}/{index}/{number}", at=when, accession=f"SIM{seed % 100:02d}{index:04d}{number}"
            )
            film = render(seed * 1_000_003 + index * 17 + number, size=size, findings=diseases, body=body)
            file = to_dicom(film, patient=patient, study=header)
            studies.append(
                SimulatedStudy(
                    patient=patient,
                    header=header,
                    study_uid=_uid("study", header.key),
                    films=(film,),
                    report=film.report.text,
                    files=((f"{patient.id}_{header.accession}.dcm", file),),
                )
            )
            diseases = _evolve(diseases, rng, view=body.view)
    return studies


def _patient(rng: np.random.Generator, *, number: int, sex: str, age: int, end: datetime) -> Patient:
    family, given = _FAMILY[int(rng.integers(len(_FAMILY)))], _GIVEN[sex][int(rng.integers(len(_GIVEN[sex])))]
    birth = datetime(end.year - age - 1, int(rng.integers(1, 13)), int(rng.integers(1, 29)), tzinfo=UTC)
    return Patient(id=f"SIM-{number:07d}", name=f"{family}^{given}", sex=sex, birth=f"{birth:%Y%m%d}")


def _evolve(diseases: tuple[Disease, ...], rng: np.random.Generator, *, view: str) -> tuple[Disease, ...]:
    kept = []
    for disease in diseases:
        chance = rng.random()
        if chance < 0.2 and disease.kind not in ("cardiomegaly", "pacemaker", "mediastinum", "thickening"):
            continue
        severity = (
            float(np.clip(disease.severity * rng.uniform(0.6, 1.6), 0.15, 1.0)) if chance > 0.5 else disease.severity
        )
        kept.append(replace(disease, severity=severity))
    if rng.random() < 0.3:
        kinds = {disease.kind for disease in kept}
        kept += [new for new in disease_sample(rng, view=view, normal=0.0)[:1] if new.kind not in kinds]
    return tuple(kept)


def _uid(*parts: object) -> str:
    """A UID under 2.25 (PS3.5 B.2) made from what it names."""
    digest = hashlib.sha256("/".join(map(str, ("assay-phantom", *parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _header(film: Film, *, patient: Patient, study: StudyHeader, series: int, instance: int) -> "Dataset":
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    standing = film.body.view == "PA"
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "SOPClassUID": _DX if standing else _CR,
        "SOPInstanceUID": _uid("instance", study.key, series, instance),
        "StudyInstanceUID": _uid("study", study.key),
        "SeriesInstanceUID": _uid("series", study.key, series),
        "StudyDate": f"{study.at:%Y%m%d}",
        "StudyTime": f"{study.at:%H%M%S}",
        "ContentDate": f"{study.at:%Y%m%d}",
        "ContentTime": f"{study.at:%H%M%S}",
        "AccessionNumber": study.accession,
        "Modality": "DX" if standing else "CR",
        "Manufacturer": SIMULATOR,
        "ReferringPhysicianName": study.referrer,
        "StudyDescription": study.description,
        "SeriesDescription": f"CHEST {film.body.view}",
        "PatientName": patient.name,
        "PatientID": patient.id,
        "PatientBirthDate": patient.birth,
        "PatientSex": patient.sex,
        "PatientAge": f"{film.body.age:03d}Y",
        "BodyPartExamined": "CHEST",
        "ViewPosition": film.body.view,
        "StudyID": study.accession[-16:],
        "SeriesNumber": series,
        "InstanceNumber": instance,
        "PatientOrientation": ["L", "F"],
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
    }
    if standing:
        values |= {
            "PresentationIntentType": "FOR PRESENTATION",
            "PixelIntensityRelationship": "LOG",
            "PixelIntensityRelationshipSign": -1,
            "PresentationLUTShape": "IDENTITY",
            "ImageLaterality": "U",
            "AcquisitionDate": values["StudyDate"],
            "ImagerPixelSpacing": [0.8, 0.8],
        }
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = UID(_uid("implementation"))
    return dataset


def _pixels(dataset: "Dataset", film: Film, encoding: str) -> None:
    pixels = film.pixels
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    centre = 2048
    if encoding == "mono1":
        dataset.PhotometricInterpretation, pixels = "MONOCHROME1", (4095 - pixels).astype(np.uint16)
        if "PresentationLUTShape" in dataset:
            dataset.PresentationLUTShape = "INVERSE"
    elif encoding == "signed_rescale":
        dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 2048
        dataset.BitsStored, dataset.HighBit = 16, 15
        pixels = (pixels.astype(np.int32) - 2048).astype(np.int16)
    elif encoding == "eight_bit":
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, centre = 8, 8, 7, 128
        pixels = (pixels >> 4).astype(np.uint8)
    dataset.WindowCenter, dataset.WindowWidth = centre, 2 * centre
    big = encoding == "explicit_be"
    body = pixels.astype(pixels.dtype.newbyteorder(">")) if big else pixels
    raw = body.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
