"""Configurations are frozen dataclasses: strict reading from JSON, writing back, overriding by `name=value`."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

from ml_core.errors import InputError

C = TypeVar("C")


def from_mapping(cls: type[C], mapping: Mapping[str, Any], *, where: str = "") -> C:
    """Build dataclass `cls`; unknown or missing keys and wrong types raise InputError naming the field."""
    place = where or cls.__name__
    if not isinstance(mapping, Mapping):
        raise InputError(f"{place}: expected an object, got {type(mapping).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(mapping) - set(fields)):
        raise InputError(f"{place}: unknown {', '.join(unknown)}; known: {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    values = {name: _convert(value, hint=hints[name], where=f"{place}.{name}") for name, value in mapping.items()}
    if missing := [name for name, field in fields.items() if name not in values and _is_required(field)]:
        raise InputError(f"{place}: missing {', '.join(missing)}")
    return cls(**values)


def to_mapping(config: Any) -> dict[str, Any]:
    """The JSON form of a dataclass: enums by value, tuples as lists; from_mapping reads it back."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def override(config: C, pairs: Iterable[str]) -> C:
    """A copy of `config` with `name=value` texts applied, values read as the field's type (`a.b=1` goes deeper)."""
    mapping = to_mapping(config)
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise InputError(f"{pair!r} is not of the form name=value")
        *path, last = name.split(".")
        target = mapping
        for part in path:
            target = target.get(part) if isinstance(target.get(part), dict) else _unknown(name)  # type: ignore[assignment]
        if last not in target:
            _unknown(name)
        target[last] = text
    return from_mapping(type(config), mapping)


def _unknown(name: str) -> Any:
    raise InputError(f"unknown {name}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(value: Any, *, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, hints=arguments, where=where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise InputError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        return _convert_tuple(value, hints=arguments, where=where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected an object, got {value!r}")
        return {key: _convert(item, hint=arguments[1], where=f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, where=where)  # type: ignore[arg-type]
    return _convert_scalar(value, hint=hint, where=where)


def _convert_tuple(value: Any, *, hints: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    items = [part for part in value.split(",") if part] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise InputError(f"{where}: expected a list, got {value!r}")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(items)
    if len(hints) != len(items):
        raise InputError(f"{where}: expected {len(hints)} items, got {len(items)}")
    pairs = zip(items, hints, strict=True)
    return tuple(_convert(item, hint=hint, where=f"{where}[{index}]") for index, (item, hint) in enumerate(pairs))


def _convert_scalar(value: Any, *, hint: Any, where: str) -> Any:
    """Texts become numbers (command lines have only texts); an integer is a fine float, a bool is no number."""
    try:
        if hint is bool:
            return value if isinstance(value, bool) else {"true": True, "false": False}[value]
        if hint is int and not isinstance(value, bool | float):
            return int(value)
        if hint is float and not isinstance(value, bool):
            return float(value)
        if isinstance(hint, type) and issubclass(hint, Enum):
            return hint(value)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}: {value!r} is not {hint.__name__}") from None
    if (hint is types.NoneType or hint is None) and value is None:
        return None
    if hint is str and isinstance(value, str):
        return value
    raise InputError(f"{where}: {value!r} is not {getattr(hint, '__name__', hint)}")


def _first_that_fits(value: Any, *, hints: tuple[Any, ...], where: str) -> Any:
    exact = [hint for hint in hints if isinstance(hint, type) and type(value) is hint]
    for hint in [*exact, *hints]:
        try:
            return _convert(value, hint=hint, where=where)
        except InputError:
            continue
    raise InputError(f"{where}: {value!r} fits none of {hints}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
