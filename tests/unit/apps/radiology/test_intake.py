"""Intake: every hostile file is named, every good one is stored."""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.files.storage import default_storage
from pydicom.uid import generate_uid
from testkit import dicom_files

from apps.accounts.contracts import Actor
from apps.audit.models import Event
from apps.core import clock
from apps.radiology.contracts import BatchResult
from apps.radiology.models import Instance, Patient, Study, UploadedFile
from apps.radiology.rules.limits import MIB, Limits
from apps.radiology.services import intake
from apps.radiology.services.decoding import Decoder

TakeIn = Callable[..., BatchResult]
ME = Actor(user_id=None, name="test", role="system")


def by_name(result: BatchResult) -> dict[str, tuple[str, str]]:
    return {one.file: (one.status, one.reason) for one in result.files}


def test_of_two_hundred_files_ten_bad_kinds_are_named_and_the_rest_is_stored(take_in: TakeIn) -> None:
    files = {f"good-{number:03}.dcm": dicom_files.good() for number in range(190)}
    files |= {name: make() for name, (make, _reason) in dicom_files.REFUSED.items()}
    result = take_in(files)
    assert result.counts == {"stored": 190, "duplicate": 0, "quarantined": 0, "not_displayable": 0, "refused": 10}
    found = by_name(result)
    for name, (_make, reason) in dicom_files.REFUSED.items():
        assert found[name][0] == "refused"
        assert reason in found[name][1]
    assert Instance.objects.filter(displayable=True).count() == 190


def test_refused_bytes_stay_in_quarantine_until_dismissed(take_in: TakeIn, radiologist: object) -> None:
    data = dicom_files.truncated()
    take_in({"bad.dcm": data})
    row = UploadedFile.objects.get()
    with default_storage.open(row.key) as file:
        assert file.read() == data
    by = Actor(user_id=radiologist.pk, name="r", role="radiologist")  # type: ignore[attr-defined]
    key = row.key
    assert intake.file_dismiss(file_id=row.pk, by=by, at=clock.now())
    assert not intake.file_dismiss(file_id=row.pk, by=by, at=clock.now())
    row.refresh_from_db()
    assert (row.key, row.status) == ("", "refused")
    assert Event.objects.filter(verb="file.dismiss").count() == 1
    assert default_storage.exists(key)  # the bytes go when the transaction commits, which this test never does


def test_the_same_bytes_again_are_a_duplicate(take_in: TakeIn) -> None:
    data = dicom_files.good()
    take_in({"a.dcm": data})
    result = take_in({"b.dcm": data})
    assert by_name(result)["b.dcm"] == ("duplicate", "")
    assert Instance.objects.count() == 1


def test_other_bytes_under_a_known_uid_are_quarantined_and_both_are_kept(take_in: TakeIn) -> None:
    uid = generate_uid()
    take_in({"a.dcm": dicom_files.good(SOPInstanceUID=uid)})
    result = take_in({"b.dcm": dicom_files.good(SOPInstanceUID=uid, InstanceNumber=2)})
    assert by_name(result)["b.dcm"][0] == "quarantined"
    assert default_storage.exists(UploadedFile.objects.get(name="b.dcm").key)
    assert default_storage.exists(Instance.objects.get().file_key)


def test_a_file_is_never_put_into_the_study_of_another_patient(take_in: TakeIn) -> None:
    uid = generate_uid()
    take_in({"a.dcm": dicom_files.good(StudyInstanceUID=uid, PatientID="ONE")})
    result = take_in({"b.dcm": dicom_files.good(StudyInstanceUID=uid, PatientID="TWO")})
    assert by_name(result)["b.dcm"] == ("quarantined", "its Study Instance UID belongs to a study of another patient")
    assert Study.objects.get().series.get().instances.count() == 1


def test_the_preamble_is_cleared_unless_it_is_a_tiff_header(take_in: TakeIn) -> None:
    tiff = b"II*\x00" + b"\x07" * 124 + dicom_files.good()[128:]
    take_in({"gif.dcm": dicom_files.polyglot(), "tiff.dcm": tiff})
    starts = []
    for instance in Instance.objects.order_by("pk"):
        with default_storage.open(instance.file_key) as file:
            starts.append(file.read(128))
    assert starts == [bytes(128), tiff[:128]]


