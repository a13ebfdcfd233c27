"""Scoring requests of integrators: accepted once whatever is sent twice, scored in batches, answered from the rows."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F

from apps.core.errors import AppError
from apps.core.prepared import Prepared
from apps.core.stages import stage
from apps.fraud import jobs, selectors
from apps.fraud.contracts import Asked, Refusal, ScoreAnswer
from apps.fraud.models import ScoreState, Transaction
from apps.fraud.services import arrivals, scoring
from apps.fraud.services.arrivals import Stored
from ml_core.errors import InputError

STALE_AFTER = timedelta(minutes=3)
_REQUEUE_ROWS = 1_000
_ATTEMPTS = Prepared(lambda ids: Transaction.objects.filter(pk__in=ids).values_list("id", "attempt"))


class RequestRefusedError(AppError):
    """A request that cannot be taken; code, sentence and status are the refusal's."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.code, self.status = refusal.code, refusal.status


def requests_take(
    *, asked: Sequence[Asked], wanted: Sequence[tuple[int, int]], at: datetime
) -> dict[str, ScoreAnswer | Refusal]:
    """At the worker: store what is new of `asked`, score it together with stored (id, attempt) pairs; by token."""
    with stage("store"):  # scores are committed before anybody hears of them, and that waits for the disk
        taken = arrivals.requests_store(asked=asked, at=at, flushed=False) if asked else {}
    pairs = {(row.id, row.attempt) for row in taken.values() if isinstance(row, Stored)}
    answers = {each.id: each for each in requests_score(wanted=sorted({*wanted, *pairs}), at=at)}
    if waiting := [each.id for each in answers.values() if each.state == ScoreState.QUEUED]:
        arrivals.requests_flush(ids=waiting)
    return {token: answers[row.id] if isinstance(row, Stored) else row for token, row in taken.items()}


@transaction.atomic
def request_accept(*, asked: Asked, at: datetime) -> ScoreAnswer:
    """At the web process, when no worker answered: store the request so that it cannot be lost, and send it again.

    Raises RequestRefusedError (same key, other body; same transaction id, other content).
    """
    row = arrivals.requests_store(asked=[asked], at=at)[asked.token]
    if isinstance(row, Refusal):
        raise RequestRefusedError(row)
    answer = selectors.answers(ids=[row.id])[0]
    if answer.state == ScoreState.QUEUED:
        jobs.enqueue_score(transaction_id=row.id, attempt=row.attempt)
    return answer


def requests_score(*, wanted: Sequence[tuple[int, int]], at: datetime) -> list[ScoreAnswer]:
    """Score (transaction id, attempt) pairs together; a message of an earlier attempt scores nothing.

    A transaction that the engine refuses fails alone. Answers for all ids, in no particular order.
    """
    attempts = dict(_ATTEMPTS.rows([pk for pk, _ in wanted]))
    ids = sorted({pk for pk, attempt in wanted if attempts.get(pk) == attempt})
    try:
        scoring.transactions_score(ids=ids, at=at)
    except InputError:
        for pk in ids:
            _score_alone(pk, at=at)
    with stage("read"):
        return selectors.answers(ids=sorted(attempts))


def transactions_requeue(*, at: datetime) -> int:
    """Send again what no worker has scored for minutes, as a new attempt, so that the lost message can do no harm."""
    with transaction.atomic():
        stale = list(selectors.transactions_stale(before=at - STALE_AFTER)[:_REQUEUE_ROWS])
        Transaction.objects.filter(pk__in=[pk for pk, _ in stale]).update(attempt=F("attempt") + 1)
        for pk, attempt in stale:
            jobs.enqueue_score(transaction_id=pk, attempt=attempt + 1)
    return len(stale)


def _score_alone(pk: int, *, at: datetime) -> None:
    try:
        scoring.transactions_score(ids=[pk], at=at)
    except InputError as error:
        scoring.transactions_fail(ids=[pk], code=error.code, at=at)
