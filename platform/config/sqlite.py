"""Keeps one idle SQLite connection a process, so that closing another is never the last one's slow farewell.

When the last connection to a database in WAL mode closes, SQLite writes the whole log back, syncs and deletes it
(sqlite.org/wal.html, section 2.1). Django opens and closes a connection for every request and every task: 7 ms each.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

_kept: dict[tuple[int, str], sqlite3.Connection] = {}


def listen() -> None:
    """Open the idle connection when the process first opens any; a forked child opens its own."""
    connection_created.connect(_keep, dispatch_uid="config.sqlite")


def _keep(connection: Any, **_: Any) -> None:
    name = str(connection.settings_dict["NAME"])
    if connection.vendor != "sqlite" or (os.getpid(), name) in _kept or not Path(name).is_file():
        return
    kept = sqlite3.connect(name, check_same_thread=False)
    kept.execute("SELECT count(*) FROM sqlite_master").fetchall()  # only a reader holds the log open
    _kept[os.getpid(), name] = kept
