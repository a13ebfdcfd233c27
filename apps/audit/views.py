"""The auditor's pages: search, one event, verification of the chain, CSV export."""

import csv
import io
from collections.abc import AsyncIterator, Iterator

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST

from apps.accounts.api import Role, actor_of
from apps.audit import rules, selectors, services
from apps.audit.forms import EventFilter
from apps.audit.models import Event
from apps.core import clock
from apps.core.permissions import role_required

_VERIFY_ROWS = 20_000  # events a request; the page asks for the next part until the end is reached
_COLUMNS = (
    "sequence",
    "at",
    "who",
    "role",
    "origin",
    "verb",
    "object_type",
    "object_id",
    "allowed",
    "sentence",
    "detail",
    "hash",
)


@role_required(Role.AUDITOR, Role.ADMIN)
@require_GET
def search(request: HttpRequest) -> HttpResponse:
    """Events as sentences, newest first, by the filters in the URL."""
    found = EventFilter(request.GET, queryset=selectors.event_list())
    asked = _asked(found)
    services.trail_read(verb="audit.search", by=actor_of(request), at=clock.now(), detail=asked)
    page, older = selectors.event_page(found.qs, before=_whole(request.GET.get("before")))
    total = selectors.chain_length()
    context = {"filter": found, "events": page, "older": older, "total": total, "asked": asked}
    return render(request, "audit/search.html", context)


@role_required(Role.AUDITOR, Role.ADMIN)
@require_GET
def event(request: HttpRequest, sequence: int) -> HttpResponse:
    """One event with everything that its hash covers."""
    row = selectors.event_get(sequence=sequence)
    if row is None:
        raise Http404
    services.trail_read(verb="audit.read", by=actor_of(request), at=clock.now(), detail={"sequence": sequence})
    return render(request, "audit/event.html", {"event": row, "total": selectors.chain_length()})


@role_required(Role.AUDITOR, Role.ADMIN)
@require_POST
def verify(request: HttpRequest) -> HttpResponse:
    """Check the next part of the chain; the fragment asks for the part after it until the end or a broken link."""
    start = _whole(request.POST.get("start")) or 1
    report = services.trail_verify(by=actor_of(request), at=clock.now(), start=start, limit=_VERIFY_ROWS)
    context = {"report": report, "checked": start - 1 + report.checked}
    return render(request, "audit/_verify.html" if request.htmx else "audit/verify.html", context)


@role_required(Role.AUDITOR, Role.ADMIN)
@require_GET
def export(request: HttpRequest) -> StreamingHttpResponse:
    """The events that the filters find, as CSV, streamed; no cell begins a formula."""
    found = EventFilter(request.GET, queryset=selectors.event_list())
    events = found.qs.filter(sequence__lte=selectors.chain_length())  # not the record of this export itself
    detail = _asked(found) | {"events": events.count()}
    services.trail_read(verb="audit.export", by=actor_of(request), at=clock.now(), detail=detail)
    rows = _csv(events)
    # Under ASGI a plain iterator would be gathered in memory first.
    body = _in_threads(rows) if isinstance(request, ASGIRequest) else rows
    name = f"audit-{clock.now():%Y%m%dT%H%M%SZ}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(body, content_type="text/csv; charset=utf-8", headers=headers)


def _asked(found: EventFilter) -> dict[str, object]:
    return {name: str(value) for name, value in found.data.items() if name in found.filters and value}


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _csv(events: QuerySet[Event]) -> Iterator[str]:
    yield _lines([_COLUMNS])
    for chunk in selectors.event_chunks(events):
        yield _lines(_cells(row) for row in chunk)


def _cells(row: Event) -> list[str]:
    return [
        rules.csv_safe(value)
        for value in (
            row.sequence,
            rules.moment(row.at),
            row.name,
            row.role,
            row.origin,
            row.verb,
            row.object_type,
            row.object_id,
            "yes" if row.allowed else "no",
            row.sentence,
            row.detail_json,
            row.hash,
        )
    ]


def _lines(rows: "Iterator[list[str]] | list[tuple[str, ...]]") -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


async def _in_threads(parts: Iterator[str]) -> AsyncIterator[str]:
    following = sync_to_async(lambda: next(parts, None))
    while (part := await following()) is not None:
        yield part