def test_an_object_without_pixels_is_stored_and_says_so(take_in: TakeIn) -> None:
    result = take_in({"a.dcm": dicom_files.no_pixel_data()})
    assert by_name(result)["a.dcm"] == ("not_displayable", "no pixel data (Computed Radiography Image Storage)")


def test_an_absurd_window_is_replaced_by_one_from_the_pixels(take_in: TakeIn) -> None:
    take_in({"a.dcm": dicom_files.absurd_window()})
    window = Instance.objects.get().windows[0]
    assert not window["from_file"]
    assert 0 < window["width"] <= 4096


def test_patients_are_shown_by_a_stable_pseudonym(take_in: TakeIn) -> None:
    take_in({"a.dcm": dicom_files.good(PatientID="X"), "b.dcm": dicom_files.good(PatientID="X")})
    take_in({"c.dcm": dicom_files.good(PatientID="Y")})
    words = list(Patient.objects.order_by("pk").values_list("pseudonym", flat=True))
    assert len(words) == len(set(words)) == 2
    assert all(word.startswith("P-") and "X" not in word[2:] or len(word) == 6 for word in words)


def test_a_zip_is_opened_and_its_traps_are_named(take_in: TakeIn) -> None:
    inner = dicom_files.zip_of({"x.dcm": dicom_files.good()})
    bundle = dicom_files.zip_of(
        {"../../evil.dcm": dicom_files.good(), "nested.zip": inner, "ok/b.dcm": dicom_files.good()}
    )
    found = by_name(take_in({"all.zip": bundle, "link.zip": dicom_files.zip_with_symlink()}))
    assert found == {
        "all.zip: evil.dcm": ("stored", ""),
        "all.zip: nested.zip": ("refused", "an archive in an archive"),
        "all.zip: ok/b.dcm": ("stored", ""),
        "link.zip: link.dcm": ("refused", "a symbolic link in the zip"),
    }
    assert default_storage.exists(UploadedFile.objects.get(name="all.zip: nested.zip").key)


def test_a_zip_bomb_is_refused_before_it_unpacks(take_in: TakeIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.radiology.rules import limits
    from apps.radiology.services import importing

    small = Limits(archive_bytes=4 * MIB)
    monkeypatch.setattr(
        importing.path_import, "__kwdefaults__", {**importing.path_import.__kwdefaults__, "limits": small}
    )
    assert limits.DEFAULT.archive_bytes > small.archive_bytes
    found = by_name(take_in({"bomb.zip": dicom_files.zip_of({"a": bytes(3 * MIB), "b": bytes(3 * MIB)})}))
    assert found["bomb.zip"] == ("refused", "the zip would unpack to 6.0 MiB: the limit is 4.0 MiB")


def test_a_child_that_runs_out_of_memory_or_time_is_replaced_and_the_next_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.dcm"
    path.write_bytes(dicom_files.good())
    with Decoder(limits=Limits(seconds=0.0)) as decoder:
        assert "takes longer" in decoder.examine(path, folder=tmp_path)["reason"]
    with Decoder() as decoder:
        assert decoder.examine(path, folder=tmp_path)["status"] == "displayable"
        decoder._child.kill()
        decoder._child.wait()
        assert decoder.examine(path, folder=tmp_path)["status"] == "displayable"


def test_a_deflated_bomb_meets_the_memory_limit_and_the_worker_lives(tmp_path: Path) -> None:
    import zlib

    start = dicom_files.in_syntax(dicom_files.DeflatedExplicitVRLittleEndian)
    meta = start[: 128 + 4 + 12 + int.from_bytes(start[140:144], "little")]
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(squeezer.compress(bytes(32 * MIB)) for _part in range(24)) + squeezer.flush()
    path = tmp_path / "bomb.dcm"
    path.write_bytes(meta + body)
    with Decoder(limits=Limits(memory_bytes=768 * MIB)) as decoder:
        assert decoder.examine(path, folder=tmp_path)["status"] == "refused"
        path.write_bytes(dicom_files.good())
        assert decoder.examine(path, folder=tmp_path)["status"] == "displayable"


def test_every_stored_image_is_an_audit_event(take_in: TakeIn) -> None:
    take_in({"a.dcm": dicom_files.good()})
    assert Event.objects.get(verb="image.store").object_id == Instance.objects.get().sop_uid
