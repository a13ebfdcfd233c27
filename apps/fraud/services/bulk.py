"""Bulk writes and reads that must not cost an object a row: one statement for SQLite, one for PostgreSQL."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db import connection

from apps.core.prepared import Prepared
from apps.fraud.contracts import ParsedTransaction
from apps.fraud.models import Card, Terminal

Content = tuple[datetime, int, int, int]  # at, amount_cents, card id, terminal id
_COLUMNS = (
    "source, external_id, at, utc_offset_s, card_id, terminal_id, amount_cents, currency, label, label_known_at, "
    "imported_id, state, attempt, model_digest, error_code"
)
_TYPES = (
    "text", "text", "timestamptz", "int", "bigint", "bigint", "bigint", "text", "bool", "timestamptz",
    "bigint", "text", "smallint", "text", "text",
)  # fmt: skip
_IN_ROWS = 900  # below SQLite's limit of bound variables
_CARDS = Prepared(lambda tokens: Card.objects.filter(token__in=tokens).values_list("token", "id"))
_TERMINALS = Prepared(lambda keys: Terminal.objects.filter(key__in=keys).values_list("key", "id"))


def cards_ensure(rows: Iterable[ParsedTransaction], *, known: dict[str, int]) -> None:
    """Make the cards that are new, and put the ids of all cards of `rows` into `known` (token → id)."""
    new = {row.card_token: row.card_display for row in rows if row.card_token not in known}
    for part in _parts(sorted(new)):
        known.update(_CARDS.rows(part))
    for part in _parts(sorted(new.keys() - known.keys())):
        Card.objects.bulk_create([Card(token=token, display=new[token]) for token in part], ignore_conflicts=True)
        known.update(_CARDS.rows(part))


def terminals_ensure(rows: Iterable[ParsedTransaction], *, known: dict[str, int]) -> None:
    """Make the terminals that are new, and put the ids of all terminals of `rows` into `known` (key → id)."""
    new = {row.terminal_key: row for row in rows if row.terminal_key not in known}
    for part in _parts(sorted(new)):
        known.update(_TERMINALS.rows(part))
    for part in _parts(sorted(new.keys() - known.keys())):
        Terminal.objects.bulk_create(
            [Terminal(key=k, name=new[k].terminal_name, category=new[k].terminal_category) for k in part],
            ignore_conflicts=True,
        )
        known.update(_TERMINALS.rows(part))


def transactions_find(*, source: str, external_ids: list[str]) -> dict[str, Content]:
    """What is stored under these ids of a source: id → content."""
    with connection.cursor() as cursor:
        columns = "external_id, at, amount_cents, card_id, terminal_id"
        if connection.vendor == "postgresql":
            cursor.execute(
                f"SELECT {columns} FROM fraud_transaction WHERE source = %s AND external_id = ANY(%s)",
                [source, external_ids],
            )
            return {row[0]: (row[1], row[2], row[3], row[4]) for row in cursor.fetchall()}
        found: dict[str, Content] = {}
        for part in _parts(external_ids):
            marks = ", ".join(["%s"] * len(part))
            cursor.execute(
                f"SELECT {columns} FROM fraud_transaction WHERE source = %s AND external_id IN ({marks})",
                [source, *part],
            )
            for row in cursor.fetchall():
                found[row[0]] = (datetime.fromisoformat(f"{row[1]}+00:00"), row[2], row[3], row[4])
        return found


def transactions_insert(
    rows: Sequence[ParsedTransaction],
    *,
    source: str,
    import_id: int,
    state: str,
    cards: dict[str, int],
    terminals: dict[str, int],
) -> None:
    """Insert transactions in the order given; a row whose id is taken is left out."""
    adapt = connection.ops.adapt_datetimefield_value
    values = [
        (
            source, row.external_id, adapt(row.at), row.utc_offset_s, cards[row.card_token],
            terminals[row.terminal_key], row.amount_cents, row.currency, row.label,
            adapt(row.label_known_at), import_id, state, 1, "", "",
        )
        for row in rows
    ]  # fmt: skip
    _insert("fraud_transaction", _COLUMNS, _TYPES, values, conflict="DO NOTHING")


def scores_write(scores: Sequence[tuple[int, float]], *, digest: str, at: datetime) -> None:
    """Write (transaction id, probability) pairs into transactions that are still queued."""
    when = connection.ops.adapt_datetimefield_value(at)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "UPDATE fraud_transaction t SET state = 'done', probability = s.probability, model_digest = %s, "
                "scored_at = %s FROM unnest(%s::bigint[], %s::float8[]) AS s(id, probability) "
                "WHERE t.id = s.id AND t.state = 'queued'",
                [digest, when, [pair[0] for pair in scores], [pair[1] for pair in scores]],
            )
            return
        cursor.executemany(
            "UPDATE fraud_transaction SET state = 'done', probability = %s, model_digest = %s, scored_at = %s "
            "WHERE id = %s AND state = 'queued'",
            [(probability, digest, when, row_id) for row_id, probability in scores],
        )


def states_read(*, cards: list[str], terminals: list[str]) -> dict[tuple[str, str], tuple[bytes, int]]:
    """The states of these entities that exist: (kind, key) → (bytes, version)."""
    return {
        (kind, row[0]): (bytes(row[1]), row[2])
        for kind, keys in (("card", cards), ("terminal", terminals))
        for row in _states(kind, keys, columns="key, data, version")
    }


def states_lock(
    *, cards: list[str], terminals: list[str], known: Collection[tuple[str, str]] = ()
) -> dict[tuple[str, str], int]:
    """Make the rows that are missing (never those of `known`), lock all by kind and key; (kind, key) → version."""
    found: dict[tuple[str, str], int] = {}
    for kind, keys in (("card", sorted(cards)), ("terminal", sorted(terminals))):
        values = [(kind, key, b"", 0) for key in keys if (kind, key) not in known]
        _insert("fraud_entitystate", "kind, key, data, version", _STATE_TYPES, values, conflict="DO NOTHING")
        suffix = " ORDER BY key FOR UPDATE" if connection.vendor == "postgresql" else ""
        found.update({(kind, row[0]): row[1] for row in _states(kind, keys, columns="key, version", suffix=suffix)})
    return found


def states_write(states: Sequence[tuple[str, str, bytes]]) -> None:
    """Write (kind, key, bytes) of states whose rows are locked."""
    _insert(
        "fraud_entitystate",
        "kind, key, data, version",
        _STATE_TYPES,
        [(kind, key, data, 1) for kind, key, data in sorted(states, key=lambda state: state[:2])],
        conflict="(kind, key) DO UPDATE SET data = excluded.data, version = fraud_entitystate.version + 1",
    )


_STATE_TYPES = ("text", "text", "bytea", "int")


def _states(kind: str, keys: list[str], *, columns: str, suffix: str = "") -> list[tuple]:
    rows: list[tuple] = []
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                f"SELECT {columns} FROM fraud_entitystate WHERE kind = %s AND key = ANY(%s){suffix}", [kind, keys]
            )
            return cursor.fetchall()
        for part in _parts(keys):
            marks = ", ".join(["%s"] * len(part))
            cursor.execute(
                f"SELECT {columns} FROM fraud_entitystate WHERE kind = %s AND key IN ({marks})", [kind, *part]
            )
            rows += cursor.fetchall()
    return rows


def _insert(table: str, columns: str, types: Sequence[str], values: list[tuple], *, conflict: str) -> None:
    if not values:
        return
    if connection.vendor == "postgresql":
        arrays = ", ".join(f"%s::{kind}[]" for kind in types)
        query = f"INSERT INTO {table} ({columns}) SELECT * FROM unnest({arrays}) ON CONFLICT {conflict}"
        _execute_bound(query, [list(column) for column in zip(*values, strict=True)])
        return
    with connection.cursor() as cursor:
        marks = ", ".join(["%s"] * len(types))
        cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT {conflict}", values)


def _execute_bound(query: str, arrays: list[list[Any]]) -> None:
    """Arrays go to PostgreSQL beside the query, in binary; Django's own cursor would quote every element into it."""
    import psycopg

    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        cursor.execute(query, arrays)


def _parts(keys: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(keys), _IN_ROWS):
        yield keys[start : start + _IN_ROWS]
