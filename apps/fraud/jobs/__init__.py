"""Names of the tasks of this app and how they are sent; how answers come back to a waiting request."""

from time import time
from typing import Any

from apps.core.jobs import enqueue, send_now

SCORE = "fraud.gpu.score"
SCORE_BATCH = "fraud.gpu.score_batch"
LEARN_LABELS = "fraud.gpu.learn_labels"
RECOMPUTE = "fraud.gpu.recompute"
REQUEUE = "fraud.io.requeue_stale"


def enqueue_score(*, transaction_id: int, attempt: int) -> None:
    """Have a stored transaction scored, together with whatever else arrives in the same few milliseconds."""
    enqueue(SCORE, id=transaction_id, attempt=attempt)


def send_request(*, asked: dict[str, Any], reply_to: str) -> bool:
    """Have a request stored, scored and answered by the worker; False when the broker does not take it."""
    return send_now(SCORE, asked=asked, reply_to=reply_to, sent_at=time())


def enqueue_score_batch(*, batch_id: int, attempt: int) -> None:
    """Have the next undone batch of an import scored."""
    enqueue(SCORE_BATCH, id=batch_id, attempt=attempt)


def enqueue_recompute(*, alert_id: int) -> None:
    """Have an alert scored again from its snapshot."""
    enqueue(RECOMPUTE, id=alert_id)
