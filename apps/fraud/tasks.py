"""Tasks of the gpu lane and one of the io lane: load, one service call, answer."""

from celery import shared_task
from celery_batches import Batches, SimpleRequest

from apps.core import clock
from apps.fraud import jobs
from apps.fraud.jobs import answers
from apps.fraud.services import labels, recompute, requests, scoring


@shared_task(base=Batches, name=jobs.SCORE, flush_every=64, flush_interval=0.005)
def score(batch: list[SimpleRequest]) -> None:
    """Score the transactions of up to 64 requests in one forward pass, and answer those who wait."""
    wanted = [(int(request.kwargs["id"]), int(request.kwargs["attempt"])) for request in batch]
    done = requests.requests_score(wanted=wanted, at=clock.now())
    waiting = {int(request.kwargs["id"]): request.kwargs.get("reply_to", "") for request in batch}
    answers.publish([(waiting[answer.id], answer) for answer in done if waiting.get(answer.id)])


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
