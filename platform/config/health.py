"""Health: is the process alive, and can the platform do its work (database, broker, a worker per lane, models)."""

from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from apps.core.errors import AppError
from apps.registry import api as registry
from config import broker
from ml_core.contracts import ModelKind


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """200 as long as this process answers; asks nothing else."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """200 when everything works, else 503; `parts` says of each part `ok` or what is wrong."""
    parts = {"database": _database()} | _broker_parts()
    failing = sorted(name for name, state in parts.items() if state != "ok")
    body = {"status": "failing" if failing else "ok", "failing": failing, "parts": parts}
    return JsonResponse(body, status=503 if failing else 200)


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return f"does not answer: {type(error).__name__}"
    return "ok"


def _broker_parts() -> dict[str, str]:
    try:
        workers = broker.workers_read()
    except redis.RedisError as error:
        reason = f"does not answer: {type(error).__name__}"
        unknown = "unknown: the broker does not answer"
        return {"broker": reason} | dict.fromkeys(_dependents(), unknown)
    parts = {"broker": "ok"}
    for lane in settings.LANES:
        served = any(lane in worker["lanes"] for worker in workers.values())
        parts[f"worker.{lane}"] = "ok" if served else "no worker serves this lane"
    return parts | {f"model.{kind.value}": _model(kind, workers) for kind in ModelKind}


def _model(kind: ModelKind, workers: dict[str, dict[str, Any]]) -> str:
    """`ok` when a worker of the gpu lane holds the champion of this kind."""
    try:
        champion = registry.champion(kind).key.digest
    except (AppError, DatabaseError) as error:
        return str(error)
    held = [worker["models"].get(kind.value, {}) for worker in workers.values() if "gpu" in worker["lanes"]]
    if any(model.get("digest") == champion for model in held):
        return "ok"
    reasons = [model["error"] for model in held if "error" in model]
    return reasons[0] if reasons else f"no worker has loaded the champion {champion[:8]} yet"


def _dependents() -> list[str]:
    return [f"worker.{lane}" for lane in settings.LANES] + [f"model.{kind.value}" for kind in ModelKind]
