"""The broker beside Celery's own use of it: where it is, and the heartbeats that workers leave there."""

import json
from typing import Any

import redis
from django.conf import settings

HEARTBEAT_S = 5
STALE_S = 20  # a worker that has been silent for so long counts as gone

_PREFIX = "assay:worker:"


def connect(*, timeout_s: float = 2.0) -> redis.Redis:
    """A client of the broker with short time-outs; the caller closes it (`with`)."""
    url = settings.CELERY_BROKER_URL.replace("redis+socket://", "unix://", 1)
    return redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


def heartbeat_write(*, hostname: str, lanes: list[str]) -> None:
    """Say that the worker `hostname` serves `lanes` now."""
    with connect() as client:
        client.set(f"{_PREFIX}alive:{hostname}", json.dumps(lanes), ex=STALE_S)


def models_write(*, hostname: str, models: dict[str, dict[str, str]]) -> None:
    """Say which models (kind → digest or error) the worker's process holds."""
    with connect() as client:
        client.set(f"{_PREFIX}models:{hostname}", json.dumps(models))


def models_clear(*, hostname: str) -> None:
    """Forget what an earlier process of this name held."""
    with connect() as client:
        client.delete(f"{_PREFIX}models:{hostname}")


def heartbeat_clear(*, hostname: str) -> None:
    """Forget a worker that stops: it serves nothing from now on."""
    with connect() as client:
        client.delete(f"{_PREFIX}alive:{hostname}", f"{_PREFIX}models:{hostname}")


def heartbeats_clear(url: str, /) -> None:
    """Forget every worker of an earlier life: a broker that keeps its messages keeps these keys too."""
    with redis.Redis.from_url(url.replace("redis+socket://", "unix://", 1), socket_timeout=2) as client:
        for key in client.scan_iter(match=f"{_PREFIX}*"):
            client.delete(key)


def workers_read() -> dict[str, dict[str, Any]]:
    """Every live worker: hostname → {lanes, models}."""
    with connect() as client:
        found: dict[str, dict[str, Any]] = {}
        for key in client.scan_iter(match=f"{_PREFIX}alive:*"):
            hostname = key.decode().removeprefix(f"{_PREFIX}alive:")
            lanes, models = client.get(key), client.get(f"{_PREFIX}models:{hostname}")
            if lanes is not None:
                found[hostname] = {"lanes": json.loads(lanes), "models": json.loads(models or b"{}")}
        return found
