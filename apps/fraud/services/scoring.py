"""Scores transactions: states and scores, alerts and one audit event change in one database transaction."""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from django.db import connection, transaction
from django.db.models import QuerySet

from apps.accounts.api import system_actor
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError
from apps.core.prepared import Prepared
from apps.core.rules import band_of
from apps.core.stages import add, stage
from apps.engine.port import get_engine
from apps.fraud import rules, selectors
from apps.fraud.models import Alert, AlertSnapshot, BatchState, ScoreBatch, ScoreState, Transaction
from apps.fraud.services import bulk
from apps.registry import api as registry
from ml_core.contracts import EntityKind, EntityState, ModelKey, ModelKind, Score, ScoreRequest, ScoreResult
from ml_core.contracts import Transaction as EngineTransaction
from ml_core.errors import EngineError

_OPTIMISTIC_TRIES = 2
_LOCK_SPACE = 0x46524155  # "FRAU": our part of PostgreSQL's advisory locks
_HISTORY = timedelta(days=30)


class StatesMovedError(AppError):
    """Another worker wrote a state between our reading and our writing."""

    code = "states_moved"
    status = 409


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredBatch:
    """What scoring a batch did: ids scored, alerts opened."""

    scored: int
    alerts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A transaction as scoring needs it."""

    id: int
    at: datetime
    utc_offset_s: int
    amount_cents: int
    currency: str
    label: bool | None
    label_known_at: datetime | None
    card_id: int
    terminal_id: int
    card: str
    terminal: str
    source: str
    external_id: str


_FIELDS = (
    "id", "at", "utc_offset_s", "amount_cents", "currency", "label", "label_known_at", "card_id", "terminal_id",
    "card__token", "terminal__key", "source", "external_id",
)  # fmt: skip
_NAMES = (*_FIELDS[:9], "card", "terminal", "source", "external_id")
_FEW = 128  # a batch of requests has at most 64; those of imports are asked for by their ends
_ROWS = Prepared(lambda ids: selectors.transactions_queued(ids=ids).values_list(*_FIELDS))
_LOCKED = Prepared(lambda ids: _queued_locked(ids))


def transactions_score(*, ids: Sequence[int], at: datetime, replay: bool = False) -> ScoredBatch:
    """Score those of `ids` that are still queued, in the order of time, then id; a second call finds nothing to do.

    The model runs outside of the database transaction; the states it read are locked in key order before anything is
    written, and if one of them moved meanwhile, it runs again, in the end under the locks themselves.
    """
    for _ in range(_OPTIMISTIC_TRIES):
        try:
            return _score_once(ids, at=at, replay=replay)
        except StatesMovedError:
            continue
    with transaction.atomic():
        rows = _rows(ids)
        bulk.states_lock(cards=_keys(rows, "card"), terminals=_keys(rows, "terminal"))
        return _score_once(ids, at=at, replay=replay)


def batch_score_next(*, batch_id: int, attempt: int, at: datetime) -> ScoreBatch | None:
    """Score the oldest undone batch of the same import, so that time runs forward whatever order messages take.

    Returns the batch that was scored, None when nothing was left to do or the message is of an earlier attempt.
    """
    asked = ScoreBatch.objects.select_related("imported").get(pk=batch_id)
    if asked.attempt != attempt:
        return None
    with _import_lock(asked.imported_id):
        batch = ScoreBatch.objects.filter(imported=asked.imported, state=BatchState.QUEUED).order_by("id").first()
        if batch is None:
            return None
        ids = selectors.transaction_ids(import_id=batch.imported_id, first_id=batch.first_id, last_id=batch.last_id)
        try:
            transactions_score(ids=ids, at=at, replay=asked.imported.replay)
        except EngineError as error:
            batch.state, batch.error_code = BatchState.FAILED, error.code
        else:
            batch.state = BatchState.DONE
            batch.alerts = selectors.alerts_opened(
                import_id=batch.imported_id, first_id=batch.first_id, last_id=batch.last_id
            )
        batch.finished_at = at
        batch.save(update_fields=["state", "error_code", "alerts", "finished_at"])
    return batch


def transactions_fail(*, ids: Sequence[int], code: str, at: datetime) -> None:
    """Mark transactions that the engine refuses; they keep no score."""
    with transaction.atomic():
        failed = Transaction.objects.filter(pk__in=ids, state=ScoreState.QUEUED)
        failed.update(state=ScoreState.FAILED, error_code=code, scored_at=at)
        record(
            AuditEvent(
                actor=system_actor(name="scoring"),
                verb="transactions.fail",
                object_type="transaction",
                object_id=str(min(ids)),
                at=at,
                detail={"count": len(ids), "code": code},
            )
        )


def _score_once(ids: Sequence[int], *, at: datetime, replay: bool) -> ScoredBatch:
    with stage("read"):
        rows = _rows(ids)
        if not rows:
            return ScoredBatch(scored=0, alerts=0)
        policy = selectors.policy_now()
        cards, terminals = _keys(rows, "card"), _keys(rows, "terminal")
        before = bulk.states_read(cards=cards, terminals=terminals)
        model = registry.champion(ModelKind.FRAUD).key
    result = get_engine().score(
        ScoreRequest(
            model=model,
            transactions=tuple(engine_transaction(row, card=row.card, terminal=row.terminal) for row in rows),
            states=states_given(cards=cards, terminals=terminals, before=before),
            explain_from=policy.threshold,
        )
    )
    add("features", result.features_s)
    add("model", result.seconds - result.features_s - result.reasons_s)
    add("reasons", result.reasons_s)
    with stage("write"), transaction.atomic():
        _lock_rows(rows)
        versions = bulk.states_lock(cards=cards, terminals=terminals, known=before.keys())
        if any(version != before.get(key, (b"", 0))[1] for key, version in versions.items()):
            raise StatesMovedError("a state moved while its transactions were scored")
        return _write(rows, result=result, model=model, before=before, threshold=policy.threshold, at=at, replay=replay)


def engine_id(pk: int) -> str:
    """A transaction's id as the engine knows it: padded, so that text and number sort alike (ties in time)."""
    return f"{pk:012d}"


