"""The processes of the demo: which there are, how they are started, and when they are ready."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from config.broker import heartbeats_clear
from config.demo import embedded_broker
from config.demo.processes import Child, start
from config.env import ROOT

_WORKERS = {"io": "io,train", "cpu": "cpu", "gpu": "gpu"}  # name → lanes; the train lane only launches child processes


class NotReadyError(Exception):
    """Something did not come up; the message says what and where its log is."""


class Stack:
    """Starts the demo's processes and keeps them in the order in which they began."""

    def __init__(self, *, var: Path, port: int, broker_url: str | None) -> None:
        self.children: list[Child] = []
        self.port = port
        self._var = var
        self._embedded = broker_url is None
        self.broker_url = broker_url or embedded_broker.url(var)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def env(self, *, threads: int = 1) -> dict[str, str]:
        """The environment of a child: this one's, with the broker, the path and the threads of numeric libraries."""
        return os.environ | {
            "REDIS_URL": self.broker_url,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "config.settings.demo"),
            "OMP_NUM_THREADS": str(threads),
            "MALLOC_ARENA_MAX": "2",
        }

    def start_broker(self) -> None:
        """Start the embedded broker unless REDIS_URL names another, and wait until it answers."""
        if self._embedded:
            embedded_broker.socket_path(self._var).unlink(missing_ok=True)
            self._start("broker", embedded_broker.command(self._var))
        self.wait(_broker_answers(self.broker_url), limit_s=20, what="the broker")
        if self._embedded:
            heartbeats_clear(self.broker_url)

    def start_workers(self) -> None:
        """Start one worker for each lane, and beat."""
        celery = [sys.executable, "-m", "celery", "-A", "config"]
        for name, lanes in _WORKERS.items():
            options = ["-Q", lanes, "-n", f"{name}@demo", "--pool=prefork", "--concurrency=1"]
            quiet = ["--without-gossip", "--without-mingle", "--loglevel=INFO"]
            threads = (os.cpu_count() or 1) if name == "gpu" else 1
            self._start(f"worker-{name}", [*celery, "worker", *options, *quiet], threads=threads)
        self._start("beat", [*celery, "beat", "--pidfile=", "--loglevel=INFO"])

    def start_web(self) -> None:
        """Start the web server on the loopback address."""
        server = [sys.executable, "-m", "uvicorn", "config.asgi:application", "--lifespan=off"]
        self._start("web", [*server, "--host=127.0.0.1", f"--port={self.port}", "--no-server-header"])

    def run(self, name: str, *words: str) -> None:
        """Run a management command to its end, in a process of its own so that its memory goes with it."""
        self._start(name, [sys.executable, str(ROOT / "manage.py"), *words])
        child = self.children.pop()
        while not child.died:
            self.check()
            time.sleep(0.1)
        if child.popen.returncode != 0:
            raise NotReadyError(f"manage.py {' '.join(words)} failed:\n{_tail(child.log)}")

    def check(self) -> None:
        """Raise if one of the processes has ended by itself."""
        for child in self.children:
            if child.died:
                code = child.popen.returncode
                raise NotReadyError(f"{child.name} ended with status {code}:\n{_tail(child.log)}")

    def wait(self, is_ready: Callable[[], str], *, limit_s: float, what: str) -> None:
        """Wait until `is_ready` returns an empty string (else it says what is missing)."""
        end = time.monotonic() + limit_s
        while missing := is_ready():
            self.check()
            if time.monotonic() > end:
                raise NotReadyError(f"{what} was not ready after {limit_s:.0f} s: {missing}. See {self._var / 'log'}")
            time.sleep(0.25)

    def wait_ready(self, *, limit_s: float) -> None:
        """Wait until /health/ready says that everything works."""
        self.wait(lambda: _health_missing(f"{self.url}/health/ready"), limit_s=limit_s, what="Assay")

    def _start(self, name: str, command: list[str], *, threads: int = 1) -> None:
        env = self.env(threads=threads)
        self.children.append(start(name=name, command=command, env=env, cwd=ROOT, logs=self._var / "log"))


def _broker_answers(url: str) -> Callable[[], str]:
    import redis

    def missing() -> str:
        try:
            with redis.Redis.from_url(url.replace("redis+socket://", "unix://", 1), socket_timeout=2) as client:
                client.ping()
        except redis.RedisError as error:
            return str(error)
        return ""

    return missing


def _health_missing(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        parts = json.loads(error.read()).get("parts", {}) if error.code == 503 else {}
        return "; ".join(f"{name}: {state}" for name, state in parts.items() if state != "ok") or str(error)
    except OSError as error:
        return f"the web server does not answer ({error})"


def _tail(path: Path, *, lines: int = 20) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(["  " + line for line in text] + [f"  (whole log: {path})"])
