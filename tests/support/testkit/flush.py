"""Lets Django empty the test database between transactional tests although triggers keep some tables append-only."""

import pytest
from django.db.backends.postgresql.base import DatabaseOperations as PostgreSQL
from django.db.backends.sqlite3.base import DatabaseOperations as SQLite


def install(patch: pytest.MonkeyPatch) -> None:
    """From now on flushing switches the triggers off before and on after; nothing else does."""
    plain_sqlite, plain_postgresql = SQLite.sql_flush, PostgreSQL.sql_flush

    def sqlite(self: SQLite, style: object, tables: list[str], **options: bool) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            triggers = cursor.fetchall()
        drop = [f'DROP TRIGGER "{name}"' for name, _sql in triggers]
        return [*drop, *plain_sqlite(self, style, tables, **options), *(sql for _name, sql in triggers)]

    def postgresql(self: PostgreSQL, style: object, tables: list[str], **options: bool) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal")
            guarded = [name for (name,) in cursor.fetchall()]
        off = [f"ALTER TABLE {name} DISABLE TRIGGER USER" for name in guarded]
        on = [f"ALTER TABLE {name} ENABLE TRIGGER USER" for name in guarded]
        return [*off, *plain_postgresql(self, style, tables, **options), *on]

    patch.setattr(SQLite, "sql_flush", sqlite)
    patch.setattr(PostgreSQL, "sql_flush", postgresql)
