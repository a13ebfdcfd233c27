"""Queries that the ORM compiles once: of a small query, compiling takes ten times as long as the database does."""

from collections.abc import Callable, Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import QuerySet
from django.db.models.sql.compiler import SQLCompiler

_INTEGER = -(2**60)  # far from any id
_TEXT = "\N{NULL}prepared "
_MOST = 900  # below SQLite's limit of bound variables
_SHAPES = 256  # numbers of values that are kept compiled


class Prepared:
    """A `values_list` query over lists of ints or strings, compiled once for each database and number of values.

    `build` makes the query of its lists, which go into it by `__in` alone; everything else of it is fixed. It is called
    with stand-ins, so it must not look into them. Values reach the database as they are, so ids and texts only.
    """

    def __init__(self, build: Callable[..., QuerySet[Any, Any]]) -> None:
        self._build = build

    def rows(self, *lists: Sequence[int] | Sequence[str]) -> list[tuple[Any, ...]]:
        """What the query says for these lists; nothing where one of them is empty.

        Several lists, or one that is longer than a statement may be, are not cut up: ValueError beyond 900 values.
        """
        once: list[list[Any]] = [list(dict.fromkeys(each)) for each in lists]
        if not all(once):
            return []
        if sum(len(each) for each in once) > _MOST:
            raise ValueError(f"more than {_MOST} values")
        # on the connection itself: what is compiled refers to it, and goes with it
        compiled: dict[Prepared, dict[tuple[Any, ...], _Compiled]] = connections[DEFAULT_DB_ALIAS].__dict__.setdefault(
            "assay_prepared", {}
        )
        known = compiled.setdefault(self, {})
        shape = tuple((len(each), isinstance(each[0], str)) for each in once)
        if shape not in known:
            if len(known) >= _SHAPES:
                known.clear()
            known[shape] = _Compiled.of(self._build, shape)
        return known[shape].run([value for each in once for value in each])


class _Compiled:
    def __init__(self, compiler: SQLCompiler, *, sql: str, params: tuple[Any, ...], places: list[int]) -> None:
        self._compiler, self._sql, self._params, self._places = compiler, sql, params, places
        fields = [each[0] for each in compiler.select[: compiler.col_count]]
        self._converters = compiler.get_converters(fields)

    @classmethod
    def of(cls, build: Callable[..., QuerySet[Any, Any]], shape: tuple[Any, ...]) -> "_Compiled":
        count, stand_ins = 0, []
        for size, is_text in shape:
            slots = range(count, count + size)
            stand_ins.append([f"{_TEXT}{at}" if is_text else _INTEGER + at for at in slots])
            count += size
        query = build(*stand_ins).query
        compiler = query.get_compiler(using=DEFAULT_DB_ALIAS)
        sql, params = compiler.as_sql()
        at_of = {value: at for at, value in enumerate(value for each in stand_ins for value in each)}
        places = [at_of.get(param, -1) if isinstance(param, int | str) else -1 for param in params]
        if sorted(at for at in places if at >= 0) != list(range(count)):
            raise ValueError("each value must stand in the query once, by __in")
        return cls(compiler, sql=sql, params=tuple(params), places=places)

    def run(self, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        params = [values[at] if at >= 0 else param for at, param in zip(self._places, self._params, strict=True)]
        with self._compiler.connection.cursor() as cursor:
            cursor.execute(self._sql, params)
            rows = cursor.fetchall()
        if self._converters:
            rows = self._compiler.apply_converters(rows, self._converters)
        return [tuple(row) for row in rows]