def engine_transaction(row: "_Row | Transaction", *, card: str, terminal: str) -> EngineTransaction:
    """A transaction in the engine's terms: its id is ours, moments are seconds."""
    return EngineTransaction(
        id=engine_id(row.id),
        at=int(row.at.timestamp()),
        card=card,
        terminal=terminal,
        amount_cents=row.amount_cents,
        currency=row.currency,
        utc_offset_s=row.utc_offset_s,
        label=row.label,
        label_known_at=int(row.label_known_at.timestamp()) if row.label_known_at else None,
    )


def states_given(
    *, cards: Sequence[str], terminals: Sequence[str], before: dict[tuple[str, str], tuple[bytes, int]]
) -> tuple[EntityState, ...]:
    """The states of these entities for the engine; new ones are empty."""
    empty = (b"", 0)
    kinds = ((EntityKind.CARD, "card", cards), (EntityKind.TERMINAL, "terminal", terminals))
    return tuple(
        EntityState(kind=kind, key=key, data=before.get((name, key), empty)[0])
        for kind, name, keys in kinds
        for key in keys
    )


def states_pack(states: dict[tuple[str, str], bytes]) -> bytes:
    """States as compressed JSON, for a snapshot."""
    plain = [[kind, key, b64encode(data).decode()] for (kind, key), data in states.items()]
    return zlib.compress(json.dumps(plain).encode(), 1)


def states_unpack(packed: bytes) -> dict[tuple[str, str], bytes]:
    """What `states_pack` packed."""
    return {(kind, key): b64decode(data) for kind, key, data in json.loads(zlib.decompress(packed))}


def _rows(ids: Sequence[int]) -> list[_Row]:
    few = len(ids) <= _FEW
    found = _ROWS.rows(ids) if few else selectors.transactions_queued(ids=ids).values_list(*_FIELDS)
    rows = [_Row(**dict(zip(_NAMES, values, strict=True))) for values in found]
    return sorted(rows, key=lambda row: (row.at, row.id))


def _keys(rows: Sequence[_Row], field: str) -> list[str]:
    return sorted({getattr(row, field) for row in rows})


def _lock_rows(rows: Sequence[_Row]) -> None:
    """Lock the transactions themselves; if one is queued no more, another worker was here."""
    ids = [row.id for row in rows]
    if len(_LOCKED.rows(ids) if len(ids) <= _FEW else _queued_locked(ids)) != len(rows):
        raise StatesMovedError("some of the transactions were scored meanwhile")


def _queued_locked(ids: Sequence[int]) -> QuerySet[Transaction, tuple[int]]:
    queued = selectors.transactions_queued(ids=ids)
    if connection.features.has_select_for_update:
        queued = queued.select_for_update(of=("self",))
    return queued.order_by("id").values_list("id")


def _write(
    rows: Sequence[_Row],
    *,
    result: ScoreResult,
    model: ModelKey,
    before: dict[tuple[str, str], tuple[bytes, int]],
    threshold: float,
    at: datetime,
    replay: bool,
) -> ScoredBatch:
    bulk.scores_write(
        [(row.id, score.probability) for row, score in zip(rows, result.scores, strict=True)],
        digest=result.model_digest,
        at=at,
    )
    bulk.states_write([(state.kind.value, state.key, state.data) for state in result.states])
    alerts = _alerts_open(rows, result=result, before=before, threshold=threshold, at=at, replay=replay)
    record(
        AuditEvent(
            actor=system_actor(name="scoring"),
            verb="transactions.score",
            object_type="transaction",
            object_id=f"{rows[0].id}" if len(rows) == 1 else f"{rows[0].id}…{rows[-1].id}",
            at=at,
            detail={
                "count": len(rows),
                "alerts": alerts,
                "model": result.model_digest,
                "sources": sorted({row.source for row in rows}),
            },
        )
    )
    return ScoredBatch(scored=len(rows), alerts=alerts)


