"""Scoring requests of integrators: accepted once whatever is sent twice, scored in batches, answered from the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import F

from apps.accounts.api import Actor, person_id
from apps.core.errors import AppError, ConflictError
from apps.fraud import jobs, selectors
from apps.fraud.contracts import ParsedTransaction, ScoreAnswer
from apps.fraud.models import ApiRequest, Card, ScoreState, Terminal, Transaction
from apps.fraud.services import scoring
from ml_core.errors import InputError

STALE_AFTER = timedelta(minutes=3)
_REQUEUE_ROWS = 1_000


class IdempotencyError(AppError):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_key_reused"
    status = 422


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """What became of a request: the row that stands for it, and the answer if there is one already."""

    id: int
    answer: ScoreAnswer


def request_accept(
    row: ParsedTransaction, *, by: Actor, key: str, body_sha256: str, reply_to: str, at: datetime
) -> Accepted:
    """Store a transaction to score and send it to the gpu lane; sent twice, it is stored once.

    Raises IdempotencyError (same key, other body) and ConflictError (same transaction id, other content).
    """
    for last in (False, True):
        try:
            with transaction.atomic():
                return _accept(row, by=by, key=key, body_sha256=body_sha256, reply_to=reply_to, at=at)
        except IntegrityError:  # somebody stored the same row or key between our look and our write
            if last:
                raise
    raise AssertionError("unreachable")


def requests_score(*, wanted: Sequence[tuple[int, int]], at: datetime) -> list[ScoreAnswer]:
    """Score (transaction id, attempt) pairs together; a message of an earlier attempt scores nothing.

    A transaction that the engine refuses fails alone. Answers for all ids, in no particular order.
    """
    attempts = dict(Transaction.objects.filter(pk__in=[pk for pk, _ in wanted]).values_list("id", "attempt"))
    ids = sorted({pk for pk, attempt in wanted if attempts.get(pk) == attempt})
    try:
        scoring.transactions_score(ids=ids, at=at)
    except InputError:
        for pk in ids:
            _score_alone(pk, at=at)
    return selectors.answers(ids=sorted(attempts))


def transactions_requeue(*, at: datetime) -> int:
    """Send again what no worker has scored for minutes, as a new attempt, so that the lost message can do no harm."""
    with transaction.atomic():
        stale = list(selectors.transactions_stale(before=at - STALE_AFTER)[:_REQUEUE_ROWS])
        Transaction.objects.filter(pk__in=[pk for pk, _ in stale]).update(attempt=F("attempt") + 1)
        for pk, attempt in stale:
            jobs.enqueue_score(transaction_id=pk, attempt=attempt + 1)
    return len(stale)


def _accept(row: ParsedTransaction, *, by: Actor, key: str, body_sha256: str, reply_to: str, at: datetime) -> Accepted:
    source = f"api-{by.user_id}"
    used = ApiRequest.objects.filter(owner_id=person_id(by), key=key).first() if key else None
    if used is not None and used.body_sha256 != body_sha256:
        raise IdempotencyError("this Idempotency-Key was used before with another body")
    pk = used.transaction_id if used else None
    stored = Transaction.objects.select_related("card", "terminal").filter(
        **({"pk": pk} if pk else {"source": source, "external_id": row.external_id})
    )
    found = stored.first()
    if found is not None and not _same(found, row):
        raise ConflictError(f"transaction {row.external_id} was sent before with another content")
    if found is None:
        found = _store(row, source=source, at=at)
    if key and used is None:
        ApiRequest.objects.create(owner_id=person_id(by), key=key, body_sha256=body_sha256, transaction=found, at=at)
    if found.state == ScoreState.QUEUED:
        jobs.enqueue_score(transaction_id=found.pk, attempt=found.attempt, reply_to=reply_to)
        answer = ScoreAnswer(id=found.pk, transaction_id=found.external_id, state=found.state)
    else:
        answer = selectors.answers(ids=[found.pk])[0]
    return Accepted(id=found.pk, answer=answer)


def _store(row: ParsedTransaction, *, source: str, at: datetime) -> Transaction:
    card = Card.objects.filter(token=row.card_token).first()
    card = card or Card.objects.create(token=row.card_token, display=row.card_display)
    terminal = Terminal.objects.filter(key=row.terminal_key).first()
    terminal = terminal or Terminal.objects.create(key=row.terminal_key, name=row.terminal_name)
    return Transaction.objects.create(
        source=source,
        external_id=row.external_id,
        at=row.at,
        utc_offset_s=row.utc_offset_s,
        card=card,
        terminal=terminal,
        amount_cents=row.amount_cents,
        currency=row.currency,
        received_at=at,
    )


def _same(stored: Transaction, row: ParsedTransaction) -> bool:
    return (stored.external_id, stored.at, stored.amount_cents, stored.currency, stored.card.token) == (
        row.external_id,
        row.at,
        row.amount_cents,
        row.currency,
        row.card_token,
    ) and stored.terminal.key == row.terminal_key


def _score_alone(pk: int, *, at: datetime) -> None:
    try:
        scoring.transactions_score(ids=[pk], at=at)
    except InputError as error:
        scoring.transactions_fail(ids=[pk], code=error.code, at=at)
