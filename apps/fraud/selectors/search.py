"""The search of the fraud half: alerts, cards, terminals and transactions that a person's words name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from django.conf import settings
from django.db.models import Case, Count, IntegerField, Q, QuerySet, Value, When

from apps.fraud import rules
from apps.fraud.models import Alert, AlertState, Card, Terminal, Transaction

Row = TypeVar("Row", Alert, Card, Terminal, Transaction)
GROUP_ROWS = 20
_HEX = set("0123456789abcdef")
_TOKEN_LETTERS = 8  # fewer are a word as likely as the beginning of a token


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A card or a terminal that was found, with how many alerts it has and how many of them are open."""

    row: Card | Terminal
    alerts: int
    open: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """At most GROUP_ROWS of each kind; `cut` names the kinds of which there are more.

    `exact` is the one alert that the words name in full, None when they name none or more than one thing.
    """

    alerts: tuple[Alert, ...] = ()
    cards: tuple[Place, ...] = ()
    terminals: tuple[Place, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    cut: tuple[str, ...] = ()
    exact: Alert | None = None

    @property
    def total(self) -> int:
        """How many rows are shown."""
        return len(self.alerts) + len(self.cards) + len(self.terminals) + len(self.transactions)


def find(*, text: str) -> Found:
    """What a text names; six queries whatever there is."""
    number, alone = rules.alert_number(text)
    if alone:
        named = tuple(_alerts(Q(pk=number), first=()))
        return Found(alerts=named, exact=named[0] if named else None)
    token = rules.card_token(text, key=settings.TOKEN_KEY)
    cards = _rows(Card.objects.filter(_card(text, token=token)).order_by("display", "pk"))
    terminals = _rows(Terminal.objects.filter(_terminal(text)).order_by("name", "pk"))
    transactions = _rows(_transactions(text))
    first = tuple(row.pk for row in transactions)
    alerts = _rows(
        _alerts(
            Q(pk=number) | Q(transaction_id__in=first)
            | Q(card_id__in=[row.pk for row in cards]) | Q(terminal_id__in=[row.pk for row in terminals]),
            first=first,
            number=number,
        )
    )  # fmt: skip
    kinds: dict[str, Sequence[Any]] = {
        "alerts": alerts,
        "cards": cards,
        "terminals": terminals,
        "transactions": transactions,
    }
    return Found(
        alerts=tuple(alerts[:GROUP_ROWS]),
        cards=_places(cards, field="card_id"),
        terminals=_places(terminals, field="terminal_id"),
        transactions=tuple(transactions[:GROUP_ROWS]),
        cut=tuple(kind for kind, rows in kinds.items() if len(rows) > GROUP_ROWS),
        exact=_exact(text, number=number, token=token, kinds=kinds),
    )


def _card(text: str, *, token: str) -> Q:
    found = Q(token=token) | Q(display__istartswith=text)
    low = text.lower()
    if len(low) >= _TOKEN_LETTERS and set(low) <= _HEX:
        found |= Q(token__startswith=low)
    digits = rules.card_digits(text)
    if len(digits) == 4:
        found |= Q(display__endswith=f" {digits}")
    if 4 <= len(digits) <= 6:
        found |= Q(display__startswith=f"{digits[:4]} {digits[4:]}".rstrip())
    return found


def _terminal(text: str) -> Q:
    found = Q(key=text) | Q(name__istartswith=text)
    return found | Q(name__icontains=text) if len(text) >= 3 else found


def _transactions(text: str) -> QuerySet[Transaction]:
    # The inner query reads the index of (source, external id) alone, the outer one the few rows that it names.
    named = Transaction.objects.filter(external_id=text).values("pk")
    rows = Transaction.objects.filter(pk__in=named).select_related("card", "terminal", "alert")
    return rows.order_by("-at", "-id")


def _alerts(which: Q, *, first: Sequence[int], number: int | None = None) -> QuerySet[Alert]:
    """Alerts with what a list shows of them; those that were named come first, then the newest."""
    named = Case(
        When(Q(pk=number) | Q(transaction_id__in=first), then=Value(0)), default=Value(1), output_field=IntegerField()
    )
    rows = Alert.objects.filter(which).select_related("card", "terminal", "claimed_by")
    rows = rows.defer("reasons", "counterfactuals", "features", "rule_hits")
    return rows.order_by(named, "-opened_at", "-id")


def _rows(rows: QuerySet[Row]) -> list[Row]:
    return list(rows[: GROUP_ROWS + 1])


def _places(rows: Sequence[Card] | Sequence[Terminal], *, field: str) -> tuple[Place, ...]:
    shown = rows[:GROUP_ROWS]
    counts = (
        Alert.objects.filter(**{f"{field}__in": [row.pk for row in shown]})
        .order_by()
        .values_list(field)
        .annotate(every=Count("pk"), still_open=Count("pk", filter=~Q(state=AlertState.CLOSED)))
    )
    found = {pk: (every, still_open) for pk, every, still_open in counts}
    return tuple(
        Place(row=row, alerts=found.get(row.pk, (0, 0))[0], open=found.get(row.pk, (0, 0))[1]) for row in shown
    )


def _exact(text: str, *, number: int | None, token: str, kinds: dict[str, Sequence[Any]]) -> Alert | None:
    """The alert, if an alert (by its number or its transaction's id) is all that bears this very name."""
    low = text.lower()
    named = {row.transaction_id: row for row in kinds["alerts"] if row.pk == number}
    for row in kinds["transactions"]:
        named[row.pk] = getattr(row, "alert", None)
    others = [row for row in kinds["cards"] if token == row.token or low in (row.display.lower(), row.token)]
    others += [row for row in kinds["terminals"] if row.key == text or row.name.lower() == low]
    return next(iter(named.values())) if len(named) == 1 and not others else None
