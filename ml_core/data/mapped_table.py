"""Reading any parquet or CSV table through a declared mapping: the Handbook's columns, and the further inputs raw.

Every column is checked before a row is used, and an error names the mapping's field, the table's column, how many rows
are at fault and the first of them (rows are counted from 0, as in the file). Rules that are ours:
- Ids, cards and terminals are whole numbers or text, never null, never empty; ids are unique.
- Times are cut to whole seconds. Text is read by its format; a timestamp with a zone is taken in UTC.
- Amounts are not negative and below 10^11 units; `decimal` rounds to cents, the other units take whole numbers only.
- CSV: an empty cell is a null and nothing else is ("NA" is a text); columns of categories and of dates with a format
  are text as they stand there, so are keys unless all of a column are whole numbers without leading zeros ("007" is not
  the card 7); other types are inferred.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ml_core.data.handbook import DAY_S, Table, join, table_from_columns
from ml_core.data.mapping import AmountColumn, InputColumn, TableMapping, TimeColumn
from ml_core.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

CENTS_MAX = 10**13
_WHOLE = "^(0|-?[1-9][0-9]{0,17})$"
_SUFFIXES = (".parquet", ".csv", ".csv.gz")


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedTable:
    """A table, its further inputs by name in the same row order, and how late its labels are.

    Categories are text ("" for a null that stands for nothing else), numbers float64.
    """

    table: Table
    extras: dict[str, npt.NDArray]
    delay_days: int

    def __len__(self) -> int:
        return len(self.table)


def read_mapped(path: Path, mapping: TableMapping) -> MappedTable:
    """Read PATH (.parquet, .csv, .csv.gz) through `mapping`, rows in time order, ties by id.

    Raises InputError for a file that cannot be read, a column that is missing or of a wrong type, and values that
    break a rule above.
    """
    frame = _read(path, mapping)
    columns = {
        "TRANSACTION_ID": _keys(frame, column=mapping.id, field="id"),
        "CUSTOMER_ID": _keys(frame, column=mapping.card, field="card"),
        "TERMINAL_ID": _keys(frame, column=mapping.terminal, field="terminal"),
        "TX_DATETIME": _times(frame, mapping.time),
        "TX_AMOUNT": _amounts(frame, mapping.amount),
        "TX_FRAUD": _labels(frame, column=mapping.fraud.column),
    }
    _refuse_duplicates(columns["TRANSACTION_ID"], column=mapping.id)
    at = columns["TX_DATETIME"].astype(np.int64)
    extras = {
        each.key: input_values(frame.column(each.column), each, at=at, where=f"mapping.inputs[{place}]")
        for place, each in enumerate(mapping.inputs)
    }
    order = np.lexsort((columns["TRANSACTION_ID"], at))
    return MappedTable(
        table=table_from_columns({name: values[order] for name, values in columns.items()}),
        extras={name: values[order] for name, values in extras.items()},
        delay_days=mapping.fraud.delay_days,
    )


def join_mapped(first: MappedTable, second: MappedTable) -> MappedTable:
    """Two tables of one mapping in sequence; the second must not begin before the first ends."""
    return MappedTable(
        table=join(first.table, second.table),
        extras={name: np.concatenate([values, second.extras[name]]) for name, values in first.extras.items()},
        delay_days=first.delay_days,
    )


def input_values(
    column: "pa.ChunkedArray | pa.Array", declared: InputColumn, *, at: npt.NDArray[np.int64], where: str
) -> npt.NDArray:
    """The values of one further input: text for a category, float64 for the others; `at` (n) are the rows' times."""
    import pyarrow as pa

    column = _decoded(column)
    if declared.kind == "category":
        return _categories(column, declared, where=where)
    if column.null_count and declared.null is None:
        raise _fault(where, declared.column, column.is_null(), f"null (`{where}.null` may say what it stands for)")
    present = ~column.is_null().to_numpy(zero_copy_only=False)
    values = np.full(len(column), 0.0 if declared.null is None else declared.null, np.float64)
    if declared.kind == "days_until":
        until = _seconds(column.filter(pa.array(present)), declared.format, where=where, name=declared.column)
        values[present] = (until - at[present]) / DAY_S
        return values
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or _is_null(kind)):
        raise InputError(f"{where}: column {declared.column!r} is {kind}; a number is a whole, floating or decimal one")
    values[present] = column.drop_null().cast(pa.float64()).to_numpy(zero_copy_only=False)
    _refuse(~np.isfinite(values), field=where, column=declared.column, what="not finite")
    return values


def _read(path: Path, mapping: TableMapping) -> "pa.Table":
    """The columns that the mapping names."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.name.endswith(_SUFFIXES):
        raise InputError(f"{path}: not one of {', '.join(_SUFFIXES)}")
    wanted = list(dict.fromkeys(mapping.columns().values()))
    try:
        if path.suffix == ".parquet":
            _refuse_missing(pyarrow.parquet.read_schema(path).names, path, mapping)
            return pyarrow.parquet.read_table(path, columns=wanted)
        as_text = [each.column for each in mapping.inputs if each.kind == "category" or each.format]
        as_text += [mapping.time.column] if mapping.time.format else []
        as_text += [mapping.id, mapping.card, mapping.terminal]
        options = pyarrow.csv.ConvertOptions(
            null_values=[""], strings_can_be_null=True, column_types=dict.fromkeys(as_text, pa.string())
        )
        frame = pyarrow.csv.read_csv(path, convert_options=options)
        _refuse_missing(frame.column_names, path, mapping)
        for key in (mapping.id, mapping.card, mapping.terminal):
            frame = frame.set_column(frame.column_names.index(key), key, _whole_numbers(frame.column(key)))
        return frame.select(wanted)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _whole_numbers(keys: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """Keys of a CSV as int64 where every one is written as a whole number is, else as they stand."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return keys.cast(pa.int64()) if pc.all(pc.match_substring_regex(keys, _WHOLE)).as_py() else keys


