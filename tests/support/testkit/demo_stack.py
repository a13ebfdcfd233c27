"""The real demo as a child process: started, watched until ready, stopped; and who descends from it."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = "assay-demo"
_READY = "Ctrl-C stops everything."
_HIDDEN = ("DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE", "DEMO_EXIT")


class DemoStack:
    """`manage.py demo` with DEMO_SMALL=1, its own home and a free port."""

    def __init__(self, *, home: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.output: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_key(self) -> str:
        return (self.home / "var" / "demo_api_key").read_text().strip()

    def start(self, *, limit_s: float) -> float:
        """Start and wait until the demo says that it is ready; returns the seconds that it took."""
        began = time.monotonic()
        env = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        env |= {"ASSAY_HOME": str(self.home), "PORT": str(self.port), "DEMO_SMALL": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "manage.py", "demo"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        while (line := lines.get(timeout=max(1.0, limit_s - (time.monotonic() - began)))) is not None:
            if _READY in line:
                return time.monotonic() - began
        raise RuntimeError("the demo ended before it was ready:\n" + "".join(self.output))

    def descendants(self) -> dict[int, str]:
        """Every process below the demo, by id, with its command line."""
        assert self._process is not None
        below = psutil.Process(self._process.pid).children(recursive=True)
        running = [process for process in below if process.status() != psutil.STATUS_ZOMBIE]
        return {process.pid: " ".join(process.cmdline()) for process in running}

    def resident_mib(self) -> dict[str, float]:
        """Unique memory of each of the demo's processes with everything below it, in MiB, by the name of its log."""
        assert self._process is not None
        found: dict[str, float] = {}
        for child in psutil.Process(self._process.pid).children():
            below = [child, *child.children(recursive=True)]
            found[_name(child)] = sum(process.memory_full_info().uss for process in below) / 2**20
        return found

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, *, limit_s: float = 40) -> int:
        """Wait for the end of the demo and return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout=limit_s)

    def log_tails(self, *, lines: int = 60) -> str:
        """The end of every log that tells of an error."""
        found = []
        for path in sorted((self.home / "var" / "log").glob("*.log")):
            text = path.read_text(errors="replace")
            if "rror" in text:
                found += [f"== {path.name}", *text.splitlines()[-lines:]]
        for path in sorted((self.home / "var" / "runs").rglob("events.jsonl")):
            found += [f"== {path.parent.name}/events.jsonl", *path.read_text().splitlines()[-5:]]
        return "\n".join(found)

    def stop(self) -> int:
        if self._process is None or self._process.poll() is not None:
            return 0
        self.signal(signal.SIGTERM)
        return self.wait()

    def _read(self, lines: "queue.Queue[str | None]") -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line)
            lines.put(line)
        lines.put(None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    if "-n" in words:
        return "worker-" + words[words.index("-n") + 1].split("@")[0]
    return next((name for name in ("beat", "uvicorn", "valkey-server") if name in " ".join(words)), "other").replace(
        "uvicorn", "web"
    )
