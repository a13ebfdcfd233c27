"""The search of radiology: what it finds, five questions, hostile words, a constant number of queries."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from testkit import dicom_files
from testkit.people import make_user

from apps.accounts.contracts import Role
from apps.audit.models import Event
from apps.core import clock
from apps.radiology import selectors
from apps.radiology.contracts import BatchResult
from apps.radiology.models import Draft, Patient, Report, Study

TakeIn = Callable[..., BatchResult]
URL = "/radiology/search/"
HOSTILE = [
    "%", "_", "%%%", "___", "\\", "'", '"', "''; DROP TABLE radiology_study; --", "<script>alert(1)</script>",
    "é\u202e", "...", "findings", "confidence",
]  # fmt: skip


def sentences(*texts: str) -> list[dict[str, object]]:
    """Sentences as a report holds them."""
    return [{"section": "findings", "text": text, "confidence": 0.5} for text in texts]


def page_of(client: Client, text: str) -> str:
    response = client.get(URL, {"q": text})
    assert response.status_code == 200, response.get("Location")
    return response.content.decode()


@pytest.fixture
def reported(study: Study) -> Study:
    """The study with a report in words."""
    now = clock.now()
    Report.objects.create(
        study=study,
        sentences=sentences("Small pleural effusion on the left.", "Übersicht: 100 % unverändert.", "Heart is large."),
        created_at=now,
        updated_at=now,
    )
    return study


@pytest.mark.parametrize("role", [Role.RADIOLOGIST, Role.AUDITOR, Role.ADMIN])
def test_the_search_opens_for_readers_and_without_words_says_what_to_try(db: None, role: Role) -> None:
    client = Client()
    client.force_login(make_user(role))
    assert "Type a patient's pseudonym" in page_of(client, "")
    assert not Event.objects.filter(verb="radiology.search").exists()


@pytest.mark.parametrize("role", [Role.ANALYST, Role.SENIOR_ANALYST, Role.INTEGRATOR])
def test_the_search_does_not_exist_for_strangers(reported: Study, role: Role) -> None:
    client = Client()
    client.force_login(make_user(role))
    assert client.get(URL, {"q": "effusion"}).status_code == 404


def test_somebody_signed_out_is_sent_to_the_sign_in_page(db: None) -> None:
    response = Client().get(URL, {"q": "effusion"})
    assert response.status_code == 302
    assert response["Location"].startswith("/sign-in/")


def test_the_search_refuses_post(signed_in: Client) -> None:
    assert signed_in.post(URL, {"q": "effusion"}).status_code == 405


def test_searching_twice_finds_the_same_and_is_recorded_twice(signed_in: Client, reported: Study) -> None:
    address = reverse("radiology:study", args=[reported.uid])
    for _time in range(2):
        assert page_of(signed_in, "effusion").count(address) == 1
    events = Event.objects.filter(verb="radiology.search")
    assert [(event.detail["query"], event.detail["rows"]) for event in events] == [("effusion", 1)] * 2
    assert events[0].sentence.endswith("searched the studies")


def test_a_whole_uid_opens_its_study(signed_in: Client, study: Study) -> None:
    assert signed_in.get(URL, {"q": study.uid})["Location"] == reverse("radiology:study", args=[study.uid])


def test_the_beginning_of_a_uid_lists_its_studies(signed_in: Client, study: Study) -> None:
    assert study.uid in page_of(signed_in, study.uid[:-2])


def test_a_pseudonym_of_one_study_opens_it(signed_in: Client, study: Study) -> None:
    name = study.patient.pseudonym
    for text in (name, f" {name.lower()} ", name.removeprefix("P-")):
        assert signed_in.get(URL, {"q": text})["Location"] == reverse("radiology:study", args=[study.uid])


def test_a_pseudonym_of_two_studies_lists_both(signed_in: Client, study: Study) -> None:
    other = Study.objects.get(pk=study.pk)
    other.pk, other.uid = None, "1.2.3.99"
    other.save()
    other.series.create(uid="1.2", modality="CR").instances.create(
        sop_uid="1.2.3.4.5.6.7", sop_class="1.2", sha256="0", stored_sha256="0", size_bytes=1, file_key="x",
        modality="CR", displayable=False, created_at=clock.now(),
    )  # fmt: skip
    page = page_of(signed_in, study.patient.pseudonym)
    assert f"/studies/{study.uid}/" in page
    assert f"/studies/{other.uid}/" in page


def test_no_name_of_a_patient_can_be_searched_for(signed_in: Client, study: Study) -> None:
    Patient.objects.update(name="Winterbottom", identifier="MRN-991")
    for text in ("Winterbottom", "MRN-991"):
        assert "Nothing found for" in page_of(signed_in, text)


@pytest.mark.parametrize("text", ["effusion", "EFFUSION left", "pleural small", "100 %", "heart left", "unverändert"])
def test_words_of_a_report_find_it_when_all_of_them_are_in_it(signed_in: Client, reported: Study, text: str) -> None:
    page = page_of(signed_in, text)
    assert f"/studies/{reported.uid}/" in page


def test_the_sentences_that_hold_the_words_are_quoted(signed_in: Client, reported: Study) -> None:
    page = page_of(signed_in, "heart")
    assert "Heart is large." in page
    assert "pleural effusion" not in page.split("</thead>")[1]


@pytest.mark.parametrize("text", ["effusion right", "pneumonia"])
def test_a_word_that_is_missing_is_not_found(signed_in: Client, reported: Study, text: str) -> None:
    assert "Nothing found for" in page_of(signed_in, text)


def test_a_draft_is_searched_while_there_is_no_report_and_only_the_newest(signed_in: Client, study: Study) -> None:
    for number, text in ((1, "Old words."), (2, "New words.")):
        Draft.objects.create(study=study, number=number, sentences=sentences(text), queued_at=clock.now())
    assert f"/studies/{study.uid}/" in page_of(signed_in, "new words")
    assert "Nothing found for" in page_of(signed_in, "old words")
    Report.objects.create(study=study, sentences=[], created_at=clock.now(), updated_at=clock.now())
    assert "Nothing found for" in page_of(signed_in, "new words")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_find_nothing_and_break_nothing(signed_in: Client, study: Study, text: str) -> None:
    Report.objects.create(study=study, sentences=sentences("No."), created_at=clock.now(), updated_at=clock.now())
    page = page_of(signed_in, text)
    assert "Nothing found for" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize("text", ["x" * 10_000, "4" * 10_000, "a\x00b"])
def test_words_beyond_the_limit_are_refused_by_name(signed_in: Client, text: str) -> None:
    response = signed_in.get(URL, {"q": text})
    assert response.status_code == 422
    assert 'role="alert"' in response.content.decode()


def test_text_with_markup_is_escaped(signed_in: Client, study: Study) -> None:
    now = clock.now()
    Report.objects.create(study=study, sentences=sentences("<b>bold</b> claim"), created_at=now, updated_at=now)
    page = page_of(signed_in, "claim")
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page


def test_a_group_is_cut_and_says_so(signed_in: Client, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "FOUND_ROWS", 1)
    for number in range(3):
        Patient.objects.create(key=str(number), pseudonym=f"P-ZZZ{number}")
    page = page_of(signed_in, "P-ZZZ")
    assert "P-ZZZ0" in page
    assert "P-ZZZ1" not in page
    assert "type more to narrow it down" in page


def test_the_search_asks_the_same_number_of_queries_for_one_study_and_for_many(
    signed_in: Client, take_in: TakeIn, django_assert_max_num_queries
) -> None:
    signed_in.get(URL)
    for n in (1, 12):
        take_in({f"{n}-{i}.dcm": dicom_files.good(study=f"1.2.{n}.{i}") for i in range(n)})
        for study in Study.objects.filter(report=None):
            at = clock.now() - timedelta(hours=1)
            Report.objects.create(study=study, sentences=sentences("Clear lungs."), created_at=at, updated_at=at)
        with django_assert_max_num_queries(18):
            assert "Clear lungs." in page_of(signed_in, "clear lungs")


def test_the_box_stands_on_the_pages_of_the_half(signed_in: Client) -> None:
    page = signed_in.get("/radiology/").content.decode()
    assert f'action="{URL}"' in page
    assert 'aria-label="Search patient, study, report"' in page
