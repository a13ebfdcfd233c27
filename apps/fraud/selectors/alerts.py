"""What the alert page shows besides the alert: its card's transactions, its terminal's days, its history."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from django.db.models import Count, Q
from django.db.models.functions import TruncDate

from apps.fraud.models import Alert, AlertNote, Card, Disposition, Terminal, Transaction

CARD_DAYS = 60
CARD_TABLE_ROWS = 50
CARD_CHART_ROWS = 2_500
TERMINAL_DAYS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TerminalDay:
    """Transactions of a terminal on one day, those known by now as fraud, and how many cards."""

    day: date
    transactions: int
    frauds: int
    cards: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertView:
    """Everything on the alert page, read in a constant number of queries."""

    alert: Alert
    card_rows: tuple[Transaction, ...]  # the latest first
    card_total: int
    terminal_days: tuple[TerminalDay, ...]
    dispositions: tuple[Disposition, ...]
    card_dispositions: tuple[Disposition, ...]
    notes: tuple[AlertNote, ...]


def alert_view(*, alert_id: int, now: datetime) -> AlertView | None:
    """The alert page's data, None when there is no such alert."""
    alert = (
        Alert.objects.select_related("transaction", "card", "terminal", "claimed_by", "snapshot")
        .filter(pk=alert_id)
        .first()
    )
    if alert is None:
        return None
    at = alert.transaction.at
    rows = card_rows(card=alert.card, since=at - timedelta(days=CARD_DAYS), until=at + timedelta(days=CARD_DAYS))
    history = Disposition.objects.select_related("by").order_by("-at", "-id")
    return AlertView(
        alert=alert,
        card_rows=rows,
        card_total=Transaction.objects.filter(card_id=alert.card_id).count(),
        terminal_days=terminal_days(terminal=alert.terminal, until=at, known_by=now),
        dispositions=tuple(history.filter(alert=alert)),
        card_dispositions=tuple(
            history.filter(alert__card_id=alert.card_id).exclude(alert=alert).select_related("alert")[:10]
        ),
        notes=tuple(alert.notes.select_related("by").order_by("-at", "-id")),
    )


def card_rows(*, card: Card, since: datetime, until: datetime) -> tuple[Transaction, ...]:
    """A card's transactions between two moments, the latest first, at most as many as a chart can show."""
    rows = Transaction.objects.filter(card=card, at__gte=since, at__lte=until).select_related("terminal", "alert")
    return tuple(rows.order_by("-at", "-id")[:CARD_CHART_ROWS])


def terminal_days(*, terminal: Terminal, until: datetime, known_by: datetime) -> tuple[TerminalDay, ...]:
    """The days of a terminal up to a moment, without gaps."""
    first = (until - timedelta(days=TERMINAL_DAYS - 1)).date()
    rows = (
        Transaction.objects.filter(terminal=terminal, at__date__gte=first, at__lte=until)
        .annotate(day=TruncDate("at"))
        .values("day")
        .order_by("day")
        .annotate(
            n=Count("id"),
            frauds=Count("id", filter=Q(label=True, label_known_at__lte=known_by)),
            cards=Count("card_id", distinct=True),
        )
    )
    found = {row["day"]: row for row in rows}
    days = (first + timedelta(days=i) for i in range(TERMINAL_DAYS))
    return tuple(
        TerminalDay(
            day=day,
            transactions=found[day]["n"] if day in found else 0,
            frauds=found[day]["frauds"] if day in found else 0,
            cards=found[day]["cards"] if day in found else 0,
        )
        for day in days
    )


def last_disposition(*, alert_id: int) -> Disposition | None:
    """The latest verdict on an alert that was not undone."""
    return Disposition.objects.filter(alert_id=alert_id, undone_at__isnull=True).order_by("-at", "-id").first()
