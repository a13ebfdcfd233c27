"""Drafts: up to 16 images a call, one bad study costs no other its draft, nothing happens twice."""

from collections.abc import Callable

import pytest
from testkit import dicom_files

from apps.core import clock
from apps.engine.fake import FakeEngine
from apps.radiology.contracts import BatchResult
from apps.radiology.models import Draft, Report, Study
from apps.radiology.services import drafts
from ml_core.contracts import DraftRequest, DraftResult
from ml_core.errors import ImageError

TakeIn = Callable[..., BatchResult]


def test_a_stored_study_gets_a_draft_that_names_its_model(take_in: TakeIn, champion: str) -> None:
    result = take_in({"a.dcm": dicom_files.good()}, draft="here")
    assert result.drafts == "done"
    draft = Draft.objects.get()
    assert (draft.state, draft.attempt, draft.model_digest, draft.images) == ("DONE", 1, champion, 1)
    assert draft.finished_at is not None
    report = Report.objects.get()
    assert report.state == "draft"
    assert [one["text"] for one in report.sentences] == [one["text"] for one in draft.sentences]


def test_twenty_studies_go_through_in_calls_of_at_most_sixteen_images(
    take_in: TakeIn, champion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain = FakeEngine.draft

    def counted(self: FakeEngine, request: DraftRequest, /) -> DraftResult:
        sizes.append(sum(len(study.images) for study in request.studies))
        return plain(self, request)

    monkeypatch.setattr(FakeEngine, "draft", counted)
    take_in({f"{number}.dcm": dicom_files.good() for number in range(20)}, draft="here")
    assert sizes == [16, 4]
    assert set(Draft.objects.values_list("state", flat=True)) == {"DONE"}


def test_a_study_that_the_engine_chokes_on_fails_alone(
    take_in: TakeIn, champion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeEngine.draft
    take_in({f"{number}.dcm": dicom_files.good() for number in range(3)})
    bad = Study.objects.order_by("pk")[1].uid

    def choking(self: FakeEngine, request: DraftRequest, /) -> DraftResult:
        if any(study.key == bad for study in request.studies):
            raise ImageError("it chokes")
        return plain(self, request)

    monkeypatch.setattr(FakeEngine, "draft", choking)
    for study in Study.objects.all():
        drafts.study_queue(study=study, by=_me(), at=clock.now())
    drafts.drafts_run(now=clock.now, seconds=60)
    states = {draft.study.uid: (draft.state, draft.error_code) for draft in Draft.objects.select_related("study")}
    assert states.pop(bad) == ("FAILED", "image_undecodable")
    assert set(states.values()) == {("DONE", "")}


def test_running_twice_drafts_once(take_in: TakeIn, champion: str) -> None:
    take_in({"a.dcm": dicom_files.good()}, draft="here")
    assert drafts.drafts_run(now=clock.now, seconds=60) == 0
    assert Draft.objects.get().attempt == 1


def test_a_modality_that_is_no_film_is_declined_without_asking_the_model(take_in: TakeIn) -> None:
    take_in({"a.dcm": dicom_files.good(Modality="CT")}, draft="auto")
    draft = Draft.objects.get()
    assert (draft.state, draft.declined, draft.attempt) == ("DONE", True, 0)
    assert draft.declined_reason == "CT is not a chest radiograph: drafts are made for chest radiographs only."


def test_without_a_champion_the_draft_fails_by_name(take_in: TakeIn) -> None:
    take_in({"a.dcm": dicom_files.good()}, draft="here")
    draft = Draft.objects.get()
    assert (draft.state, draft.error_code) == ("FAILED", "no_champion")


def test_a_draft_that_comes_late_does_not_touch_what_a_person_wrote(study: Study, champion: str) -> None:
    from apps.radiology.services import reports

    sent = [{"text": "Normal.", "section": "impression", "source": None}]
    reports.report_save(study=study, version=0, sentences=sent, by=_me(), at=clock.now())
    drafts.study_queue(study=study, by=_me(), at=clock.now())
    drafts.drafts_run(now=clock.now, seconds=60)
    assert [one["text"] for one in Report.objects.get().sentences] == ["Normal."]


def test_an_answer_of_an_attempt_that_was_taken_over_is_dropped(study: Study, champion: str) -> None:
    drafts.study_queue(study=study, by=_me(), at=clock.now())
    (claimed,) = drafts._claim(at=clock.now())
    Draft.objects.update(attempt=2)
    drafts._draft_group([claimed], now=clock.now)
    assert Draft.objects.get().state == "RUNNING"
    assert not Report.objects.exists()


def _me() -> object:
    from apps.accounts.contracts import Actor

    return Actor(user_id=None, name="test", role="system")
