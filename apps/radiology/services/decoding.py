"""The parent of the decoding child: starts it, sets it tasks, keeps the time, and replaces it when it dies."""

import json
import os
import selectors
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apps.radiology.rules.limits import DEFAULT, Limits, size_words


class Decoder:
    """Examines files in a child process, one at a time; a file that kills the child or stalls it is refused.

    Use as a context manager; the child starts with the first file.
    """

    def __init__(self, *, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def examine(self, path: Path, *, folder: Path) -> dict[str, Any]:
        """The child's answer (see rules.decoder.examine), or a refusal where there was none."""
        child = self._running()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps({"path": str(path), "folder": str(folder)}).encode() + b"\n")
            child.stdin.flush()
            line = self._line(child)
        except TimeoutError:
            self._end()
            return _refusal(f"reading it takes longer than {self._limits.seconds:.0f} s")
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            self._end()
            return _refusal(
                f"reading it ends the decoder (it may need more than {size_words(self._limits.memory_bytes)})"
            )
        return dict(json.loads(line))

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "apps.radiology.rules.decoder", json.dumps(asdict(self._limits))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=_root(),
                env=_environment(),
            )
        return self._child

    def _line(self, child: "subprocess.Popen[bytes]") -> bytes:
        assert child.stdout is not None
        whole = b""
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while not whole.endswith(b"\n"):
                if not ready.select(timeout=self._limits.seconds):
                    raise TimeoutError
                part = os.read(child.stdout.fileno(), 1 << 16)
                if not part:
                    break
                whole += part
        return whole

    def _end(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was left to send has no reader any more
                    continue
        self._child = None


def _refusal(reason: str) -> dict[str, Any]:
    return {"status": "refused", "reason": reason, "header": None, "claims": None, "display": None}


def _root() -> str:
    return str(Path(__file__).resolve().parents[3])


def _environment() -> dict[str, str]:
    """No secrets, and one thread: a thread's stack counts against the limit of memory."""
    return {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": _root()}
