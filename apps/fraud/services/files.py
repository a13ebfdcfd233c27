"""Reads CSV and parquet row by row in flat memory, and turns each row into a transaction or a reason against it."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from django.conf import settings

from apps.core.errors import AppError
from apps.fraud import rules
from apps.fraud.contracts import BadRow, ParsedTransaction
from apps.fraud.services.schemas import Schema

_READ_ROWS = 8_192
_FIELDS = ("id", "at", "card", "terminal", "amount", "currency", "label", "category")
_CURRENCY = re.compile(r"[A-Z]{3}")
_TRUE, _FALSE = {"1", "true", "t", "yes", "1.0"}, {"0", "false", "f", "no", "0.0"}

Raw = tuple[object, ...]


class FileError(AppError):
    """The whole file cannot be read; the message says why."""

    code = "file_unreadable"
    status = 422


def rows_read(path: Path, *, schema: Schema, at: datetime) -> Iterator[ParsedTransaction | BadRow]:
    """Every row of a CSV or parquet file in order, good or bad. Raises FileError when the file as a whole is wrong."""
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    parse = _parser(schema, at=at)
    for line, raw in (_parquet_rows if is_parquet else _csv_rows)(path, schema):
        yield BadRow(line=line, reason=raw) if isinstance(raw, str) else parse(line, raw)


def rows_count(path: Path) -> int | None:
    """How many rows a parquet file has; None for CSV, which does not say."""
    try:
        return int(pq.ParquetFile(path).metadata.num_rows)
    except (pa.ArrowInvalid, OSError):
        return None


def _parquet_rows(path: Path, schema: Schema) -> Iterator[tuple[int, Raw | str]]:
    try:
        file = pq.ParquetFile(path)
        present = _present(file.schema_arrow.names, schema, path=path)
        line = 0
        for batch in file.iter_batches(batch_size=_READ_ROWS, columns=[column for _, column in present]):
            values = {field: _plain(batch.column(column)) for field, column in present}
            nothing = [None] * batch.num_rows
            for raw in zip(*(values.get(field, nothing) for field in _FIELDS), strict=True):
                line += 1
                yield line, raw
    except (pa.ArrowException, OSError) as error:
        raise FileError(f"{path.name} is not a readable parquet file: {str(error)[:200]}") from error


def _csv_rows(path: Path, schema: Schema) -> Iterator[tuple[int, Raw | str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            header = [name.strip() for name in next(reader)]
        except StopIteration as error:
            raise FileError(f"{path.name} is empty") from error
        except csv.Error as error:
            raise FileError(f"{path.name} is neither parquet nor CSV: {error}") from error
        present = dict(_present(header, schema, path=path))
        places = [header.index(present[field]) if field in present else None for field in _FIELDS]
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, f"not readable as CSV: {error}"
                continue
            if not cells:
                continue
            if len(cells) != len(header):
                yield line, f"{len(cells)} cells where the header has {len(header)}"
            else:
                yield line, tuple(None if place is None else cells[place] for place in places)


def _present(names: Sequence[str], schema: Schema, *, path: Path) -> list[tuple[str, str]]:
    if secrets := [name for name in names if rules.is_card_secret(name)]:
        raise FileError(f"{path.name} holds {secrets[0]}: security codes and PINs are refused, nothing was stored")
    present = [(field, column) for field, column in schema.columns.items() if column in names]
    found = {field for field, _ in present}
    if missing := [c for field, c in schema.columns.items() if field not in found and field not in schema.optional]:
        raise FileError(f"{path.name} lacks the columns {', '.join(missing)} of the schema {schema.name}")
    return present


def _plain(column: pa.Array) -> list[object]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)
    elif pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.to_pylist()


def _parser(schema: Schema, *, at: datetime) -> Callable[[int, Raw], ParsedTransaction | BadRow]:
    token_key = settings.TOKEN_KEY
    latest = at + timedelta(days=1)
    utc = schema.time_zone.key == "UTC"

    @lru_cache(maxsize=100_000)
    def card(value: str) -> tuple[str, str]:
        return rules.card_token(value, key=token_key), rules.card_display(value)

    def moment(value: object) -> tuple[datetime, int]:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value, "time", limit=40))
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC if utc else schema.time_zone)
        offset = found.utcoffset() or timedelta(0)
        found = found.astimezone(UTC).replace(microsecond=0)
        if found.year < 1970 or found > latest:
            raise ValueError(f"time lies outside 1970 … tomorrow: {found.isoformat()}")
        return found, int(offset.total_seconds())

    def parse(line: int, raw: Raw) -> ParsedTransaction | BadRow:
        row_id, row_at, row_card, row_terminal, amount, currency, label, category = raw
        try:
            found, offset = moment(row_at)
            token, display = card(_text(row_card, "card"))
            terminal = _text(row_terminal, "terminal")
            known = _label(label)
            money = str(currency).strip().upper() if currency not in (None, "") else schema.currency
            if not _CURRENCY.fullmatch(money):
                raise ValueError(f"currency is not three letters: {money[:20]!r}")
            return ParsedTransaction(
                line=line,
                external_id=_text(row_id, "id"),
                at=found,
                utc_offset_s=offset,
                card_token=token,
                card_display=display,
                terminal_key=rules.terminal_name(terminal) if rules.is_card_number(terminal) else terminal,
                terminal_name=rules.terminal_name(terminal),
                terminal_category=str(category)[:30] if category else "",
                amount_cents=_cents(amount, unit=schema.amount_unit),
                currency=money,
                label=known,
                label_known_at=found + rules.LABEL_DELAY if known is not None else None,
            )
        except (ValueError, OverflowError) as error:
            return BadRow(line=line, reason=str(error)[:200])

    return parse


def _text(value: object, name: str, *, limit: int = 64) -> str:
    text = "" if value is None else str(value).strip()
    if not text:
        raise ValueError(f"{name} is empty")
    if len(text) > limit:
        raise ValueError(f"{name} is longer than {limit} characters")
    if not text.isprintable() or "\ufffd" in text:
        raise ValueError(f"{name} holds characters that cannot be printed or are not UTF-8")
    return text


def _cents(value: object, *, unit: str) -> int:
    cents = rules.money_cents(value)
    if unit == "units":
        return cents
    if cents % 100:
        raise ValueError(f"amount is not a whole number of cents: {value}")
    return cents // 100


def _label(value: object) -> bool | None:
    if value is None or value == "":
        return None
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"label is neither 0 nor 1: {word[:20]!r}")
