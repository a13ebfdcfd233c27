"""Reports: no save over somebody else's, no signature without the password, no change after it."""

from functools import partial

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import DatabaseError, transaction

from apps.accounts.contracts import Actor
from apps.accounts.models import User
from apps.core import clock
from apps.core.errors import ConflictError, NotAllowedError
from apps.radiology.models import Instance, Report, ReportSignature, Study
from apps.radiology.services import reports

PASSWORD = "right-horse-battery"
TEXT = [{"text": "The lungs are clear.", "section": "findings", "source": None}]


@pytest.fixture
def me(radiologist: User) -> Actor:
    return Actor(user_id=radiologist.pk, name=radiologist.username, role="radiologist")


@pytest.fixture
def signature(study: Study, me: Actor) -> ReportSignature:
    reports.report_save(study=study, version=0, sentences=TEXT, by=me, at=clock.now())
    return reports.report_sign(study=study, version=2, password=PASSWORD, by=me, at=clock.now())


def test_a_save_grows_the_version_and_makes_the_report_preliminary(study: Study, me: Actor) -> None:
    report = reports.report_save(study=study, version=0, sentences=TEXT, by=me, at=clock.now())
    assert (report.version, report.state, report.sentences[0]["origin"]) == (2, "preliminary", "person")


def test_a_save_from_an_old_version_is_a_conflict_and_changes_nothing(study: Study, me: Actor) -> None:
    reports.report_save(study=study, version=0, sentences=TEXT, by=me, at=clock.now())
    other = [{"text": "Something else.", "section": "findings", "source": None}]
    with pytest.raises(ConflictError, match="radiologist-1 changed this report"):
        reports.report_save(study=study, version=1, sentences=other, by=me, at=clock.now())
    assert Report.objects.get().sentences[0]["text"] == "The lungs are clear."


def test_the_same_save_twice_is_one_version(study: Study, me: Actor) -> None:
    reports.report_save(study=study, version=0, sentences=TEXT, by=me, at=clock.now())
    same = [{**TEXT[0], "source": 0}]
    assert reports.report_save(study=study, version=2, sentences=same, by=me, at=clock.now()).version == 2


def test_an_edited_sentence_keeps_what_the_draft_said(study: Study, me: Actor) -> None:
    _draft_report(study, supported=True)
    sent = [{"text": "No effusion.", "section": "findings", "source": 0}]
    row = reports.report_save(study=study, version=1, sentences=sent, by=me, at=clock.now()).sentences[0]
    assert (row["origin"], row["original"], row["text"]) == ("edited", "An effusion.", "No effusion.")


def test_a_sentence_without_support_must_be_confirmed_before_signing(study: Study, me: Actor) -> None:
    _draft_report(study, supported=False)
    with pytest.raises(NotAllowedError, match="without support"):
        reports.report_sign(study=study, version=1, password=PASSWORD, by=me, at=clock.now())
    sent = [{"text": "An effusion.", "section": "findings", "source": 0, "confirmed": True}]
    reports.report_save(study=study, version=1, sentences=sent, by=me, at=clock.now())
    assert reports.report_sign(study=study, version=2, password=PASSWORD, by=me, at=clock.now()).digest


def test_a_wrong_password_signs_nothing(study: Study, me: Actor) -> None:
    reports.report_save(study=study, version=0, sentences=TEXT, by=me, at=clock.now())
    with pytest.raises(reports.PasswordError):
        reports.report_sign(study=study, version=2, password="guess", by=me, at=clock.now())
    assert not ReportSignature.objects.exists()


def test_an_empty_report_cannot_be_signed(study: Study, me: Actor) -> None:
    reports.report_save(study=study, version=0, sentences=[], by=me, at=clock.now())
    with pytest.raises(NotAllowedError, match="empty"):
        reports.report_sign(study=study, version=2, password=PASSWORD, by=me, at=clock.now())


def test_a_signature_verifies_until_a_byte_of_an_image_changes(signature: ReportSignature) -> None:
    assert reports.signature_verify(signature=signature).intact
    instance = Instance.objects.get()
    with default_storage.open(instance.file_key) as file:
        data = bytearray(file.read())
    data[-1] ^= 1
    default_storage.delete(instance.file_key)
    default_storage.save(instance.file_key, ContentFile(bytes(data)))
    found = reports.signature_verify(signature=signature)
    assert not found.intact
    assert found.faults == (f"Image {instance.sop_uid} is not the image that was signed.",)


def test_a_signature_does_not_verify_another_text_or_signer(signature: ReportSignature) -> None:
    signature.signer_name = "Somebody Else"
    assert not reports.signature_verify(signature=signature).intact


def test_the_service_refuses_to_change_a_signed_report(signature: ReportSignature, me: Actor) -> None:
    with pytest.raises(NotAllowedError, match="signed"):
        reports.report_save(study=signature.report.study, version=3, sentences=TEXT, by=me, at=clock.now())


@pytest.mark.parametrize("change", ["update report", "delete report", "update signature", "delete signature"])
def test_the_database_refuses_to_change_what_is_signed(signature: ReportSignature, change: str) -> None:
    verb, what = change.split()
    model, key = (Report, signature.report_id) if what == "report" else (ReportSignature, signature.pk)
    rows = model.objects.filter(pk=key)
    what_changes = {"sentences": []} if what == "report" else {"text": "other"}
    act = partial(rows._raw_delete, rows.db) if verb == "delete" else partial(rows.update, **what_changes)
    with pytest.raises(DatabaseError, match="immutable"), transaction.atomic():
        act()
    signature.refresh_from_db()
    assert signature.text == "Findings\nThe lungs are clear."


def _draft_report(study: Study, *, supported: bool) -> None:
    row = {
        "section": "findings", "text": "An effusion.", "confidence": 0.4, "finding": "Pleural Effusion", "box": None,
        "image_key": "", "supported": supported, "confirmed": False, "origin": "draft",
    }  # fmt: skip
    Report.objects.create(study=study, sentences=[row], created_at=clock.now(), updated_at=clock.now())