def _refuse_missing(names: list[str], path: Path, mapping: TableMapping) -> None:
    for field, column in mapping.columns().items():
        if column not in names:
            raise InputError(f"mapping.{field}: {path} has no column {column!r}; it has {', '.join(names)}")
        if names.count(column) > 1:
            raise InputError(f"mapping.{field}: {path} has {names.count(column)} columns {column!r}")


def _keys(frame: "pa.Table", *, column: str, field: str) -> npt.NDArray:
    """Whole numbers as int64, text as text."""
    import pyarrow as pa

    values = _whole_column(frame, column=column, field=field)
    if pa.types.is_integer(values.type):
        try:
            return values.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise InputError(f"mapping.{field}: column {column!r}: {error}") from error
    if not _is_text(values.type):
        raise InputError(f"mapping.{field}: column {column!r} is {values.type}; a key is a whole number or text")
    keys = values.to_numpy(zero_copy_only=False).astype(str)
    _refuse(keys == "", field=f"mapping.{field}", column=column, what="empty")
    return keys


def _times(frame: "pa.Table", declared: TimeColumn) -> npt.NDArray[np.datetime64]:
    column = _whole_column(frame, column=declared.column, field="time")
    seconds = _seconds(column, declared.format, where="mapping.time", name=declared.column)
    return seconds.astype("datetime64[s]")


def _seconds(column: "pa.ChunkedArray | pa.Array", form: str, *, where: str, name: str) -> npt.NDArray[np.int64]:
    """Seconds since 1970 of timestamps and dates, or of text by its format; no nulls in `column`."""
    import pyarrow as pa

    kind = column.type
    if len(column) == 0:
        return np.zeros(0, np.int64)
    if _is_text(kind) and form:
        texts, place = np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        parsed = np.array([_parsed(str(text), form, where=where, name=name) for text in texts], np.int64)
        return parsed[place]
    if form or not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        allowed = "text, since it has a format" if form else "a timestamp or a date, or text with a format"
        raise InputError(f"{where}: column {name!r} is {kind}; it must be {allowed}")
    return column.to_numpy(zero_copy_only=False).astype("datetime64[s]").astype(np.int64)


def _parsed(text: str, form: str, *, where: str, name: str) -> int:
    try:
        moment = datetime.strptime(text, form)
    except ValueError:
        raise InputError(f"{where}: column {name!r} holds {text!r}, which is not of the form {form!r}") from None
    utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(utc.timestamp() // 1)


def _amounts(frame: "pa.Table", declared: AmountColumn) -> npt.NDArray[np.float64]:
    """Amounts in units of currency, whole cents each."""
    import pyarrow as pa

    column = _whole_column(frame, column=declared.column, field="amount")
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InputError(f"mapping.amount: column {declared.column!r} is {kind}; an amount is a number")
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    cents = np.rint(values * (1 if declared.unit == "cents" else 100))
    faults = {"not finite": ~np.isfinite(values), "negative": values < 0, "too large": cents > CENTS_MAX}
    if declared.unit != "decimal":
        faults[f"no whole number (unit {declared.unit!r} needs one)"] = values != np.rint(values)
    for what, bad in faults.items():
        _refuse(bad, field="mapping.amount", column=declared.column, what=what)
    return cents / 100


def _labels(frame: "pa.Table", *, column: str) -> npt.NDArray[np.bool_]:
    import pyarrow as pa

    values = _whole_column(frame, column=column, field="fraud")
    if not (pa.types.is_boolean(values.type) or pa.types.is_integer(values.type)):
        raise InputError(f"mapping.fraud: column {column!r} is {values.type}; a label is true/false or 0/1")
    numbers = values.to_numpy(zero_copy_only=False).astype(np.int64)
    _refuse((numbers != 0) & (numbers != 1), field="mapping.fraud", column=column, what="neither 0 nor 1")
    return numbers.astype(bool)


def _categories(column: "pa.ChunkedArray | pa.Array", declared: InputColumn, *, where: str) -> npt.NDArray:
    import pyarrow as pa

    kind = column.type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_null(kind)):
        raise InputError(f"{where}: column {declared.column!r} is {kind}; a category is text, whole or true/false")
    texts = column.cast(pa.string()).fill_null("" if declared.null is None else str(declared.null))
    return texts.to_numpy(zero_copy_only=False).astype(str)


def _whole_column(frame: "pa.Table", *, column: str, field: str) -> "pa.ChunkedArray":
    """A column that may hold no null."""
    values = _decoded(frame.column(column))
    if values.null_count:
        raise _fault(f"mapping.{field}", column, values.is_null(), "null")
    return values


def _decoded(column: "pa.ChunkedArray | pa.Array") -> "pa.ChunkedArray | pa.Array":
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _refuse_duplicates(keys: npt.NDArray, *, column: str) -> None:
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), bool)
    again[first] = False
    _refuse(again, field="mapping.id", column=column, what="not unique")


def _refuse(bad: npt.NDArray[np.bool_], *, field: str, column: str, what: str) -> None:
    if bad.any():
        raise _fault(field, column, bad, what)


def _fault(field: str, column: str, bad: object, what: str) -> InputError:
    rows = np.flatnonzero(np.asarray(bad))
    count = f"{len(rows)} row" if len(rows) == 1 else f"{len(rows)} rows"
    return InputError(f"{field}: column {column!r} is {what} in {count}, the first is row {rows[0]}")


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_null(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_null(kind)
