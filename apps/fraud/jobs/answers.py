"""How a score comes back to the request that waits for it: one Redis channel a web process, one message a batch."""

import asyncio
import json
import uuid
from dataclasses import asdict

import redis
import redis.asyncio
from django.conf import settings

from apps.fraud.contracts import ScoreAnswer

_PREFIX = "assay:fraud:answers:"
_EARLY_KEPT = 1_000


def publish(answers: list[tuple[str, ScoreAnswer]]) -> None:
    """Send answers to the processes that wait; nobody may listen any more, the rows hold the truth."""
    by_channel: dict[str, list[dict[str, object]]] = {}
    for reply_to, answer in answers:
        by_channel.setdefault(reply_to, []).append(asdict(answer))
    for reply_to, bodies in by_channel.items():
        _client().publish(_PREFIX + reply_to, json.dumps(bodies))


class Listener:
    """The one subscription of a web process; requests wait on futures by the id of their transaction."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self._waiting: dict[int, list[asyncio.Future[ScoreAnswer]]] = {}
        self._early: dict[int, ScoreAnswer] = {}
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

    async def answer(self, transaction_id: int, *, timeout_s: float) -> ScoreAnswer | None:
        """The answer about a transaction that was sent with our name; None when it does not come in time."""
        early = self._early.pop(transaction_id, None)
        if early is not None:
            return early
        future: asyncio.Future[ScoreAnswer] = asyncio.get_running_loop().create_future()
        futures = self._waiting.setdefault(transaction_id, [])
        futures.append(future)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return None
        finally:
            if future in futures:
                futures.remove(future)
            if not futures and self._waiting.get(transaction_id) is futures:
                del self._waiting[transaction_id]

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

    def _deliver(self, bodies: list[dict[str, object]]) -> None:
        for body in bodies:
            answer = ScoreAnswer(**body)  # type: ignore[arg-type]
            futures = self._waiting.pop(answer.id, [])
            for future in futures:
                if not future.done():
                    future.set_result(answer)
            if not futures:  # a fast worker: its answer came before the request knew its own id
                self._early[answer.id] = answer
                if len(self._early) > _EARLY_KEPT:
                    self._early.pop(next(iter(self._early)))


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
