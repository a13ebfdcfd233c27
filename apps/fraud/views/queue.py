"""The lists of alerts: the queue with its filters, mine, closed today, and the saved views."""

from dataclasses import dataclass

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from apps.accounts.api import Role, actor_of
from apps.core import clock
from apps.core.errors import AppError
from apps.core.permissions import role_required
from apps.fraud.forms import BANDS, QueueForm, ViewForm
from apps.fraud.services import alerts as alert_services
from apps.fraud.services import queue as queue_services

READERS = (Role.ANALYST, Role.SENIOR_ANALYST, Role.AUDITOR, Role.ADMIN)
WRITERS = (Role.ANALYST, Role.SENIOR_ANALYST)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """One filter: its title, what it is set to, its fields, the other filters to keep, and the URL without it."""

    title: str
    words: str
    fields: tuple[str, ...]
    others: tuple[tuple[str, str], ...]
    clear_url: str


_CHIPS = (
    ("Band", ("band",)),
    ("Amount", ("amount_from", "amount_to")),
    ("Terminal", ("terminal",)),
    ("Age", ("older_than_h",)),
    ("State", ("state",)),
)


@role_required(*READERS)
@require_safe
def queue(request: HttpRequest) -> HttpResponse:
    """The open alerts, by risk times amount."""
    return _list(request, form=QueueForm(request.GET), title="Queue")


@role_required(*WRITERS)
@require_safe
def mine(request: HttpRequest) -> HttpResponse:
    """The alerts that the person holds."""
    given = request.GET.copy()
    given["mine"] = "on"
    return _list(request, form=QueueForm(given), title="Mine")


@role_required(*READERS)
@require_safe
def closed(request: HttpRequest) -> HttpResponse:
    """What was closed today."""
    form = QueueForm(request.GET)
    page = queue_services.closed_read(by=actor_of(request), at=clock.now(), offset=form.start())
    context = {"page": page, "title": "Closed today", "closed": True, "more_url": _more_url(request, page.next_offset)}
    return render(request, _template(request), context)


@role_required(*WRITERS)
@require_POST
def claim_next(request: HttpRequest) -> HttpResponse:
    """Take the first free alert and open it."""
    alert = alert_services.alert_claim_next(by=actor_of(request), at=clock.now())
    if alert is None:
        messages.info(request, "Nothing is free: every open alert is claimed or there is none.")
        return redirect("fraud:queue")
    return redirect("fraud:alert", alert_id=alert.pk)


@role_required(*READERS)
@require_POST
def view_save(request: HttpRequest) -> HttpResponse:
    """Keep the filters that are set under a name."""
    form = ViewForm(request.POST)
    if not form.is_valid():
        messages.error(request, "A view needs a name of at most 40 characters.")
        return redirect("fraud:queue")
    query = form.cleaned_data["query"]
    try:
        queue_services.view_save(name=form.cleaned_data["name"], query=query, by=actor_of(request), at=clock.now())
    except AppError as error:
        messages.error(request, error.message)
    return redirect(f"{reverse('fraud:queue')}?{query}")


@role_required(*READERS)
@require_POST
def view_delete(request: HttpRequest, view_id: int) -> HttpResponse:
    """Forget a saved view of one's own."""
    if not queue_services.view_delete(view_id=view_id, by=actor_of(request), at=clock.now()):
        raise Http404
    return redirect("fraud:queue")


def _list(request: HttpRequest, *, form: QueueForm, title: str) -> HttpResponse:
    page, views = queue_services.queue_read(
        wanted=form.wanted(),
        query=request.GET.urlencode(),
        by=actor_of(request),
        at=clock.now(),
        offset=form.start(),
    )
    context = {
        "page": page,
        "views": views,
        "form": form,
        "title": title,
        "chips": [_chip(request.GET, form, title=name, fields=fields) for name, fields in _CHIPS],
        "filter_query": _without(request.GET, ("offset",)),
        "more_url": _more_url(request, page.next_offset),
        "can_write": request.user.role in WRITERS,
    }
    return render(request, _template(request), context)


def _template(request: HttpRequest) -> str:
    more = request.headers.get("HX-Request") == "true" and "offset" in request.GET
    return "fraud/_alert_rows.html" if more else "fraud/queue.html"


def _more_url(request: HttpRequest, offset: int | None) -> str:
    if offset is None:
        return ""
    query = request.GET.copy()
    query["offset"] = str(offset)
    return f"{request.path}?{query.urlencode()}"


def _without(query: QueryDict, fields: tuple[str, ...]) -> str:
    rest = query.copy()
    for field in (*fields, "offset"):
        rest.pop(field, None)
    return rest.urlencode()


def _chip(query: QueryDict, form: QueueForm, *, title: str, fields: tuple[str, ...]) -> Chip:
    others = tuple(
        (name, value) for name, values in query.lists() if name not in (*fields, "offset") for value in values
    )
    return Chip(
        title=title,
        words=_words(form, fields[0]),
        fields=fields,
        others=others,
        clear_url="?" + _without(query, fields),
    )


def _words(form: QueueForm, field: str) -> str:
    wanted = form.wanted()
    if field == "band":
        return ", ".join(word for number, word in BANDS.items() if number in wanted.bands)
    if field == "amount_from":
        low, high = wanted.amount_from_cents, wanted.amount_to_cents
        above = "" if low is None else f"from {low / 100:,.2f}"
        below = "" if high is None else f"to {high / 100:,.2f}"
        return " ".join(part for part in (above, below) if part)
    if field == "older_than_h":
        return "" if wanted.older_than_h is None else f"over {wanted.older_than_h} h"
    return str(getattr(wanted, field))
