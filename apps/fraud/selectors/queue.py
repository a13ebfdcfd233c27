"""The queue: open alerts by expected loss, the ones that waited past the cap first; a constant number of queries."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import Q, QuerySet

from apps.fraud import rules
from apps.fraud.contracts import QueueFilter
from apps.fraud.models import Alert, AlertState, SavedView

PAGE_ROWS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePage:
    """One page of alerts. `lifted` of `total` alerts are first because they waited longer than the cap."""

    alerts: tuple[Alert, ...]
    total: int
    lifted: int
    offset: int
    next_offset: int | None
    oldest_at: datetime | None
    age_cap_h: int


def page(*, wanted: QueueFilter, user_id: int | None, at: datetime, age_cap_h: int, offset: int) -> QueuePage:
    """One page of the open alerts that fit the filter; at most five queries whatever there is."""
    fitting = filtered(_open(), wanted=wanted, user_id=user_id, at=at)
    late = fitting.filter(opened_at__lte=at - timedelta(hours=age_cap_h))
    total, lifted = fitting.count(), late.count()
    oldest = fitting.order_by("opened_at").values_list("opened_at", flat=True).first()
    shown = list(_shown(late).order_by("opened_at", "id")[offset : offset + PAGE_ROWS]) if offset < lifted else []
    if (room := PAGE_ROWS - len(shown)) > 0:
        start = max(0, offset - lifted)
        rest = fitting.filter(opened_at__gt=at - timedelta(hours=age_cap_h))
        shown += _shown(rest).order_by("-priority", "id")[start : start + room]
    end = offset + len(shown)
    return QueuePage(
        alerts=tuple(shown),
        total=total,
        lifted=lifted,
        offset=offset,
        next_offset=end if end < total and shown else None,
        oldest_at=oldest,
        age_cap_h=age_cap_h,
    )


def closed_today(*, at: datetime, offset: int) -> QueuePage:
    """Alerts closed since midnight UTC, the latest first."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    fitting = Alert.objects.filter(state=AlertState.CLOSED, closed_at__gte=midnight)
    total = fitting.count()
    shown = tuple(_shown(fitting).order_by("-closed_at", "-id")[offset : offset + PAGE_ROWS])
    end = offset + len(shown)
    return QueuePage(
        alerts=shown,
        total=total,
        lifted=0,
        offset=offset,
        next_offset=end if end < total and shown else None,
        oldest_at=None,
        age_cap_h=0,
    )


def next_free(*, at: datetime, age_cap_h: int, escalated: bool) -> Alert | None:
    """The first alert of the queue's order that nobody holds, locked; alerts that others lock now are passed over."""
    free = Alert.objects.filter(Q(state=AlertState.NEW) | Q(state=AlertState.CLAIMED, claim_expires_at__lte=at))
    if not escalated:
        free = free.filter(escalated=False)
    free = free.select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked)
    edge = at - timedelta(hours=age_cap_h)
    late = free.filter(opened_at__lte=edge).order_by("opened_at", "id").first()
    return late or free.filter(opened_at__gt=edge).order_by("-priority", "id").first()


def saved_views(*, user_id: int | None) -> list[SavedView]:
    """The named filters of one person."""
    return list(SavedView.objects.filter(owner_id=user_id)) if user_id else []


def filtered(alerts: QuerySet[Alert], *, wanted: QueueFilter, user_id: int | None, at: datetime) -> QuerySet[Alert]:
    """Those alerts that fit a filter."""
    if wanted.bands:
        alerts = alerts.filter(band__in=wanted.bands)
    if wanted.terminal:
        alerts = alerts.filter(Q(terminal__name__iexact=wanted.terminal) | Q(terminal__key=wanted.terminal))
    if wanted.card:
        alerts = alerts.filter(card__display__icontains=wanted.card)
    if wanted.amount_from_cents is not None:
        alerts = alerts.filter(amount_cents__gte=wanted.amount_from_cents)
    if wanted.amount_to_cents is not None:
        alerts = alerts.filter(amount_cents__lte=wanted.amount_to_cents)
    if wanted.older_than_h is not None:
        alerts = alerts.filter(opened_at__lte=at - timedelta(hours=wanted.older_than_h))
    if wanted.mine:
        alerts = alerts.filter(claimed_by_id=user_id, state=AlertState.CLAIMED, claim_expires_at__gt=at)
    if wanted.text:
        alerts = alerts.filter(_found(wanted.text))
    return _in_state(alerts, wanted.state, at=at)


def _found(text: str) -> Q:
    found = Q(card__display__icontains=text) | Q(terminal__name__icontains=text)
    if rules.is_card_number(text):
        digits = "".join(each for each in text if each.isdigit())
        return Q(card__display=rules.card_display(digits))
    return found | Q(pk=int(text)) if text.isascii() and text.isdigit() and len(text) < 18 else found


def _in_state(alerts: QuerySet[Alert], state: str, *, at: datetime) -> QuerySet[Alert]:
    if state == "new":
        return alerts.filter(Q(state=AlertState.NEW) | Q(claim_expires_at__lte=at))
    if state == "claimed":
        return alerts.filter(state=AlertState.CLAIMED, claim_expires_at__gt=at)
    if state in ("escalated", "reopened"):
        return alerts.filter(**{state: True})
    return alerts


def _open() -> QuerySet[Alert]:
    return Alert.objects.exclude(state=AlertState.CLOSED)


def _shown(alerts: QuerySet[Alert]) -> QuerySet[Alert]:
    return alerts.select_related("card", "terminal", "claimed_by").defer(
        "reasons", "counterfactuals", "features", "rule_hits"
    )
