"""Refuses to start a worker that is wrongly set up, and says why; loads the champions; leaves heartbeats.

Database connections stay open from task to task: Celery would open one for each, which costs as much as a score.
"""

import sys
from importlib.util import find_spec
from time import monotonic
from typing import Any

import redis
import structlog
from celery import signals
from django.conf import settings
from django.db import connections

from apps.core.errors import AppError
from apps.engine.port import get_engine
from apps.registry import api as registry
from config import broker
from config.limits import lane_of
from ml_core.contracts import ModelKind
from ml_core.errors import EngineError

log = structlog.get_logger(__name__)
EX_CONFIG = 78  # sysexits.h: configuration error
GPU_PREFETCH = 64  # celery-batches can gather no more requests into one model call than the worker holds

CONNECTION_IDLE_S = 5.0  # one that lay idle longer may be dead without knowing it

_worker: dict[str, Any] = {"hostname": "", "lanes": [], "timer": None, "worked_at": 0.0}


def faults_find(*, lanes: list[str], pool: str, concurrency: int | None) -> list[str]:
    """Every reason why a worker with these options must not start; empty when it may."""
    faults = []
    if unknown := [lane for lane in lanes if lane not in settings.LANES]:
        faults.append(f"unknown lane {', '.join(unknown)}; the lanes are {', '.join(settings.LANES)}")
    if not lanes:
        faults.append("no lane named; start it with -Q and one of " + ", ".join(settings.LANES))
    if pool != "prefork":
        faults.append(f"the pool must be prefork, not {pool}: time limits do not work in the others")
    if "gpu" in lanes:
        if lanes != ["gpu"]:
            faults.append("the gpu lane needs a worker of its own")
        if concurrency != 1:
            faults.append(f"the gpu lane needs --concurrency=1, not {concurrency}: one process owns the device")
        if settings.ENGINE == "local" and any(find_spec(name) is None for name in ("torch", "ml_core.engine")):
            faults.append("the engine cannot be imported: install ml_core/requirements.txt")
    longest = max(settings.LANE_LIMIT_S.values())
    visibility = settings.CELERY_BROKER_TRANSPORT_OPTIONS.get("visibility_timeout", 0)
    if visibility <= longest:
        faults.append(f"visibility_timeout {visibility} s must exceed the longest limit, {longest} s")
    if set(settings.LANE_LIMIT_S) != set(settings.LANES):
        faults.append("LANE_LIMIT_S must give a limit to every lane")
    return faults


def task_faults_find(*, tasks: dict[str, Any]) -> list[str]:
    """Every registered task of ours whose name has no lane or whose limits are not those of its lane."""
    faults = []
    for name, task in sorted(tasks.items()):
        module = type(task).__module__ if not hasattr(task, "__wrapped__") else task.__module__
        if not module.startswith(("apps.", "config.")):
            continue
        lane = lane_of(name)
        if lane is None:
            faults.append(f"task {name} does not say its lane: <app>.<lane>.<verb>")
        elif task.time_limit != settings.LANE_LIMIT_S[lane]:
            faults.append(f"task {name} has the limit {task.time_limit}, its lane {settings.LANE_LIMIT_S[lane]} s")
    return faults


def champions_load(*, hostname: str) -> dict[str, dict[str, str]]:
    """Load the champion of every kind into this process and publish what it holds, or why it does not."""
    held: dict[str, dict[str, str]] = {}
    for kind in ModelKind:
        try:
            champion = registry.champion(kind)
            get_engine().load(champion.key)
            held[kind.value] = {"digest": champion.key.digest}
        except (EngineError, AppError) as error:
            log.error("champion_not_loaded", kind=kind.value, code=error.code, reason=str(error))
            held[kind.value] = {"error": str(error)}
    broker.models_write(hostname=hostname, models=held)
    return held


def hostname() -> str:
    """The name of the worker that this process belongs to."""
    return str(_worker["hostname"])


@signals.celeryd_init.connect
def _on_init(sender: str, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    lanes = _lanes(options.get("queues"))
    pool = options.get("pool") or options.get("pool_cls") or conf.worker_pool
    pool_name = pool if isinstance(pool, str) else getattr(pool, "__module__", "").rsplit(".", 1)[-1]
    faults = faults_find(lanes=lanes, pool=pool_name, concurrency=options.get("concurrency"))
    instance.app.loader.import_default_modules()
    instance.app.finalize()
    faults += task_faults_find(tasks=instance.app.tasks)
    if faults:
        sys.stderr.write("This worker does not start:\n" + "".join(f"  - {fault}\n" for fault in faults))
        raise SystemExit(EX_CONFIG)
    conf.worker_proc_alive_timeout = 180  # a child of the gpu lane loads its models before it says that it is alive
    _worker.update(hostname=sender, lanes=lanes)


@signals.worker_init.connect
def _on_setup(sender: Any, **_: Any) -> None:
    # Not in conf: Celery's command line has read it already and hands its own 1 to the worker.
    if _worker["lanes"] == ["gpu"]:
        sender.prefetch_multiplier = GPU_PREFETCH


@signals.worker_process_init.connect
def _on_process(**_: Any) -> None:
    if _worker["lanes"] == ["gpu"]:
        broker.models_clear(hostname=hostname())
        champions_load(hostname=hostname())


@signals.task_prerun.connect
def _on_task(**_: Any) -> None:
    idle = monotonic() - _worker["worked_at"] > CONNECTION_IDLE_S
    for held in connections.all(initialized_only=True):
        if not held.in_atomic_block and (idle or held.errors_occurred):
            held.close()


@signals.task_postrun.connect
def _on_task_end(**_: Any) -> None:
    _worker["worked_at"] = monotonic()


@signals.worker_ready.connect
def _on_ready(sender: Any, **_: Any) -> None:
    if _worker["timer"] is not None:  # the consumer starts again after it lost the broker
        _worker["timer"].cancel()
    _beat()
    _worker["timer"] = sender.timer.call_repeatedly(broker.HEARTBEAT_S, _beat)


@signals.worker_shutdown.connect
def _on_shutdown(**_: Any) -> None:
    try:
        broker.heartbeat_clear(hostname=hostname())
    except redis.RedisError as error:  # the broker may have ended first; the keys expire or are cleared at its start
        log.warning("heartbeat_not_cleared", reason=str(error))


def _beat() -> None:
    broker.heartbeat_write(hostname=hostname(), lanes=_worker["lanes"])


def _lanes(queues: Any) -> list[str]:
    if not queues:
        return []
    return [lane.strip() for lane in queues.split(",")] if isinstance(queues, str) else list(queues)
