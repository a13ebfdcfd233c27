"""Stores scoring requests, many in one transaction: each once, whatever is sent twice and by whichever process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from django.db import IntegrityError, connection, transaction
from django.db.models import F

from apps.core.prepared import Prepared
from apps.fraud.contracts import Asked, Refusal
from apps.fraud.models import ApiRequest, Transaction
from apps.fraud.services import bulk

_KEY_REUSED = Refusal(
    code="idempotency_key_reused", status=422, message="this Idempotency-Key was used before with another body"
)
_FIELDS = ("id", "source", "external_id", "at", "amount_cents", "currency", "card__token", "terminal__key", "attempt")
_KNOWN = Prepared(
    lambda sources, names: Transaction.objects.filter(source__in=sources, external_id__in=names).values_list(*_FIELDS)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A stored transaction: its id, its attempt, and the content that a repetition must have."""

    id: int
    attempt: int
    content: tuple[object, ...]


@dataclass(kw_only=True, slots=True)
class _Found:
    """What the database knows of a batch before it is stored: transactions by (source, id), used Idempotency-Keys."""

    transactions: dict[tuple[str, str], Stored] = field(default_factory=dict)
    keys: dict[tuple[int, str], tuple[str, tuple[str, str]]] = field(default_factory=dict)


def requests_store(*, asked: Sequence[Asked], at: datetime, flushed: bool = True) -> dict[str, Stored | Refusal]:
    """Store what is new; by token the row that answers a request, or why it gets none.

    The same request twice, in one call or in two, is stored once. A refused request harms no other. flushed: False
    where the caller commits again before it promises anything: that commit then waits for the disk for both.
    """
    try:
        with _stored(flushed=flushed):
            return _store(asked, at=at)
    except IntegrityError:  # another process stored one of them between our look and our write
        with _stored(flushed=flushed):
            return _store(asked, at=at)


def requests_flush(*, ids: Sequence[int]) -> None:
    """Wait until these stored transactions are on the disk: a commit that waits does so for all before it."""
    if connection.vendor == "postgresql":
        Transaction.objects.filter(pk__in=ids).update(attempt=F("attempt"))


@contextmanager
def _stored(*, flushed: bool) -> Iterator[None]:
    with transaction.atomic():
        if not flushed and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL synchronous_commit TO OFF")
        yield


def _store(asked: Sequence[Asked], *, at: datetime) -> dict[str, Stored | Refusal]:
    found = _look_up(asked)
    fresh: dict[tuple[str, str], Asked] = {}
    chosen: dict[str, tuple[str, str] | Refusal] = {}
    for each in asked:
        chosen[each.token] = _judge(each, found=found, fresh=fresh)
    found.transactions |= _insert(fresh, at=at)
    _keys_keep(asked, chosen=chosen, found=found, at=at)
    return {
        token: place if isinstance(place, Refusal) else found.transactions[place] for token, place in chosen.items()
    }


def _look_up(asked: Sequence[Asked]) -> _Found:
    found = _Found()
    pairs = [(each.owner_id, each.key) for each in asked if each.key]
    if pairs:
        used = ApiRequest.objects.filter(owner_id__in={owner for owner, _ in pairs}, key__in={key for _, key in pairs})
        columns = ("owner_id", "key", "body_sha256", "transaction__source", "transaction__external_id")
        for owner_id, key, sha256, source, external_id in used.values_list(*columns):
            found.keys[owner_id, key] = (sha256, (source, external_id))
    wanted = {(each.source, each.row.external_id) for each in asked} | {place for _, place in found.keys.values()}
    sources, names = ({place[at] for place in wanted} for at in (0, 1))
    for pk, source, external_id, *content, attempt in _KNOWN.rows(sorted(sources), sorted(names)):
        found.transactions[source, external_id] = Stored(id=pk, attempt=attempt, content=(external_id, *content))
    return found


def _judge(each: Asked, *, found: _Found, fresh: dict[tuple[str, str], Asked]) -> tuple[str, str] | Refusal:
    """The place (source, id) of the row that answers a request, or why it gets none."""
    place = (each.source, each.row.external_id)
    used = found.keys.get((each.owner_id, each.key)) if each.key else None
    if used is not None and used[0] != each.body_sha256:
        return _KEY_REUSED
    place = used[1] if used else place
    known = found.transactions[place].content if place in found.transactions else None
    earlier = known or (_content(fresh[place]) if place in fresh else None)
    if earlier is not None and earlier != _content(each):
        return _conflict(each.row.external_id)
    if earlier is None:
        fresh[place] = each
    if each.key:
        found.keys[each.owner_id, each.key] = (each.body_sha256, place)
    return place


def _insert(fresh: dict[tuple[str, str], Asked], *, at: datetime) -> dict[tuple[str, str], Stored]:
    rows = [each.row for each in fresh.values()]
    cards: dict[str, int] = {}
    terminals: dict[str, int] = {}
    bulk.cards_ensure(rows, known=cards)
    bulk.terminals_ensure(rows, known=terminals)
    made = Transaction.objects.bulk_create(
        Transaction(
            source=source,
            external_id=external_id,
            at=each.row.at,
            utc_offset_s=each.row.utc_offset_s,
            card_id=cards[each.row.card_token],
            terminal_id=terminals[each.row.terminal_key],
            amount_cents=each.row.amount_cents,
            currency=each.row.currency,
            received_at=at,
        )
        for (source, external_id), each in fresh.items()
    )
    return {
        place: Stored(id=row.pk, attempt=row.attempt, content=_content(each))
        for (place, each), row in zip(fresh.items(), made, strict=True)
    }


def _keys_keep(
    asked: Sequence[Asked], *, chosen: dict[str, tuple[str, str] | Refusal], found: _Found, at: datetime
) -> None:
    new = {}
    for each in asked:
        place = chosen[each.token]
        if each.key and not isinstance(place, Refusal):
            new[each.owner_id, each.key] = ApiRequest(
                owner_id=each.owner_id,
                key=each.key,
                body_sha256=each.body_sha256,
                transaction_id=found.transactions[place].id,
                at=at,
            )
    if new:
        kept = ApiRequest.objects.filter(owner_id__in={owner for owner, _ in new}, key__in={key for _, key in new})
        for pair in kept.values_list("owner_id", "key"):
            new.pop(pair, None)
        ApiRequest.objects.bulk_create(new.values())


def _content(each: Asked) -> tuple[object, ...]:
    row = each.row
    return (row.external_id, row.at, row.amount_cents, row.currency, row.card_token, row.terminal_key)


def _conflict(external_id: str) -> Refusal:
    return Refusal(
        code="conflict", status=409, message=f"transaction {external_id} was sent before with another content"
    )
