"""The reading list and the study page with its report."""

from typing import Any

from csp.decorators import csp_update
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from apps.accounts.api import actor_of
from apps.core import clock
from apps.core.errors import AppError
from apps.core.permissions import role_required
from apps.radiology import selectors
from apps.radiology.forms import SignForm
from apps.radiology.models import DraftState, ReportState, Study
from apps.radiology.permissions import READERS, WRITERS, study_for
from apps.radiology.rules.signing import SECTIONS
from apps.radiology.services import drafts, reports
from apps.radiology.tables import filter_chips, list_row, person_words, report_rows, strip_rows, study_title
from apps.radiology.views.opening import opened


@role_required(*READERS)
@require_GET
def reading_list(request: HttpRequest) -> HttpResponse:
    """Studies to read in order; the filters are in the URL."""
    batch = selectors.batch_get(uid=request.GET["batch"]) if _is_uuid(request.GET.get("batch", "")) else None
    mine = request.GET.get("mine") == "1"
    at = clock.now()
    rows = selectors.reading_list(
        at=at,
        priority=request.GET.get("priority", ""),
        reader_id=request.user.pk if mine else None,
        batch_id=batch.pk if batch else None,
        query=request.GET.get("q", "")[:100],
        state=request.GET.get("state", "open"),
    )
    page = Paginator(rows, 100).get_page(request.GET.get("page"))
    counts = selectors.list_counts(reader_id=request.user.pk)
    context = {
        "page": page,
        "rows": [list_row(study, at=at) for study in page],
        "counts": counts,
        "chips": filter_chips(request.GET, counts=counts),
        "batch": batch,
        "lifted": sum(study.lifted for study in page),
        "may_upload": request.user.role in WRITERS,
    }
    return render(request, "radiology/reading_list.html", context)


@role_required(*READERS)
@require_GET
@csp_update({"script-src": ["'wasm-unsafe-eval'"], "worker-src": ["'self'", "blob:"]})  # type: ignore[arg-type]
def study(request: HttpRequest, uid: str) -> HttpResponse:
    """One study: its images in the viewer, and beside them the report. Opening it is an audit event."""
    found = study_for(actor_of(request), uid=uid)
    opened(request, found, again=True)
    return render(request, "radiology/study.html", _context(request, found))


@role_required(*READERS)
@require_GET
def draft_state(request: HttpRequest, uid: str) -> HttpResponse:
    """How the draft stands, polled while it waits; has the page load anew once it is there."""
    found = study_for(actor_of(request), uid=uid)
    context = _context(request, found)
    response = render(request, "radiology/_draft_state.html", context)
    if not context["draft_waits"]:
        response["HX-Refresh"] = "true"
    return response


@role_required(*READERS)
@require_GET
def study_print(request: HttpRequest, uid: str) -> HttpResponse:
    """The report on paper; unsigned text says that it is preliminary."""
    found = study_for(actor_of(request), uid=uid)
    opened(request, found, again=True, verb="report.print")
    return render(request, "radiology/study_print.html", _context(request, found))


@role_required(*WRITERS)
@require_POST
def draft_again(request: HttpRequest, uid: str) -> HttpResponse:
    """Ask for a new draft."""
    found = study_for(actor_of(request), uid=uid)
    drafts.study_queue_now(study=found, by=actor_of(request), at=clock.now())
    return redirect("radiology:study", uid=uid)


@role_required(*WRITERS)
@require_POST
def report_save(request: HttpRequest, uid: str) -> HttpResponse:
    """Save the editor (autosave sends `Accept: application/json` and gets the new version)."""
    found = study_for(actor_of(request), uid=uid)
    version = request.POST.get("version", "")
    try:
        report = reports.report_save(
            study=found,
            version=int(version) if version.isascii() and version.isdigit() else 0,
            sentences=_sentences(request),
            by=actor_of(request),
            at=clock.now(),
        )
    except AppError as error:
        return _refused(request, uid, error)
    if _wants_json(request):
        return JsonResponse({"version": report.version, "sentences": report_rows(report)})
    messages.success(request, "Saved.")
    return redirect("radiology:study", uid=uid)


@role_required(*WRITERS)
@require_POST
def report_sign(request: HttpRequest, uid: str) -> HttpResponse:
    """Sign: the password again, then the text is final."""
    found = study_for(actor_of(request), uid=uid)
    form = SignForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Type your password to sign.")
        return redirect("radiology:study", uid=uid)
    try:
        reports.report_sign(study=found, by=actor_of(request), at=clock.now(), **form.cleaned_data)
    except AppError as error:
        return _refused(request, uid, error)
    messages.success(request, "Signed. The text is final.")
    return redirect("radiology:study", uid=uid)


@role_required(*READERS)
@require_GET
def verify(request: HttpRequest, uid: str) -> HttpResponse:
    """Recompute the hash of a signed report."""
    found = study_for(actor_of(request), uid=uid)
    context = _context(request, found)
    if context["signature"] is not None:
        context["verification"] = reports.signature_verify(signature=context["signature"])
    return render(request, "radiology/_signature.html", context)


def _context(request: HttpRequest, found: Study) -> dict[str, Any]:
    page = selectors.study_page(study=found)
    report, draft = page["report"], page["draft"]
    rows = report_rows(report) if report else []
    final = report is not None and report.state == ReportState.FINAL
    return page | {
        "title": study_title(found),
        "person": person_words(found),
        "sections": SECTIONS,
        "version": report.version if report else 0,
        "blank": {"section": "findings", "text": "", "source": None, "origin": "person"},
        "asks": sum(1 for row in rows if row["asks"]),
        "strip": strip_rows(found, page["images"]),
        "rows": rows,
        "final": final,
        "may_write": request.user.role in WRITERS and not final,
        "draft_waits": draft is not None and draft.state in (DraftState.QUEUED, DraftState.RUNNING),
        "shown": [image for image in page["images"] if image.displayable],
    }


def _sentences(request: HttpRequest) -> list[dict[str, Any]]:
    confirmed = set(request.POST.getlist("confirmed"))
    sent = zip(
        request.POST.getlist("text"), request.POST.getlist("section"), request.POST.getlist("source"), strict=False
    )
    return [
        {
            "text": text,
            "section": section,
            "source": int(source) if source.isascii() and source.isdigit() else None,
            "confirmed": source in confirmed,
        }
        for text, section, source in sent
    ]


def _refused(request: HttpRequest, uid: str, error: AppError) -> HttpResponse:
    if _wants_json(request):
        return JsonResponse({"code": error.code, "message": error.message}, status=error.status)
    messages.error(request, error.message)
    return redirect("radiology:study", uid=uid)


def _wants_json(request: HttpRequest) -> bool:
    return request.headers.get("Accept", "").startswith("application/json")


def _is_uuid(value: str) -> bool:
    return len(value) == 36 and all(sign in "0123456789abcdef-" for sign in value)
