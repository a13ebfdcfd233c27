"""The course of the demo: prepare, start, wait until ready, say where it is, watch, stop."""

import fcntl
import hashlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.management import call_command, get_commands

from config.demo.accounts import NAMES, accounts_ensure
from config.demo.processes import adopt_orphans, reap_orphans, resident_mib, stop, stop_descendants
from config.demo.stack import NotReadyError, Stack

DATA_COMMANDS = {  # management command → its options for a small demo
    "fraud_demo": ["--small"],
    "radiology_demo": ["--patients", "12"],
}
_READY_LIMIT_S = 240
_WATCH_EVERY_S = 0.5


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


def demo_run(*, port: int, broker_url: str | None, exit_when_ready: bool, out: IO[str]) -> int:
    """Run the demo until it is interrupted or one of its processes ends; returns the exit status."""
    var = Path(settings.VAR)
    _on_signals()
    adopt_orphans()
    try:
        with _only_one(var / "demo.lock"):
            _refuse_taken_port(port)
            return _course(Stack(var=var, port=port, broker_url=broker_url), exit_when_ready=exit_when_ready, out=out)
    except NotReadyError as error:
        out.write(f"\nThe demo has stopped: {error}\n")
        return 1
    except Interrupted:
        return 0


def _course(stack: Stack, *, exit_when_ready: bool, out: IO[str]) -> int:
    timings: dict[str, float] = {}
    began = time.monotonic()
    try:
        _prepare(stack, timings=timings, out=out)
        timings["ready"] = round(time.monotonic() - began, 1)
        if exit_when_ready:
            memory = {child.name: round(resident_mib(child), 1) for child in stack.children}
            report = {"seconds": timings, "memory_mib": memory | {"sum": round(sum(memory.values()), 1)}}
            out.write(json.dumps(report | {"url": stack.url}) + "\n")
            return 0
        out.write(_welcome(stack, seconds=timings["ready"]))
        while True:
            stack.check()
            reap_orphans(stack.children)
            time.sleep(_WATCH_EVERY_S)
    finally:
        out.write("Stopping …\n") if not exit_when_ready else None
        _ignore_signals()
        first = [child for child in stack.children if child.name != "broker"]
        stop(first)
        stop([child for child in stack.children if child.name == "broker"])
        stop_descendants()


def _prepare(stack: Stack, *, timings: dict[str, float], out: IO[str]) -> None:
    var = Path(settings.VAR)
    with _timed(timings, "broker"):
        stack.start_broker()
    with _timed(timings, "database"):
        out.write("Database …\n")
        call_command("migrate", verbosity=0, interactive=False)
        accounts_ensure(key_file=var / "demo_api_key")
    with _timed(timings, "models"):
        call_command("registry_sync", verbosity=0, stdout=StringIO())
    with _timed(timings, "static_files"):
        call_command("collectstatic", verbosity=0, interactive=False)
    with _timed(timings, "start"):
        out.write("Workers and web server …\n")
        stack.start_workers()
        stack.start_web()
    with _timed(timings, "demo_data"):
        _load_data(stack, var=var, timings=timings, out=out)
    with _timed(timings, "wait_ready"):
        stack.wait_ready(limit_s=_READY_LIMIT_S)


def _load_data(stack: Stack, *, var: Path, timings: dict[str, float], out: IO[str]) -> None:
    """Run each app's command once for each database; a file in var/demo/ remembers that it ended well."""
    known = get_commands()
    database = hashlib.sha256(repr(sorted(settings.DATABASES["default"].items(), key=str)).encode()).hexdigest()[:12]
    for name, small in DATA_COMMANDS.items():
        done = var / "demo" / f"{name}-{database}"
        if done.exists() or name not in known:
            continue
        out.write(f"Demo data: {name} (once; log in {var / 'log' / name}.log) …\n")
        with _timed(timings, name):
            stack.run(name, name, *(small if settings.DEMO_SMALL else []))
        done.parent.mkdir(exist_ok=True)
        done.touch()


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    timings[name] = round(time.monotonic() - began, 1)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotReadyError(
                f"another demo already runs with {path.parent} (ASSAY_HOME chooses the folder)"
            ) from None
        yield


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise NotReadyError(f"port {port} is taken; choose another: PORT={port + 1} make demo") from None


def _welcome(stack: Stack, *, seconds: float) -> str:
    people = "\n".join(f"  {name:<15}{role.value.replace('_', ' ')}" for name, role in NAMES.items())
    return (
        f"\nAssay is ready after {seconds:.0f} s:  {stack.url}\n\n"
        f"Accounts, all with the password  {settings.DEMO_PASSWORD}\n{people}\n\n"
        f"API key of integrator-1:  {Path(settings.VAR) / 'demo_api_key'}\n"
        f"Logs:  {Path(settings.VAR) / 'log'}\n"
        "Ctrl-C stops everything.\n"
    )


def _on_signals() -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def _ignore_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
