"""Reads: transactions to score, histories of cards and terminals, labelled data, counts, the policy in force."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count, Q, QuerySet, Sum

from apps.core.prepared import Prepared
from apps.core.rules import band_of
from apps.fraud import rules
from apps.fraud.contracts import ScoreAnswer
from apps.fraud.models import (
    Alert,
    AlertPolicy,
    AlertState,
    Disposition,
    Import,
    ImportState,
    ScoreBatch,
    ScoreState,
    Transaction,
)

_ITERATE_ROWS = 20_000
_IN_IDS = 500


_NEWEST_POLICY = Prepared(lambda: AlertPolicy.objects.order_by("-id").values_list("threshold", "age_cap_h")[:1])
_ANSWERS = Prepared(
    lambda ids: Transaction.objects.filter(pk__in=ids).values_list(
        "id", "external_id", "state", "probability", "model_digest", "scored_at", "error_code", "alert__id"
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """From which probability alerts open and how many hours one may wait."""

    threshold: float
    age_cap_h: int


def policy_now() -> Policy:
    """The newest policy, or the product's default while nobody has set one."""
    found = _NEWEST_POLICY.rows()
    if not found:
        return Policy(threshold=rules.DEFAULT_THRESHOLD, age_cap_h=rules.DEFAULT_AGE_CAP_H)
    return Policy(threshold=found[0][0], age_cap_h=found[0][1])


def transactions_queued(*, ids: Sequence[int]) -> QuerySet[Transaction]:
    """Those of `ids` that still wait for a score. A run of ids is asked for by its ends."""
    queued = Transaction.objects.filter(state=ScoreState.QUEUED)
    if len(ids) <= _IN_IDS:
        return queued.filter(id__in=ids)
    if max(ids) - min(ids) + 1 == len(ids):
        return queued.filter(id__gte=min(ids), id__lte=max(ids))
    values = ",".join(str(int(each)) for each in ids)  # whole numbers only: no bound variable, no limit to them
    return queued.extra(where=[f"fraud_transaction.id IN ({values})"])


def transaction_ids(*, import_id: int, first_id: int, last_id: int) -> list[int]:
    """The queued transactions of an import between two ids."""
    found = Transaction.objects.filter(
        id__gte=first_id, id__lte=last_id, imported_id=import_id, state=ScoreState.QUEUED
    )
    return list(found.order_by("id").values_list("id", flat=True))


def alerts_opened(*, import_id: int, first_id: int, last_id: int) -> int:
    """How many alerts the transactions of an import between two ids opened."""
    return Alert.objects.filter(
        transaction_id__gte=first_id, transaction_id__lte=last_id, transaction__imported_id=import_id
    ).count()


def card_amounts(
    *, card_ids: Sequence[int], since: datetime, until: datetime
) -> dict[int, list[tuple[int, datetime, int]]]:
    """Per card its transactions between two moments in the order of time: (id, at, cents)."""
    found: dict[int, list[tuple[int, datetime, int]]] = {}
    for start in range(0, len(card_ids), 500):
        rows = Transaction.objects.filter(card_id__in=card_ids[start : start + 500], at__gte=since, at__lte=until)
        for card_id, row_id, at, cents in rows.order_by("at", "id").values_list("card_id", "id", "at", "amount_cents"):
            found.setdefault(card_id, []).append((row_id, at, cents))
    return found


def labelled_transactions(*, since: datetime, until: datetime, known_by: datetime) -> Iterator[tuple]:
    """Transactions whose truth was known at `known_by`: (id, at, card token, terminal key, cents, fraud), by time."""
    rows = Transaction.objects.filter(at__gte=since, at__lt=until, label__isnull=False, label_known_at__lte=known_by)
    rows = rows.order_by("at", "id")
    yield from rows.values_list("id", "at", "card__token", "terminal__key", "amount_cents", "label").iterator(
        chunk_size=_ITERATE_ROWS
    )


def counts(*, at: datetime, user_id: int | None = None) -> dict[str, int]:
    """How many alerts are open, escalated, closed today, and claimed by one person."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    found = Alert.objects.exclude(state=AlertState.CLOSED).aggregate(
        open=Count("id"), escalated=Count("id", filter=Q(escalated=True))
    )
    found["closed"] = Alert.objects.filter(
        state=AlertState.CLOSED, closed_at__gte=midnight, closed_at__lt=midnight + timedelta(days=1)
    ).count()
    if user_id is not None:
        found["mine"] = Alert.objects.filter(
            claimed_by_id=user_id, state=AlertState.CLAIMED, claim_expires_at__gt=at
        ).count()
    return found


def answers(*, ids: Sequence[int]) -> list[ScoreAnswer]:
    """What the rows say about these transactions, as the API says it; one query."""
    return [
        ScoreAnswer(
            id=pk,
            transaction_id=external_id,
            state=state,
            probability=probability,
            score=None if probability is None else round(100 * probability),
            band=None if probability is None else band_of(probability)[1],
            alert_id=alert_id,
            model_digest=digest,
            scored_at="" if scored_at is None else scored_at.isoformat(),
            error=error,
        )
        for pk, external_id, state, probability, digest, scored_at, error, alert_id in _ANSWERS.rows(ids)
    ]


def transactions_stale(*, before: datetime) -> QuerySet:
    """(id, attempt) of requested transactions that nobody has scored since `before`, locked where that is possible."""
    rows = Transaction.objects.filter(state=ScoreState.QUEUED, received_at__lt=before).order_by("id")
    return rows.select_for_update().values_list("id", "attempt")


def dispositions_due(*, before: datetime) -> QuerySet[Disposition]:
    """Verdicts on the truth that stand since `before` and that the states do not know yet, oldest first."""
    return (
        Disposition.objects.filter(
            verdict__in=("fraud", "genuine"), at__lte=before, learned_at__isnull=True, undone_at__isnull=True
        )
        .select_related("alert__transaction__card", "alert__transaction__terminal")
        .order_by("at", "id")
    )


def batch_rows(*, import_id: int) -> tuple[int, int]:
    """How many rows of an import are scored (or failed), and how many wait."""
    found = ScoreBatch.objects.filter(imported_id=import_id).aggregate(
        done=Sum("rows", filter=~Q(state="queued"), default=0),
        waiting=Sum("rows", filter=Q(state="queued"), default=0),
    )
    return found["done"], found["waiting"]


def answer_for(*, transaction_id: int, source: str) -> ScoreAnswer | None:
    """What the row of one source says, None when that source sent no such transaction."""
    if not Transaction.objects.filter(pk=transaction_id, source=source).exists():
        return None
    return answers(ids=[transaction_id])[0]


def import_finished(*, source: str) -> bool:
    """Whether a file of this source was read to its end and none of its rows waits for a score."""
    done = Import.objects.filter(source=source, state=ImportState.DONE)
    return done.exists() and not ScoreBatch.objects.filter(imported__source=source, state="queued").exists()


def batches_waiting(*, source: str) -> list[tuple[int, int]]:
    """(id, attempt) of the batches of a source that wait, in order."""
    waiting = ScoreBatch.objects.filter(imported__source=source, state="queued").order_by("id")
    return list(waiting.values_list("id", "attempt"))


def alerts_open_before(*, before: datetime, source: str) -> list[Alert]:
    """Open alerts of one source that opened before a moment, oldest first, with their transactions."""
    found = Alert.objects.exclude(state=AlertState.CLOSED).filter(
        opened_at__lt=before, transaction__source=source, escalated=False
    )
    return list(found.select_related("transaction").order_by("opened_at", "id"))
