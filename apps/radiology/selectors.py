"""Reads of radiology: the reading list, the search, a study with its images, batches, quarantine."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import (
    Case,
    Count,
    F,
    Func,
    IntegerField,
    Max,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextField,
    Value,
    When,
)
from django.utils.http import urlencode

from apps.radiology.models import (
    Batch,
    Draft,
    DraftState,
    FileStatus,
    Instance,
    Patient,
    Priority,
    Report,
    ReportState,
    Study,
    UploadedFile,
)
from apps.radiology.rules import ordering

FOUND_ROWS = 20
_UID_SIGNS = set("0123456789.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFound:
    """A report, or where there is none a draft, that holds the words; `sentences` are those that hold one of them."""

    study: Study
    state: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """At most FOUND_ROWS of each kind; `cut` names the kinds of which there are more.

    `exact` is the one study that the words name in full: by its UID, or as the only one of a patient.
    """

    patients: tuple[Patient, ...] = ()
    studies: tuple[Study, ...] = ()
    texts: tuple[TextFound, ...] = ()
    cut: tuple[str, ...] = ()
    exact: Study | None = None

    @property
    def total(self) -> int:
        """How many rows are shown."""
        return len(self.patients) + len(self.studies) + len(self.texts)


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


def find(*, text: str, at: datetime) -> Found:
    """Patients by pseudonym, studies by UID or description, reports and drafts by their words; four queries."""
    bare = text.upper().removeprefix("P-")
    patients = Patient.objects.filter(pseudonym__istartswith=f"P-{bare}").annotate(
        held=Count("studies", distinct=True), last_date=Max("studies__study_date")
    )
    patients_found = list(patients.order_by("pseudonym")[: FOUND_ROWS + 1])
    named = Q(patient__in=[patient.pk for patient in patients_found]) | Q(description__icontains=text)
    if len(text) >= 3 and set(text) <= _UID_SIGNS:
        named |= Q(uid__startswith=text)
    studies = list(reading_list(at=at, state="all").filter(named)[: FOUND_ROWS + 1])
    texts = _texts(text.split())
    kinds: dict[str, Sequence[Any]] = {"patients": patients_found, "studies": studies, "texts": texts}
    exact = [study for study in studies if study.uid == text or study.patient.pseudonym == f"P-{bare}"]
    return Found(
        patients=tuple(patients_found[:FOUND_ROWS]),
        studies=tuple(studies[:FOUND_ROWS]),
        texts=tuple(texts[:FOUND_ROWS]),
        cut=tuple(kind for kind, rows in kinds.items() if len(rows) > FOUND_ROWS),
        exact=exact[0] if len(exact) == 1 and not texts else None,
    )


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


class _SentenceText(Func):
    """The texts of a JSON list of sentences, one after the other; NULL for an empty list."""

    output_field = TextField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "(SELECT group_concat(json_extract(value, '$.text'), ' ') FROM json_each(%(expressions)s))"
        return self.as_sql(compiler, connection, template=template, **context)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "(SELECT string_agg(one ->> 'text', ' ') FROM jsonb_array_elements(%(expressions)s) AS one)"
        return self.as_sql(compiler, connection, template=template, **context)


def _texts(words: Sequence[str]) -> list[TextFound]:
    """Reports, and the drafts of studies without one, whose sentences hold all the words, the newest first."""
    if max(map(len, words), default=0) < 3:
        return []
    held = Q()
    for word in words:
        held &= Q(words__icontains=word)
    reports = Report.objects.annotate(words=_SentenceText("sentences")).filter(held)
    drafts = Draft.objects.annotate(words=_SentenceText("sentences")).filter(held, study__report__isnull=True)
    newest = Draft.objects.filter(study=OuterRef("study")).order_by("-number").values("pk")[:1]
    rows: list[Report | Draft] = []
    rows += reports.select_related("study__patient").order_by("-updated_at", "-pk")[: FOUND_ROWS + 1]
    rows += drafts.filter(pk=Subquery(newest)).select_related("study__patient").order_by("-pk")[: FOUND_ROWS + 1]
    return [
        TextFound(
            study=row.study,
            state="draft" if isinstance(row, Draft) else ReportState(row.state).label,
            sentences=tuple(
                one["text"] for one in row.sentences if any(word.lower() in one["text"].lower() for word in words)
            ),
        )
        for row in rows[: FOUND_ROWS + 1]
    ]


def _studies_of_batch(batch_id: int) -> QuerySet[Any]:
    return UploadedFile.objects.filter(batch_id=batch_id, instance__isnull=False).values("instance__series__study")
