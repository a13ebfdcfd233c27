"""Schemas of files: which column holds which field, in which unit; data under schemas/, or a path to a JSON file."""

import json
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apps.core.errors import AppError

_FOLDER = Path(__file__).resolve().parents[1] / "schemas"
_NEEDED = {"id", "at", "card", "terminal", "amount"}
_KNOWN = _NEEDED | {"currency", "label", "category"}
_KEYS = {"name", "about", "source", "columns", "optional", "amount_unit", "currency", "time_zone"}


class SchemaError(AppError):
    """A schema is absent or says something that cannot be."""

    code = "schema_invalid"
    status = 422


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """A declared mapping: field → column. `amount_unit` is units or cents; naive times are in `time_zone`."""

    name: str
    source: str
    columns: dict[str, str]
    optional: frozenset[str]
    amount_unit: str
    currency: str
    time_zone: ZoneInfo


def schema_load(name_or_path: str, /) -> Schema:
    """The schema of that name, or of the JSON file at that path. Raises SchemaError with a sentence."""
    shipped = _FOLDER / f"{name_or_path}.json"
    path = shipped if name_or_path.isidentifier() and shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in _FOLDER.glob("*.json")))
        raise SchemaError(f"no schema {name_or_path!r}: give one of {known}, or the path of a JSON file")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SchemaError(f"the schema {path.name} is not JSON: {error}") from error
    return _checked(raw, path=path)


def _checked(raw: object, *, path: Path) -> Schema:
    if not isinstance(raw, dict) or not isinstance(raw.get("columns"), dict):
        raise SchemaError(f"the schema {path.name} needs an object with `columns`")
    if unknown := sorted(set(raw) - _KEYS):
        raise SchemaError(f"the schema {path.name} has unknown keys: {', '.join(unknown)}")
    columns: dict[str, str] = raw["columns"]
    optional = frozenset(raw.get("optional", []))
    if unknown := sorted((set(columns) | optional) - _KNOWN):
        raise SchemaError(f"the schema {path.name} maps unknown fields: {', '.join(unknown)}")
    if missing := sorted(_NEEDED - set(columns)):
        raise SchemaError(f"the schema {path.name} does not map: {', '.join(missing)}")
    unit = raw.get("amount_unit", "units")
    if unit not in {"units", "cents"}:
        raise SchemaError(f"amount_unit of the schema {path.name} must be units or cents, not {unit!r}")
    try:
        zone = ZoneInfo(raw.get("time_zone", "UTC"))
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SchemaError(f"time_zone of the schema {path.name} is not known: {raw['time_zone']!r}") from error
    return Schema(
        name=str(raw.get("name", path.stem))[:60],
        source=str(raw.get("source", path.stem))[:40],
        columns={field: str(column) for field, column in columns.items()},
        optional=optional,
        amount_unit=unit,
        currency=str(raw.get("currency", "EUR")),
        time_zone=zone,
    )
