"""Child processes of the demo: started in groups of their own, logged to a file each, stopped without leftovers."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, kw_only=True)
class Child:
    """A running process of the demo, by name, with the file that holds its output."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def died(self) -> bool:
        return self.popen.poll() is not None


def adopt_orphans() -> None:
    """Let grandchildren whose parent ends become ours, so that none outlives the demo (Linux; elsewhere no effect)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(*, name: str, command: list[str], env: dict[str, str], cwd: Path, logs: Path) -> Child:
    """Start `command` with its output appended to logs/<name>.log."""
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{name}.log"
    with path.open("ab") as log:
        popen = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    return Child(name=name, popen=popen, log=path)


def stop(children: Iterable[Child], *, grace_s: float = 10.0) -> None:
    """Ask every child to end, wait, then end what is left of it and of everything that it started."""
    alive = [child for child in children if not child.died]
    for child in alive:
        child.popen.terminate()
    _wait([psutil.Process(child.popen.pid) for child in alive if not child.died], timeout_s=grace_s)
    for child in alive:
        if not child.died:
            os.killpg(child.popen.pid, signal.SIGKILL)
            child.popen.wait()


def stop_descendants(*, grace_s: float = 5.0) -> None:
    """End every process below this one: orphans of children that have ended (training runs are such)."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        _signal(process, signal.SIGTERM)
    for process in _wait(below, timeout_s=grace_s):
        _signal(process, signal.SIGKILL)
    _wait(below, timeout_s=grace_s)


def reap_orphans(children: Iterable[Child]) -> None:
    """Take note of adopted processes that have ended, so that they do not stay behind as zombies."""
    own = {child.popen.pid for child in children}
    for process in psutil.Process().children():
        if process.pid not in own and process.is_running() and process.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(process.pid, os.WNOHANG)


def resident_mib(child: Child) -> float:
    """Unique memory of a child and everything below it, in MiB."""
    try:
        top = psutil.Process(child.popen.pid)
        return sum(process.memory_full_info().uss for process in [top, *top.children(recursive=True)]) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def _wait(processes: list[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=timeout_s)[1]


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
