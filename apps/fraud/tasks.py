"""Tasks of the gpu lane and one of the io lane: load, one service call, answer."""

from collections.abc import Callable
from time import monotonic, time
from typing import Any

from celery import shared_task
from celery_batches import Batches, SimpleRequest

from apps.core import clock
from apps.core.stages import collected
from apps.fraud import jobs
from apps.fraud.contracts import Asked
from apps.fraud.jobs import answers
from apps.fraud.services import labels, recompute, requests, scoring

_LOST_AFTER_S = 30.0  # a batch whose worker died never returns
_LOOK_S = 0.5  # between two looks for what neither an arrival nor a batch's return has sent off


class OneBatchAtATime(Batches):
    """Batches that go at once while none is being worked on; what arrives meanwhile shares the next forward pass.

    By itself celery-batches hands over whatever a few milliseconds brought: a lone request waits for them, and under
    load the single process of the gpu lane gets a growing queue of batches of one.
    """

    abstract = True

    def __init__(self) -> None:
        super().__init__()
        self.busy_since: float | None = None

    def Strategy(self, task: Any, app: Any, consumer: Any) -> Callable[..., Any]:
        """Celery's hook for what to do with an arriving message."""
        handler = super().Strategy(task, app, consumer)
        self._pool: Any = _Watched(consumer.pool, task=self)
        self.busy_since = None

        def received(*args: Any, **kwargs: Any) -> None:
            handler(*args, **kwargs)
            self._do_flush()

        return received

    def _do_flush(self) -> None:
        if self.busy_since is None or monotonic() - self.busy_since > _LOST_AFTER_S:
            super()._do_flush()


class _Watched:
    """A pool that tells its task when a batch has come back."""

    def __init__(self, pool: Any, *, task: OneBatchAtATime) -> None:
        self._pool, self._task = pool, task

    def apply_async(self, *args: Any, callback: Callable[[Any], None], **options: Any) -> Any:
        def done(result: Any) -> None:
            self._task.busy_since = None
            callback(result)
            self._task._do_flush()

        self._task.busy_since = monotonic()
        return self._pool.apply_async(*args, callback=done, **options)


@shared_task(base=OneBatchAtATime, name=jobs.SCORE, flush_every=64, flush_interval=_LOOK_S)
def score(batch: list[SimpleRequest]) -> None:
    """Score up to 64 requests in one forward pass, those asked for and those stored before, and answer who waits."""
    began = time()
    messages = [request.kwargs for request in batch]
    asked = [Asked.from_json(message["asked"]) for message in messages if "asked" in message]
    wanted = [(int(message["id"]), int(message["attempt"])) for message in messages if "id" in message]
    with collected() as stages:
        outcomes = requests.requests_take(asked=asked, wanted=wanted, at=clock.now())
    waiting = {message["asked"]["token"]: message for message in messages if "asked" in message}
    answers.publish(
        [
            answers.Reply(
                to=waiting[token]["reply_to"],
                token=token,
                outcome=outcome,
                stages={"queue": max(0.0, began - waiting[token].get("sent_at", began)), **stages},
                sent_at=time(),
            )
            for token, outcome in outcomes.items()
        ]
    )


@shared_task(name=jobs.SCORE_BATCH)
def score_batch(*, id: int, attempt: int = 1, **_: object) -> None:
    """Score the oldest undone batch of this batch's import."""
    scoring.batch_score_next(batch_id=id, attempt=attempt, at=clock.now())


@shared_task(name=jobs.LEARN_LABELS)
def learn_labels(**_: object) -> None:
    """Put verdicts that can no longer be undone into the states."""
    labels.dispositions_learn(at=clock.now())


@shared_task(name=jobs.RECOMPUTE)
def recompute_alert(*, id: int, **_: object) -> None:
    """Score an alert again from its snapshot and keep the outcome."""
    recompute.alert_recompute(alert_id=id, at=clock.now())


@shared_task(name=jobs.REQUEUE)
def requeue_stale(**_: object) -> None:
    """Send again what has waited for its score for too long."""
    requests.transactions_requeue(at=clock.now())
