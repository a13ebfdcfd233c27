"""The alert page and everything that can be done on it."""

from collections.abc import Callable
from datetime import timedelta

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from apps.accounts.api import actor_of
from apps.core import clock
from apps.core.errors import AppError
from apps.core.permissions import role_required
from apps.fraud import rules, tables
from apps.fraud.forms import NoteForm, VerdictForm, VersionForm
from apps.fraud.models import Alert, AlertState
from apps.fraud.selectors.alerts import CARD_DAYS, CARD_TABLE_ROWS, AlertView
from apps.fraud.services import alerts as services
from apps.fraud.services import queue as queue_services
from apps.fraud.services import recompute as recompute_services
from apps.fraud.views.queue import READERS, WRITERS

VERDICT_WORDS = {
    "fraud": ("fraud", "was judged fraud"),
    "genuine": ("genuine", "was judged genuine"),
    "unsure": ("unsure", "was closed as unsure"),
    "escalate": ("escalate", "was handed to a senior analyst"),
}


@role_required(*READERS)
@require_safe
def alert(request: HttpRequest, alert_id: int) -> HttpResponse:
    """One alert on one screen."""
    return _page(request, alert_id)


@role_required(*WRITERS)
@require_POST
def claim(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Take this alert."""
    return _act(
        request, alert_id, lambda: services.alert_claim(alert_id=alert_id, by=actor_of(request), at=clock.now())
    )


@role_required(*WRITERS)
@require_POST
def release(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Give this alert back."""
    return _act(
        request, alert_id, lambda: services.alert_release(alert_id=alert_id, by=actor_of(request), at=clock.now())
    )


@role_required(*WRITERS)
@require_POST
def dispose(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Judge this alert; a refusal shows the page as it is now and keeps what was typed."""
    form = VerdictForm(request.POST)
    if not form.is_valid():
        return _page(request, alert_id, status=422, error="Choose a verdict with its reason.", typed=form)
    try:
        services.alert_dispose(
            alert_id=alert_id,
            version=form.cleaned_data["version"],
            verdict=form.cleaned_data["verdict"],
            reason_code=form.reason(),
            note=form.cleaned_data["note"],
            by=actor_of(request),
            at=clock.now(),
        )
    except Alert.DoesNotExist as error:
        raise Http404 from error
    except AppError as error:
        return _page(request, alert_id, status=error.status, error=error.message, typed=form)
    messages.success(request, f"Alert {alert_id} {VERDICT_WORDS[form.cleaned_data['verdict']][1]}.")
    return redirect("fraud:alert", alert_id=alert_id)


@role_required(*WRITERS)
@require_POST
def undo(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Take back one's own last verdict."""
    version = _version(request)
    return _act(
        request,
        alert_id,
        lambda: services.alert_undo(alert_id=alert_id, version=version, by=actor_of(request), at=clock.now()),
    )


@role_required(*WRITERS)
@require_POST
def reopen(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Open a closed alert again."""
    version = _version(request)
    return _act(
        request,
        alert_id,
        lambda: services.alert_reopen(alert_id=alert_id, version=version, by=actor_of(request), at=clock.now()),
    )


@role_required(*WRITERS)
@require_POST
def note(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Leave a remark."""
    form = NoteForm(request.POST)
    if not form.is_valid():
        return _page(request, alert_id, status=422, error="A note has between 1 and 2,000 characters.")
    text = form.cleaned_data["text"]
    return _act(
        request,
        alert_id,
        lambda: services.note_add(alert_id=alert_id, text=text, by=actor_of(request), at=clock.now()),
    )


@role_required(*READERS)
@require_POST
def recompute(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Have the alert scored again from its snapshot."""
    return _act(
        request,
        alert_id,
        lambda: recompute_services.recompute_ask(alert_id=alert_id, by=actor_of(request), at=clock.now()),
    )


def _act(request: HttpRequest, alert_id: int, does: Callable[[], object]) -> HttpResponse:
    try:
        does()
    except Alert.DoesNotExist as error:
        raise Http404 from error
    except AppError as error:
        return _page(request, alert_id, status=error.status, error=error.message)
    return redirect("fraud:alert", alert_id=alert_id)


def _version(request: HttpRequest) -> int:
    form = VersionForm(request.POST)
    return form.cleaned_data["version"] if form.is_valid() else 0


def _page(
    request: HttpRequest, alert_id: int, *, status: int = 200, error: str = "", typed: VerdictForm | None = None
) -> HttpResponse:
    at = clock.now()
    view = queue_services.alert_read(alert_id=alert_id, by=actor_of(request), at=at)
    if view is None:
        raise Http404
    shown = view.alert
    bars, rest = tables.reason_bars(shown.reasons)
    held = shown.state == AlertState.CLAIMED and shown.claim_expires_at is not None and shown.claim_expires_at > at
    last = next((each for each in view.dispositions if each.undone_at is None), None)
    recent = last is not None and at - last.at <= timedelta(minutes=rules.UNDO_MINUTES) and last.learned_at is None
    context = {
        "view": view,
        "alert": shown,
        "error": error,
        "typed": typed,
        "bars": bars,
        "rest_points": rest,
        "rest_count": max(0, len(shown.reasons) - len(bars)),
        "sum_points": shown.base_points + sum(reason["points"] for reason in shown.reasons),
        "timeline": tables.timeline(view.card_rows, this=shown.transaction),
        "card_rows": view.card_rows[:CARD_TABLE_ROWS],
        "card_days": CARD_DAYS,
        "day_bars": tables.day_bars(view.terminal_days),
        "terminal": _terminal_totals(view),
        "held_by_me": held and shown.claimed_by_id == request.user.pk,
        "held": held,
        "held_s": (shown.claim_expires_at - at).total_seconds() if held and shown.claim_expires_at else 0,
        "can_write": request.user.role in WRITERS,
        "can_undo": recent and last is not None and last.by_id == request.user.pk,
        "verdicts": [(key, rules.REASON_CODES[key], VERDICT_WORDS[key][0]) for key in VERDICT_WORDS],
    }
    return render(request, "fraud/alert.html", context, status=status)


def _terminal_totals(view: AlertView) -> dict[str, int]:
    return {
        "transactions": sum(day.transactions for day in view.terminal_days),
        "frauds": sum(day.frauds for day in view.terminal_days),
        "days": len(view.terminal_days),
    }
