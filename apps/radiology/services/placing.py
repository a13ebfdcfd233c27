"""Puts an accepted file into its patient, study and series, and its bytes into private storage."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from apps.radiology.models import Batch, Instance, Patient, Series, Study
from apps.radiology.rules import patient as patient_rules


class ConflictingFileError(Exception):
    """What is stored already contradicts this file; the message is the reason for quarantine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """Where the bytes of one object lie; `frames` and `thumb` are empty where it cannot be displayed."""

    file: str
    frames: str
    thumb: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """Hashes of the sent and of the kept bytes, and the keys."""

    sha256: str
    stored_sha256: str
    size_bytes: int
    keys: Keys


def instance_place(*, batch: Batch, answer: dict[str, Any], facts: FileFacts, at: datetime) -> Instance:
    """Create the instance, and its series, study and patient where they are new; call inside a transaction."""
    header = answer["header"]
    other = Instance.objects.filter(sop_uid=header["sop_uid"]).first()
    if other is not None:
        raise ConflictingFileError(
            f"other bytes under a SOP Instance UID that is stored already (SHA-256 {other.sha256[:12]}…); both are kept"
        )
    study = _study(batch=batch, header=header, at=at)
    series, _new = Series.objects.get_or_create(
        study=study,
        uid=header["series_uid"],
        defaults={
            "modality": header["modality"],
            "description": header["series_description"],
            "number": header["series_number"],
        },
    )
    instance = Instance(
        sop_uid=header["sop_uid"], series=series, sop_class=header["sop_class"],
        transfer_syntax=header["transfer_syntax"], transfer_syntax_name=header["transfer_syntax_name"][:120],
        sha256=facts.sha256, stored_sha256=facts.stored_sha256, size_bytes=facts.size_bytes, file_key=facts.keys.file,
        modality=header["modality"], body_part=header["body_part"], view=header["view"],
        laterality=header["laterality"], number=header["instance_number"], position=header["position"],
        displayable=answer["status"] == "displayable", reason=answer["reason"][:300], created_at=at,
    )  # fmt: skip
    if instance.displayable:
        _describe_display(instance, answer=answer, keys=facts.keys)
    instance.full_clean(validate_unique=False)  # the database judges that, races included
    instance.save()
    return instance


def bytes_write(*, content: bytes, folder: Path, keys: Keys) -> None:
    """Write the file, and the display frames and thumbnail that the decoder left in `folder`."""
    default_storage.save(keys.file, ContentFile(content))
    for key, name in ((keys.frames, "frames.raw"), (keys.thumb, "thumb.png")):
        if key:
            with (folder / name).open("rb") as source:
                default_storage.save(key, File(source))


def bytes_delete(*, keys: Keys) -> None:
    """Take back what was written for an object whose rows were rolled back."""
    for key in (keys.file, keys.frames, keys.thumb):
        if key and default_storage.exists(key):
            default_storage.delete(key)


def _study(*, batch: Batch, header: dict[str, Any], at: datetime) -> Study:
    person = _patient(header)
    study = Study.objects.filter(uid=header["study_uid"]).first()
    if study is None:
        return Study.objects.create(
            uid=header["study_uid"], patient=person, batch=batch, modality=header["modality"],
            body_part=header["body_part"], description=header["study_description"], age=header["patient_age"],
            study_date=patient_rules.date_of(header["study_date"]), priority=batch.priority, arrived_at=at,
        )  # fmt: skip
    if study.patient_id != person.pk:
        raise ConflictingFileError("its Study Instance UID belongs to a study of another patient")
    return study


def _patient(header: dict[str, Any]) -> Patient:
    key = patient_rules.patient_key(
        name=header["patient_name"],
        identifier=header["patient_id"],
        birth_date=header["patient_birth_date"],
        sop_uid=header["sop_uid"],
        secret=settings.TOKEN_KEY,
    )
    found = Patient.objects.filter(key=key).first()
    if found is not None:
        return found
    word = next(
        word
        for length in range(4, 13)
        if not Patient.objects.filter(pseudonym=(word := patient_rules.pseudonym(key, length=length))).exists()
    )
    return Patient.objects.create(
        key=key, pseudonym=word, name=header["patient_name"], identifier=header["patient_id"],
        sex=header["patient_sex"] if header["patient_sex"] in ("M", "F", "O") else "",
        birth_date=patient_rules.date_of(header["patient_birth_date"]),
    )  # fmt: skip


def _describe_display(instance: Instance, *, answer: dict[str, Any], keys: Keys) -> None:
    claims, display = answer["claims"], answer["display"]
    instance.frames_key, instance.thumb_key = keys.frames, keys.thumb
    instance.rows, instance.columns, instance.frames = claims["rows"], claims["columns"], display["frames"]
    instance.bits, instance.signed, instance.samples = display["bits"], display["signed"], display["samples"]
    instance.photometric = claims["photometric"][:32] if display["samples"] == 1 else "RGB"
    instance.slope, instance.intercept = display["slope"], display["intercept"]
    instance.low, instance.high = display["low"], display["high"]
    instance.windows = [window | {"from_file": display["windows_from_file"]} for window in display["windows"]]
