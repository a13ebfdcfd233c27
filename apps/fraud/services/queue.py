"""Reads of the queue and of alerts that leave a trace in the audit trail, and the saving of views."""

from datetime import datetime
from urllib.parse import unquote_plus

from django.db import transaction

from apps.accounts.api import Actor
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError
from apps.fraud import rules, selectors
from apps.fraud.contracts import QueueFilter
from apps.fraud.models import SavedView
from apps.fraud.selectors import alerts as alert_selectors
from apps.fraud.selectors import queue as queue_selectors
from apps.fraud.selectors import search as search_selectors

MAX_VIEWS = 20


class ViewLimitError(AppError):
    """A person has as many saved views as one can have."""

    code = "too_many_views"
    status = 422


@transaction.atomic
def queue_read(
    *, wanted: QueueFilter, query: str, by: Actor, at: datetime, offset: int
) -> tuple[queue_selectors.QueuePage, list[SavedView]]:
    """One page of the queue and the person's saved views; the reading is recorded."""
    page = queue_selectors.page(
        wanted=wanted, user_id=by.user_id, at=at, age_cap_h=selectors.policy_now().age_cap_h, offset=offset
    )
    views = queue_selectors.saved_views(user_id=by.user_id)
    asked = unquote_plus(query)  # so that a card number in it is seen, whose spaces stand as + or %20
    _record(by, verb="queue.read", object_type="queue", object_id="open", at=at, query=asked, rows=len(page.alerts))
    return page, views


@transaction.atomic
def closed_read(*, by: Actor, at: datetime, offset: int) -> queue_selectors.QueuePage:
    """One page of what was closed today; the reading is recorded."""
    page = queue_selectors.closed_today(at=at, offset=offset)
    _record(by, verb="queue.read", object_type="queue", object_id="closed", at=at, query="", rows=len(page.alerts))
    return page


@transaction.atomic
def search_read(*, text: str, by: Actor, at: datetime) -> search_selectors.Found:
    """What a text names; the search is recorded, with any card number in it masked."""
    found = search_selectors.find(text=text)
    _record(by, verb="fraud.search", object_type="alerts", object_id="", at=at, query=text, rows=found.total)
    return found


@transaction.atomic
def alert_read(*, alert_id: int, by: Actor, at: datetime) -> alert_selectors.AlertView | None:
    """Everything about an alert; the reading is recorded. None when there is no such alert."""
    view = alert_selectors.alert_view(alert_id=alert_id, now=at)
    if view is not None:
        record(AuditEvent(actor=by, verb="alert.read", object_type="alert", object_id=str(alert_id), at=at))
    return view


@transaction.atomic
def view_save(*, name: str, query: str, by: Actor, at: datetime) -> SavedView:
    """Keep filters under a name; a name that exists gets the new filters."""
    if SavedView.objects.filter(owner_id=by.user_id).exclude(name=name).count() >= MAX_VIEWS:
        raise ViewLimitError(f"you have {MAX_VIEWS} saved views; delete one first")
    view, _ = SavedView.objects.update_or_create(owner_id=by.user_id, name=name, defaults={"query": query})
    record(AuditEvent(actor=by, verb="view.save", object_type="view", object_id=str(view.pk), at=at))
    return view


@transaction.atomic
def view_delete(*, view_id: int, by: Actor, at: datetime) -> bool:
    """Forget one's own saved view; False when there is no such view."""
    deleted, _ = SavedView.objects.filter(pk=view_id, owner_id=by.user_id).delete()
    if deleted:
        record(AuditEvent(actor=by, verb="view.delete", object_type="view", object_id=str(view_id), at=at))
    return bool(deleted)


def _record(by: Actor, *, verb: str, object_type: str, object_id: str, at: datetime, query: str, rows: int) -> None:
    # A pasted card number must not outlive the request.
    detail: dict[str, object] = {"query": rules.card_numbers_masked(query)[:200], "rows": rows}
    record(AuditEvent(actor=by, verb=verb, object_type=object_type, object_id=object_id, at=at, detail=detail))
