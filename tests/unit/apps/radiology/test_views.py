"""The pages of radiology: they work, refuse the wrong method, the signed out and the wrong role, and survive twice."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from testkit import dicom_files
from testkit.people import make_user

from apps.accounts.contracts import Role
from apps.audit.models import Event
from apps.core import clock
from apps.radiology.contracts import BatchResult
from apps.radiology.models import Batch, Report, Study, UploadedFile

TakeIn = Callable[..., BatchResult]
PASSWORD = "right-horse-battery"


def pages(study: Study) -> dict[str, tuple[str, str]]:
    """Every view: its address and the method that it takes."""
    series = study.series.get()
    place = [study.uid, series.uid, series.instances.get().sop_uid]
    batch = study.batch
    assert batch is not None
    return {
        "list": (reverse("radiology:reading_list"), "get"),
        "batch": (reverse("radiology:batch", args=[batch.uid]), "get"),
        "quarantine": (reverse("radiology:quarantine"), "get"),
        "study": (reverse("radiology:study", args=[study.uid]), "get"),
        "draft_state": (reverse("radiology:draft_state", args=[study.uid]), "get"),
        "print": (reverse("radiology:study_print", args=[study.uid]), "get"),
        "verify": (reverse("radiology:verify", args=[study.uid]), "get"),
        "metadata": (reverse("radiology:metadata", args=place), "get"),
        "frames": (reverse("radiology:frames", args=[*place, 1]), "get"),
        "thumbnail": (reverse("radiology:thumbnail", args=place), "get"),
        "upload": (reverse("radiology:upload"), "write"),
        "batch_create": (reverse("radiology:batch_create"), "post"),
        "batch_files": (reverse("radiology:batch_files", args=[batch.uid]), "post"),
        "dismiss": (reverse("radiology:dismiss", args=[1]), "post"),
        "draft_again": (reverse("radiology:draft_again", args=[study.uid]), "post"),
        "save": (reverse("radiology:report_save", args=[study.uid]), "post"),
        "sign": (reverse("radiology:report_sign", args=[study.uid]), "post"),
    }


def test_every_page_works_and_twice(signed_in: Client, study: Study) -> None:
    for name, (address, method) in pages(study).items():
        if method == "post":
            continue
        for _time in range(2):
            response = signed_in.get(address)
            assert response.status_code == 200, name


def test_every_view_refuses_the_wrong_method(signed_in: Client, study: Study) -> None:
    for name, (address, method) in pages(study).items():
        wrong = signed_in.post if method == "get" else signed_in.delete if method == "write" else signed_in.get
        assert wrong(address).status_code == 405, name


def test_the_signed_out_are_sent_to_sign_in(study: Study) -> None:
    for name, (address, method) in pages(study).items():
        response = getattr(Client(), "post" if method == "post" else "get")(address)
        assert response.status_code == 302, name
        assert "sign-in" in response["Location"], name


@pytest.mark.parametrize("role", [Role.ANALYST, Role.SENIOR_ANALYST, Role.INTEGRATOR])
def test_strangers_see_404(study: Study, role: Role) -> None:
    client = Client()
    client.force_login(make_user(role))
    for name, (address, method) in pages(study).items():
        response = getattr(client, "post" if method == "post" else "get")(address)
        assert response.status_code == 404, name


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.ADMIN])
def test_auditor_and_admin_read_and_do_not_write(study: Study, role: Role) -> None:
    client = Client()
    client.force_login(make_user(role))
    for name, (address, method) in pages(study).items():
        response = getattr(client, "post" if method == "post" else "get")(address)
        assert response.status_code == (200 if method == "get" else 404), name


def test_one_person_does_not_add_to_the_batch_of_another(signed_in: Client, study: Study) -> None:
    assert signed_in.post(reverse("radiology:batch_files", args=[study.batch.uid])).status_code == 404  # type: ignore[union-attr]


@pytest.mark.django_db(transaction=True)
def test_the_plain_form_takes_many_files_and_each_gets_its_result(signed_in: Client, champion: str) -> None:
    files = [
        SimpleUploadedFile("good.dcm", dicom_files.good()),
        SimpleUploadedFile("letter.dcm", dicom_files.text_renamed()),
        SimpleUploadedFile("empty.dcm", b""),
    ]
    response = signed_in.post(reverse("radiology:upload"), {"files": files, "priority": "0"}, follow=True)
    assert response.status_code == 200
    found = dict(UploadedFile.objects.values_list("name", "status"))
    assert found == {"good.dcm": "stored", "letter.dcm": "refused", "empty.dcm": "refused"}
    assert b"not DICOM" in response.content
    study = Study.objects.get()
    assert (study.priority, study.drafts.get().state) == (0, "DONE")


@pytest.mark.django_db(transaction=True)
def test_a_script_opens_a_batch_and_sends_files_into_it(signed_in: Client, champion: str) -> None:
    opened = signed_in.post(reverse("radiology:batch_create"), {"priority": "1"})
    assert opened.status_code == 201
    files = {"files": [SimpleUploadedFile("a.dcm", dicom_files.good())], "name": ["folder/a.dcm"]}
    assert signed_in.post(opened.json()["files"], files).status_code == 202
    assert UploadedFile.objects.get().name == "folder/a.dcm"
    fragment = signed_in.get(opened.json()["page"], headers={"HX-Request": "true"})
    assert b"folder/a.dcm" in fragment.content
    assert b"<html" not in fragment.content


def test_names_with_markup_are_escaped_everywhere(signed_in: Client, take_in: TakeIn) -> None:
    take_in({"<b>x.dcm": dicom_files.html_names(), "<i>bad.dcm": b"no"})
    study = Study.objects.get()
    for name, (address, method) in pages(study).items():
        if method == "get" and name not in ("frames", "thumbnail", "metadata"):
            content = signed_in.get(address).content
            assert b"<img src=x" not in content, name
            assert b"<b>x.dcm" not in content, name
            assert b"<i>bad" not in content, name
            assert b"<script>alert" not in content, name


def test_opening_a_study_is_one_audit_event_and_its_frames_are_none(signed_in: Client, study: Study) -> None:
    found = pages(study)
    for name in ("study", "metadata", "frames", "frames", "thumbnail"):
        signed_in.get(found[name][0])
    assert Event.objects.filter(verb="study.read").count() == 1


def test_pixels_fetched_past_the_page_are_audited_too(signed_in: Client, study: Study) -> None:
    signed_in.get(pages(study)["frames"][0])
    assert Event.objects.filter(verb="study.read", object_id=study.uid).count() == 1


def test_frames_are_private_and_not_sniffed_and_as_long_as_they_should(signed_in: Client, study: Study) -> None:
    response = signed_in.get(pages(study)["frames"][0])
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Cache-Control"].startswith("private")
    assert len(response.content) == 64 * 64 * 2
    address = pages(study)["frames"][0].removesuffix("1")
    assert signed_in.get(address + "2").status_code == 404
    assert signed_in.get(address + "0").status_code == 404


def test_only_the_study_page_may_compile_wasm(signed_in: Client, study: Study) -> None:
    found = pages(study)
    assert "'wasm-unsafe-eval'" in signed_in.get(found["study"][0])["Content-Security-Policy"]
    for name in ("list", "quarantine", "batch", "upload", "print"):
        assert "wasm" not in signed_in.get(found[name][0])["Content-Security-Policy"], name


def test_save_and_sign_through_the_forms(signed_in: Client, study: Study) -> None:
    found = pages(study)
    text = {"version": "0", "text": ["Clear lungs.", ""], "section": ["findings", "impression"], "source": ["", ""]}
    saved = signed_in.post(found["save"][0], text, headers={"Accept": "application/json"})
    assert saved.json()["version"] == 2
    stale = signed_in.post(found["save"][0], {**text, "version": "1"}, headers={"Accept": "application/json"})
    assert (stale.status_code, stale.json()["code"]) == (409, "conflict")
    assert b"PRELIMINARY" in signed_in.get(found["print"][0]).content
    signed_in.post(found["sign"][0], {"version": "2", "password": "wrong"})
    assert Report.objects.get().state == "preliminary"
    signed_in.post(found["sign"][0], {"version": "2", "password": PASSWORD})
    assert Report.objects.get().state == "final"
    again = signed_in.post(found["sign"][0], {"version": "3", "password": PASSWORD}, follow=True)
    assert b"This report is signed" in again.content
    assert b"PRELIMINARY" not in signed_in.get(found["print"][0]).content
    assert b"Verified just now" in signed_in.get(found["verify"][0]).content


def test_a_draft_is_marked_as_not_verified_until_it_is_signed(
    signed_in: Client, take_in: TakeIn, champion: str
) -> None:
    take_in({"a.dcm": dicom_files.good()}, draft="here")
    content = signed_in.get(reverse("radiology:study", args=[Study.objects.get().uid])).content
    assert b"AI draft, not verified" in content


def test_the_list_is_ordered_by_people_lifts_by_age_and_ai_only_breaks_ties(signed_in: Client, take_in: TakeIn) -> None:
    take_in({f"{number}.dcm": dicom_files.good(StudyDescription=f"s{number}") for number in range(5)})
    at = clock.now()
    rows = {study.description: study for study in Study.objects.all()}
    for name, priority, minutes, flag in (
        ("s0", 2, 10, ""), ("s1", 2, 5, "pneumothorax"), ("s2", 1, 1, ""), ("s3", 0, 1, ""), ("s4", 2, 25 * 60, ""),
    ):  # fmt: skip
        Study.objects.filter(pk=rows[name].pk).update(
            priority=priority, arrived_at=at - timedelta(minutes=minutes), ai_flag=flag
        )
    content = signed_in.get(reverse("radiology:reading_list")).content.decode()
    order = sorted(rows, key=lambda name: content.index(f">{name} <"))
    assert order == ["s3", "s4", "s2", "s1", "s0"]
    assert "The age cap acts" in content


def test_the_list_takes_as_many_queries_for_many_studies_as_for_one(
    signed_in: Client, take_in: TakeIn, django_assert_max_num_queries: object
) -> None:
    take_in({f"{number}.dcm": dicom_files.good() for number in range(12)})
    with django_assert_max_num_queries(16):  # type: ignore[operator]
        signed_in.get(reverse("radiology:reading_list"))
    assert Batch.objects.count() == 1
