"""The scoring path for real, in child processes: web server, worker of the gpu lane, broker, database."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis

ROOT = Path(__file__).resolve().parents[3]
_SETUP = """
from apps.accounts.contracts import Role, system_actor
from apps.accounts import services
from apps.core import clock
from apps.registry.models import ModelVersion
for name, role in (("shop", Role.INTEGRATOR), ("analyst-1", Role.ANALYST)):
    services.user_ensure(name=name, role=role, password="x-Pass-123456")
if not ModelVersion.objects.filter(kind="fraud", state="champion").exists():
    ModelVersion.objects.create(kind="fraud", digest="f" * 64, folder={folder!r}, name="fake", state="champion",
        created_at=clock.now(), created_by="test")
print("KEY", services.api_key_ensure(owner="shop", name="load", by=system_actor(name="test"), at=clock.now()))
"""


class ScoringStack:
    """Starts everything on entering and stops exactly that on leaving. `engine` is local or fake.

    tables: where the measured tables of engines lie (a folder under `home` unless given).
    """

    def __init__(
        self, *, home: Path, broker_url: str, engine: str = "fake", database_url: str = "", tables: Path | None = None
    ) -> None:
        self.home = home
        self.broker_url = broker_url
        self.port = _free_port()
        self.key = ""
        self.env = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
            "DJANGO_SETTINGS_MODULE": "config.settings.demo",
            "ASSAY_HOME": str(home),
            "REDIS_URL": broker_url,
            "ENGINE": engine,
            "OMP_NUM_THREADS": "1",
        }
        self.env.pop("DATABASE_URL", None)
        if database_url:
            self.env["DATABASE_URL"] = database_url
        if tables is not None:
            self.env["ENGINE_TABLES_DIR"] = str(tables)
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker_pid(self) -> int:
        """The worker's main process."""
        return self._children[1].pid

    def __enter__(self) -> "ScoringStack":
        redis.Redis.from_url(self.broker_url.replace("redis+socket://", "unix://", 1)).delete("gpu", "unacked")
        self.manage("migrate", "--verbosity=0")
        if self.env["ENGINE"] == "local":
            self.manage("registry_sync")
        done = self.manage("shell", "--verbosity=0", "-c", _SETUP.format(folder=str(self.home)))
        self.key = next(line.split()[1] for line in done.splitlines() if line.startswith("KEY "))
        try:
            self._start(
                "-m", "uvicorn", "config.asgi:application", "--port", str(self.port), "--log-level", "warning",
                "--timeout-keep-alive", "120",
            )  # fmt: skip
            self.start_worker()
            self._wait_for_web()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            try:
                child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A worker of the gpu lane."""
        return self._start(
            "-m", "celery", "-A", "config", "worker", "-Q", "gpu", "--pool=prefork", "--concurrency=1",
            "-n", f"gpu-{self.port}@test", "--loglevel=WARNING", "--without-gossip", "--without-mingle",
        )  # fmt: skip

    @contextmanager
    def worker_suspended(self) -> Iterator[None]:
        """Every process of the worker stands still inside, as one does that hangs, and goes on after."""
        worker = psutil.Process(self.worker_pid)
        processes = [worker, *worker.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far of the web server and of the worker with its children."""
        used = {}
        for name, child in zip(("web", "worker"), self._children, strict=False):
            top = psutil.Process(child.pid)
            times = [process.cpu_times() for process in (top, *top.children(recursive=True))]
            used[name] = sum(each.user + each.system for each in times)
        return used

    def manage(self, *words: str) -> str:
        """Run manage.py and return its stdout; raises with its stderr when it fails."""
        done = subprocess.run(
            [sys.executable, "manage.py", *words], cwd=ROOT, env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"manage.py {words[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return done.stdout

    def log(self) -> str:
        """What the children wrote."""
        return (self.home / "stack.log").read_text(errors="replace")

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.home / "stack.log").open("ab") as log:
            child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=self.env, stdout=log, stderr=log)
        self._children.append(child)
        return child

    def _wait_for_web(self, *, limit_s: float = 60) -> None:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.url}/health/live", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                if self._children[0].poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError(f"the web server did not come up:\n{self.log()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
