"""Reads of radiology: the reading list, a study with its images, batches, quarantine."""

from datetime import datetime
from typing import Any

from django.db.models import Case, Count, F, IntegerField, OuterRef, Q, QuerySet, Subquery, Value, When
from django.utils.http import urlencode

from apps.radiology.models import (
    Batch,
    Draft,
    DraftState,
    FileStatus,
    Instance,
    Priority,
    Report,
    ReportState,
    Study,
    UploadedFile,
)
from apps.radiology.rules import ordering

_STRIP = 64


def reading_list(
    *,
    at: datetime,
    priority: str = "",
    reader_id: int | None = None,
    batch_id: int | None = None,
    query: str = "",
    state: str = "open",
) -> QuerySet[Study]:
    """Studies to read, in order: STAT, then what waited past its cap, then urgent, then routine; within one rank what
    AI flagged comes first, then the oldest. `state`: open, final or all."""  # fmt: skip
    overdue = Q()
    for level, cap in ordering.CAPS.items():
        overdue |= Q(priority=level, arrived_at__lte=at - cap)
    last = Draft.objects.filter(study=OuterRef("pk")).order_by("-number")
    rows = Study.objects.filter(series__instances__isnull=False).annotate(
        images=Count("series__instances", distinct=True),
        lifted=Case(When(overdue, then=Value(1)), default=Value(0), output_field=IntegerField()),
        rank=Case(
            When(priority=Priority.STAT, then=Value(ordering.STAT_RANK)),
            When(overdue, then=Value(ordering.LIFTED_RANK)),
            When(priority=Priority.URGENT, then=Value(ordering.RANKS[Priority.URGENT])),
            default=Value(ordering.RANKS[Priority.ROUTINE]),
            output_field=IntegerField(),
        ),
        flagged=Case(When(~Q(ai_flag="") & ~overdue, then=Value(0)), default=Value(1), output_field=IntegerField()),
        draft_state=Subquery(last.values("state")[:1]),
        draft_declined=Subquery(last.values("declined")[:1]),
        draft_reason=Subquery(last.values("declined_reason")[:1]),
        draft_error=Subquery(last.values("error")[:1]),
        draft_findings=Subquery(last.values("findings")[:1]),
        report_state=F("report__state"),
    )
    if state == "open":
        rows = rows.exclude(report__state=ReportState.FINAL)
    elif state == "final":
        rows = rows.filter(report__state=ReportState.FINAL)
    levels = {name: value for value, name in ((0, "stat"), (1, "urgent"), (2, "routine"))}
    if priority in levels:
        rows = rows.filter(priority=levels[priority])
    if reader_id is not None:
        rows = rows.filter(reader_id=reader_id)
    if batch_id is not None:
        rows = rows.filter(Q(batch_id=batch_id) | Q(pk__in=_studies_of_batch(batch_id)))
    if query:
        rows = rows.filter(Q(patient__pseudonym__icontains=query) | Q(description__icontains=query))
    return rows.select_related("patient", "reader").order_by("rank", "flagged", "arrived_at", "pk")


def list_counts(*, reader_id: int | None) -> dict[str, int]:
    """How many open studies each filter would show, and how the drafts stand."""
    studies = Study.objects.filter(series__instances__isnull=False).exclude(report__state=ReportState.FINAL).distinct()
    counts = {"stat": 0, "urgent": 0, "routine": 0}
    for level, number in studies.values_list("priority").annotate(Count("pk", distinct=True)):
        counts[("stat", "urgent", "routine")[level]] = number
    drafts = dict(Draft.objects.values_list("state").annotate(Count("pk")))
    return counts | {
        "open": sum(counts.values()),
        "mine": studies.filter(reader_id=reader_id).count() if reader_id else 0,
        "drafted": Draft.objects.filter(state=DraftState.DONE, declined=False).count(),
        "declined": Draft.objects.filter(state=DraftState.DONE, declined=True).count(),
        "drafts": sum(drafts.values()),
        "waiting": drafts.get(DraftState.QUEUED, 0) + drafts.get(DraftState.RUNNING, 0),
    }


def study_get(*, uid: str) -> Study | None:
    """A study with its patient."""
    return Study.objects.select_related("patient", "reader", "report", "batch").filter(uid=uid).first()


def study_page(*, study: Study) -> dict[str, Any]:
    """Everything that the study page shows."""
    report = Report.objects.select_related("draft", "updated_by", "signature").filter(study=study).first()
    draft = study.drafts.order_by("-number").first()
    return {
        "study": study,
        "images": study_images(study=study),
        "image_count": Instance.objects.filter(series__study=study).count(),
        "report": report,
        "draft": draft,
        "signature": getattr(report, "signature", None) if report else None,
        "priors": list(
            Study.objects.filter(patient=study.patient).exclude(pk=study.pk).order_by("-study_date", "-pk")[:5]
        ),
    }


def study_images(*, study: Study) -> list[Instance]:
    """The images of a study in display order: series by number, slices by position, then by number."""
    return list(
        Instance.objects.filter(series__study=study)
        .select_related("series")
        .order_by("series__number", "series_id", "position", "number", "pk")
    )


def instance_get(*, study_uid: str, series_uid: str, sop_uid: str) -> Instance | None:
    """The image at that place."""
    return (
        Instance.objects.select_related("series__study")
        .filter(sop_uid=sop_uid, series__uid=series_uid, series__study__uid=study_uid)
        .first()
    )


def batch_get(*, uid: str) -> Batch | None:
    """A batch by its public id."""
    return Batch.objects.filter(uid=uid).first()


def batch_progress(*, batch: Batch) -> dict[str, Any]:
    """The files of a batch, newest last, and how many there are of each status."""
    files = list(batch.files.all()[:1000])
    counts = dict(batch.files.exclude(status="").values_list("status").annotate(Count("pk")))
    waiting = batch.files.filter(status="").count()
    total = batch.files.count()
    return {
        "batch": batch,
        "files": files,
        "waiting": waiting,
        "total": total,
        "done": total - waiting,
        "counts": [(FileStatus(value).label, value, counts.get(value, 0)) for value in FileStatus.values],
        "list_query": urlencode({"batch": str(batch.uid), "state": "all"}),
    }


def batches_recent(*, limit: int = 12) -> list[Batch]:
    """The latest batches with how many files they hold."""
    return list(Batch.objects.select_related("created_by").annotate(held=Count("files"))[:limit])


def quarantine() -> QuerySet[UploadedFile]:
    """Files whose bytes wait for somebody's decision, newest first."""
    return (
        UploadedFile.objects.filter(status__in=(FileStatus.REFUSED, FileStatus.QUARANTINED), dismissed_at=None)
        .exclude(key="")
        .select_related("batch")
        .order_by("-pk")
    )


def queue_counts() -> dict[str, int]:
    """Numbers for the rail."""
    open_studies = (
        Study.objects.filter(series__instances__isnull=False)
        .exclude(report__state=ReportState.FINAL)
        .distinct()
        .count()
    )
    return {"open": open_studies, "quarantine": quarantine().count()}


def _studies_of_batch(batch_id: int) -> QuerySet[Any]:
    return UploadedFile.objects.filter(batch_id=batch_id, instance__isnull=False).values("instance__series__study")
