"""A declared mapping: a small TOML file that says which columns of a bank's table are what, so that no code is needed.

    name = "our_bank"            # letters, digits, _
    id = "tx"                    # column of the transaction's id: whole numbers or text, unique
    card = "pan_token"           # column of the card's key: whole numbers or text
    terminal = "shop"            # column of the terminal's (or merchant's) key: whole numbers or text

    [time]
    column = "booked"            # a timestamp (one with a zone is taken in UTC), or text with a `format`
    format = "%d.%m.%Y %H:%M"    # only for text, as of strptime

    [amount]
    column = "amount"
    unit = "cents"               # cents (whole), whole (whole units of currency), decimal (rounded to cents)

    [fraud]
    column = "is_fraud"          # true/false or 0/1
    delay_days = 7               # a label is known so many days after its transaction; 7 unless said

    [[inputs]]                   # any number: further columns that the models read
    column = "valid_to"
    kind = "days_until"          # category | number | days_until (days from the transaction to this date)
    format = "%m/%y"             # only days_until of text
    name = "days_of_validity"    # the column's name unless said
    null = 0                     # what a null stands for: text for a category, a number for the others

Rules: a null where nothing says what it stands for is an error, but for a category, where it is a value of its own.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ml_core.config import from_mapping
from ml_core.data.fraud_features import FEATURES
from ml_core.errors import InputError

DELAY_DAYS_MAX = 365
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeColumn:
    """When: a timestamp, or text with its `format`."""

    column: str
    format: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AmountColumn:
    """How much, and in which unit."""

    column: str
    unit: Literal["cents", "whole", "decimal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FraudColumn:
    """The label, and after how many days it is known."""

    column: str
    delay_days: int = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class InputColumn:
    """One further input of the models. `null` is what a null stands for (None: nothing says so)."""

    column: str
    kind: Literal["category", "number", "days_until"]
    name: str = ""
    format: str = ""
    null: str | float | None = None

    @property
    def key(self) -> str:
        """Its name among the inputs."""
        return self.name or self.column


@dataclass(frozen=True, kw_only=True, slots=True)
class TableMapping:
    """Which columns of a table are what. `id`, `card` and `terminal` name columns."""

    name: str
    id: str
    card: str
    terminal: str
    time: TimeColumn
    amount: AmountColumn
    fraud: FraudColumn
    inputs: tuple[InputColumn, ...] = ()

    def columns(self) -> dict[str, str]:
        """Field → column, of every column that is read, in the order of the declaration."""
        own = {
            "id": self.id,
            "card": self.card,
            "terminal": self.terminal,
            "time.column": self.time.column,
            "amount.column": self.amount.column,
            "fraud.column": self.fraud.column,
        }
        return own | {f"inputs[{place}].column": each.column for place, each in enumerate(self.inputs)}


def read_mapping(path: Path) -> TableMapping:
    """Read and check a mapping. Raises InputError naming the field and what is allowed there."""
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"mapping {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"mapping {path} is not TOML: {error}") from error
    return mapping_from(body)


def mapping_from(body: dict[str, object]) -> TableMapping:
    """A mapping from its plain form (a TOML file's, or an artifact's). Raises InputError as read_mapping does."""
    mapping = from_mapping(TableMapping, body, where="mapping")
    for fault in _faults(mapping):
        raise InputError(f"mapping.{fault}")
    return mapping


def _faults(mapping: TableMapping) -> Iterator[str]:
    """What types alone do not catch, each beginning with the field."""
    if not _NAME.fullmatch(mapping.name):
        yield f"name: {mapping.name!r} is not letters, digits and _ after a letter"
    own = {field: column for field, column in mapping.columns().items() if not field.startswith("inputs")}
    for field, column in own.items():
        if not column:
            yield f"{field}: is empty; the name of a column is needed"
    if not 0 <= mapping.fraud.delay_days <= DELAY_DAYS_MAX:
        yield f"fraud.delay_days: {mapping.fraud.delay_days} is not in 0 to {DELAY_DAYS_MAX}"
    keys: set[str] = set()
    for place, each in enumerate(mapping.inputs):
        where = f"inputs[{place}]"
        taken = [field for field, column in own.items() if column == each.column]
        if taken:
            yield f"{where}.column: {each.column!r} is read as {taken[0].removesuffix('.column')} already"
        if not _NAME.fullmatch(each.key):
            yield f"{where}.name: {each.key!r} is not letters, digits and _ after a letter; give it a name that is"
        if each.key in keys or each.key in FEATURES:
            yield f"{where}.name: {each.key!r} is taken; give it another name"
        keys.add(each.key)
        if each.format and each.kind != "days_until":
            yield f"{where}.format: only for kind 'days_until', not for {each.kind!r}"
        if each.null is not None and isinstance(each.null, str) != (each.kind == "category"):
            what = "a text" if each.kind == "category" else "a number"
            yield f"{where}.null: {each.null!r} is not {what}, which kind {each.kind!r} needs"
