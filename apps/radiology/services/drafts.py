"""Drafts: which studies wait for one, up to 16 images in one call of the engine, and the answers into rows."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.db.models import Count, Exists, F, OuterRef, Q

from apps.accounts.api import Actor, system_actor
from apps.audit.api import AuditEvent, record
from apps.engine.port import get_engine
from apps.radiology import jobs
from apps.radiology.models import Batch, Draft, DraftState, Instance, Report, ReportState, Study
from apps.radiology.rules import drafting
from apps.registry import api as registry
from ml_core import contracts
from ml_core.contracts import ModelKey, ModelKind
from ml_core.errors import EngineError

_LARGEST_ATTEMPT = 3
_READ_AHEAD = 32


def drafts_queue(*, batch: Batch, by: Actor, at: datetime) -> int:
    """Make a waiting draft for each study of a batch that has pictures and no draft yet; says how many wait.

    Studies of other modalities get their answer at once, without asking the model.
    """
    wanting = (
        Study.objects.filter(series__instances__displayable=True)
        .filter(Q(batch=batch) | Q(series__instances__in=batch.files.values("instance")))
        .exclude(Exists(Draft.objects.filter(study=OuterRef("pk"))))
        .distinct()
    )
    waiting = 0
    for study in wanting:
        waiting += study_queue(study=study, by=by, at=at)
    return waiting


def study_queue(*, study: Study, by: Actor, at: datetime) -> int:
    """Queue one (further) draft of a study; 1 where it waits for the model, 0 where it was declined at once."""
    reason = drafting.decline_reason(study.modality)
    with transaction.atomic():
        number = Draft.objects.filter(study=study).count() + 1
        draft = Draft(study=study, number=number, queued_at=at)
        if reason:
            draft.state, draft.declined, draft.declined_reason = DraftState.DONE, True, reason
            draft.started_at = draft.finished_at = at
        draft.full_clean()
        draft.save()
        record(
            AuditEvent(
                actor=by, verb="draft.queue", object_type="study", object_id=study.uid, at=at,
                detail={"number": number, "declined": reason},
            )
        )  # fmt: skip
    return 0 if reason else 1


def study_queue_now(*, study: Study, by: Actor, at: datetime) -> None:
    """Queue a further draft because a person asked, unless one waits or runs already."""
    with transaction.atomic():
        Study.objects.select_for_update().get(pk=study.pk)
        if Draft.objects.filter(study=study, state__in=(DraftState.QUEUED, DraftState.RUNNING)).exists():
            return
        if study_queue(study=study, by=by, at=at):
            jobs.enqueue_draft()


def drafts_run(*, now: Callable[[], datetime], seconds: float) -> int:
    """Draft waiting studies, call after call, until none is left or the time is up. Returns how many were handled."""
    handled = 0
    until = now() + timedelta(seconds=seconds)
    while now() < until:
        group = _claim(at=now())
        if not group:
            break
        _draft_group(group, now=now)
        handled += len(group)
    else:
        with transaction.atomic():
            jobs.enqueue_draft()
    return handled


def _claim(*, at: datetime) -> list[Draft]:
    """Mark the first waiting drafts that fit one call as running, and those whose worker died too often as lost."""
    stale = at - timedelta(seconds=1.1 * settings.LANE_LIMIT_S["gpu"])
    with transaction.atomic():
        free = Draft.objects.filter(Q(state=DraftState.QUEUED) | Q(state=DraftState.RUNNING, started_at__lt=stale))
        free.filter(attempt__gte=_LARGEST_ATTEMPT).update(
            state=DraftState.LOST, error_code="lost", error="The worker died three times over this study.",
            finished_at=at,
        )  # fmt: skip
        if connection.features.has_select_for_update_skip_locked:
            free = free.select_for_update(skip_locked=True, of=("self",))
        first = list(free.order_by("study__priority", "queued_at", "pk").select_related("study")[:_READ_AHEAD])
        sizes = dict(
            Instance.objects.filter(series__study__in=[draft.study_id for draft in first], displayable=True)
            .values_list("series__study")
            .annotate(Count("pk"))
        )
        fitting = [(draft, min(sizes.get(draft.study_id, 0), drafting.IMAGES_A_CALL)) for draft in first]
        group = drafting.grouped(fitting)
        Draft.objects.filter(pk__in=[draft.pk for draft in group]).update(
            state=DraftState.RUNNING, attempt=F("attempt") + 1, started_at=at
        )
    for draft in group:
        draft.attempt += 1
        draft.started_at = at
    return group


def _draft_group(group: list[Draft], *, now: Callable[[], datetime]) -> None:
    """One call for the group; where it fails, one call a study, so that one bad study costs no other its draft."""
    try:
        model = registry.champion(ModelKind.REPORT).key
        result = get_engine().draft(_request(group, model=model))
    except EngineError as error:
        if len(group) > 1:
            for draft in group:
                _draft_group([draft], now=now)
            return
        _fail(group[0], code=error.code, message=str(error), at=now())
        return
    except registry.NoChampionError as error:
        for draft in group:
            _fail(draft, code=error.code, message=error.message, at=now())
        return
    answers = {answer.study_key: answer for answer in result.drafts}
    for draft in group:
        answer = answers.get(draft.study.uid)
        if answer is None:
            _fail(draft, code="no_answer", message="The engine gave no answer for this study.", at=now())
        else:
            _write(draft, answer=answer, digest=result.model_digest, seconds=result.seconds, at=now())


def _request(group: list[Draft], *, model: ModelKey) -> contracts.DraftRequest:
    studies = []
    for draft in group:
        instances = Instance.objects.filter(series__study=draft.study_id, displayable=True).order_by(
            "series__number", "series_id", "position", "number", "pk"
        )[: drafting.IMAGES_A_CALL]
        images = []
        for instance in instances:
            with default_storage.open(instance.file_key) as file:
                images.append(contracts.ImageInput(key=instance.sop_uid, encoded=file.read()))
        draft.images = len(images)
        studies.append(contracts.StudyInput(key=draft.study.uid, images=tuple(images)))
    return contracts.DraftRequest(model=model, studies=tuple(studies))


def _write(draft: Draft, *, answer: contracts.Draft, digest: str, seconds: float, at: datetime) -> None:
    """Write an answer, unless the row was taken over by a later attempt meanwhile."""
    with transaction.atomic():
        written = Draft.objects.filter(pk=draft.pk, state=DraftState.RUNNING, attempt=draft.attempt).update(
            state=DraftState.DONE, model_digest=digest, declined=answer.declined,
            declined_reason=answer.declined_reason[:300], findings=[asdict(one) for one in answer.findings],
            sentences=[asdict(one) for one in answer.sentences], seconds=seconds, images=draft.images, finished_at=at,
            error_code="", error="",
        )  # fmt: skip
        if not written:
            return
        if not answer.declined:
            Study.objects.filter(pk=draft.study_id).update(ai_flag=drafting.ai_flag(answer)[:200])
            _into_report(draft, answer=answer, at=at)
        record(
            AuditEvent(
                actor=system_actor(name="report drafter"), verb="draft.write", object_type="study",
                object_id=draft.study.uid, at=at,
                detail={"model": digest, "declined": answer.declined, "attempt": draft.attempt},
            )
        )  # fmt: skip


def _into_report(draft: Draft, *, answer: contracts.Draft, at: datetime) -> None:
    """Put the draft's sentences into the report, unless a person has begun to write there."""
    sentences = drafting.report_sentences(answer)
    report, created = Report.objects.get_or_create(
        study_id=draft.study_id,
        defaults={"draft": draft, "sentences": sentences, "created_at": at, "updated_at": at},
    )
    if not created:
        Report.objects.filter(pk=report.pk, state=ReportState.DRAFT, updated_by=None).update(
            draft=draft, sentences=sentences, version=F("version") + 1, updated_at=at
        )


def _fail(draft: Draft, *, code: str, message: str, at: datetime) -> None:
    Draft.objects.filter(pk=draft.pk, state=DraftState.RUNNING, attempt=draft.attempt).update(
        state=DraftState.FAILED, error_code=code, error=message[:300], finished_at=at
    )
