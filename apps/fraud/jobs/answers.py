"""How a score comes back to the request that waits for it: one Redis channel a web process, one message a batch."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import time
from typing import Any

import redis
import redis.asyncio
from django.conf import settings

from apps.core.stages import Seconds
from apps.fraud.contracts import Refusal, ScoreAnswer

_PREFIX = "assay:fraud:answers:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An outcome on its way to the listener named `to`; stages: seconds that the worker's took, sent_at: Unix time."""

    to: str
    token: str
    outcome: ScoreAnswer | Refusal
    stages: Seconds
    sent_at: float


def publish(replies: list[Reply]) -> None:
    """Send them to the processes that wait; the rows hold the truth, whoever listens."""
    by_channel: dict[str, list[dict[str, object]]] = {}
    for reply in replies:
        kind = "refusal" if isinstance(reply.outcome, Refusal) else "answer"
        body = {"token": reply.token, kind: asdict(reply.outcome), "stages": reply.stages, "sent_at": reply.sent_at}
        by_channel.setdefault(reply.to, []).append(body)
    for reply_to, bodies in by_channel.items():
        _client().publish(_PREFIX + reply_to, json.dumps(bodies))


class Listener:
    """The one subscription of a web process; requests wait on futures by their token."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Event = asyncio.Event()

    async def started(self) -> None:
        """Subscribe if that is not done yet; returns once answers cannot be missed. Raises redis.RedisError."""
        if self._task is None or self._task.done():
            self._ready.clear()
            self._task = asyncio.create_task(self._listen())
        if self._ready.is_set():
            return
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self._task.result()

    @contextmanager
    def expect(self, token: str) -> Iterator["asyncio.Future[Reply]"]:
        """The future of the reply under `token`; begin to expect it before the request is sent."""
        future = self._waiting[token] = asyncio.get_running_loop().create_future()
        try:
            yield future
        finally:
            self._waiting.pop(token, None)

    async def _listen(self) -> None:
        client = redis.asyncio.Redis.from_url(_url(), health_check_interval=20)
        try:
            async with client.pubsub() as channel:
                await channel.subscribe(_PREFIX + self.name)
                async for message in channel.listen():
                    if message["type"] == "subscribe":
                        self._ready.set()
                    elif message["type"] == "message":
                        self._deliver(json.loads(message["data"]))
        finally:
            await client.aclose()

    def _deliver(self, bodies: list[dict[str, Any]]) -> None:
        for body in bodies:
            future = self._waiting.get(body["token"])
            if future is not None and not future.done():
                outcome = ScoreAnswer(**body["answer"]) if "answer" in body else Refusal(**body["refusal"])
                stages = body["stages"] | {"reply": max(0.0, time() - body["sent_at"])}
                future.set_result(
                    Reply(to=self.name, token=body["token"], outcome=outcome, stages=stages, sent_at=body["sent_at"])
                )


_listeners: dict[int, tuple[asyncio.AbstractEventLoop, Listener]] = {}
_clients: list[redis.Redis] = []


def listener() -> Listener:
    """The listener of the running event loop."""
    loop = asyncio.get_running_loop()
    held = _listeners.get(id(loop))
    if held is None or held[0] is not loop:
        held = _listeners[id(loop)] = (loop, Listener())
    return held[1]


def _client() -> redis.Redis:
    if not _clients:
        _clients.append(redis.Redis.from_url(_url(), socket_timeout=2, socket_connect_timeout=2))
    return _clients[0]


def _url() -> str:
    return settings.CELERY_BROKER_URL.replace("redis+socket://", "unix://", 1)