def _alerts_open(
    rows: Sequence[_Row],
    *,
    result: ScoreResult,
    before: dict[tuple[str, str], tuple[bytes, int]],
    threshold: float,
    at: datetime,
    replay: bool,
) -> int:
    chosen = [(row, score) for row, score in zip(rows, result.scores, strict=True) if score.probability >= threshold]
    if not chosen:
        return 0
    history = selectors.card_amounts(
        card_ids=sorted({row.card_id for row, _ in chosen}),
        since=min(row.at for row, _ in chosen) - _HISTORY,
        until=max(row.at for row, _ in chosen),
    )
    alerts = [
        _alert(row, score, digest=result.model_digest, threshold=threshold, at=at, replay=replay, history=history)
        for row, score in chosen
    ]
    Alert.objects.bulk_create(alerts, batch_size=30)
    snapshots = _snapshots(rows, alerts=alerts, before=before, engine=result.engine)
    AlertSnapshot.objects.bulk_create(snapshots, batch_size=200)
    return len(alerts)


def _alert(
    row: _Row,
    score: Score,
    *,
    digest: str,
    threshold: float,
    at: datetime,
    replay: bool,
    history: dict[int, list[tuple[int, datetime, int]]],
) -> Alert:
    earlier = [entry for entry in history.get(row.card_id, []) if entry[:1] != (row.id,) and entry[1] <= row.at]
    month = [cents for _, when, cents in earlier if when > row.at - _HISTORY]
    hits = rules.rules_hit(
        at_local=(row.at + timedelta(seconds=row.utc_offset_s)).astimezone(UTC),
        amount_cents=row.amount_cents,
        since_previous_s=[int((row.at - when).total_seconds()) for _, when, _ in earlier],
        usual_cents=sum(month) / len(month) if len(month) >= 5 else None,
    )
    reasons = [asdict(reason) for reason in score.reasons]
    strongest = max(score.reasons, key=lambda reason: reason.points, default=None)
    return Alert(
        transaction_id=row.id,
        card_id=row.card_id,
        terminal_id=row.terminal_id,
        amount_cents=row.amount_cents,
        currency=row.currency,
        probability=score.probability,
        band=band_of(score.probability)[0],
        threshold=threshold,
        base_points=score.base_points,
        reasons=reasons,
        counterfactuals=[asdict(change) for change in score.counterfactuals],
        features=dict(score.features),
        rule_hits=[asdict(hit) for hit in hits],
        main_reason=strongest.text[:200] if strongest else "",
        model_digest=digest,
        scored_at=at,
        priority=rules.priority_of(probability=score.probability, amount_cents=row.amount_cents),
        opened_at=row.at if replay else at,
    )


def _snapshots(
    rows: Sequence[_Row], *, alerts: Sequence[Alert], before: dict[tuple[str, str], tuple[bytes, int]], engine: str
) -> list[AlertSnapshot]:
    """What each alert was scored from: its terminal and every card that the terminal's memory of this batch rests on.

    A terminal remembers of a transaction how unusual it was for its card, so those cards' own forerunners count too.
    """
    by_transaction = {alert.transaction_id: alert for alert in alerts}
    of_card: dict[str, list[_Row]] = {}
    of_terminal: dict[str, list[_Row]] = {}
    snapshots = []
    for row in rows:
        if alert := by_transaction.get(row.id):
            cards = {row.card} | {other.card for other in of_terminal.get(row.terminal, [])}
            earlier = {other.id: other for card in cards for other in of_card.get(card, [])}
            keys = [("terminal", row.terminal), *(("card", card) for card in sorted(cards))]
            known = [(each, each.label_known_at) for each in (*earlier.values(), row) if each.label is not None]
            snapshots.append(
                AlertSnapshot(
                    alert=alert,
                    states=states_pack({key: before.get(key, (b"", 0))[0] for key in keys}),
                    preceding=sorted(earlier),
                    labels={str(each.id): [each.label, int(when.timestamp())] for each, when in known if when},
                    engine=engine,
                )
            )
        of_card.setdefault(row.card, []).append(row)
        of_terminal.setdefault(row.terminal, []).append(row)
    return snapshots


@contextmanager
def _import_lock(import_id: int) -> Iterator[None]:
    """Only one batch of an import is scored at a time, so that its time runs forward."""
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", [_LOCK_SPACE, import_id])
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [_LOCK_SPACE, import_id])
