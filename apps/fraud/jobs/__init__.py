"""Names of the tasks of this app and how they are sent; how answers come back to a waiting request."""

from apps.core.jobs import enqueue

SCORE = "fraud.gpu.score"
SCORE_BATCH = "fraud.gpu.score_batch"
LEARN_LABELS = "fraud.gpu.learn_labels"
RECOMPUTE = "fraud.gpu.recompute"
REQUEUE = "fraud.io.requeue_stale"


def enqueue_score(*, transaction_id: int, attempt: int, reply_to: str = "") -> None:
    """Have one transaction scored, together with whatever else arrives in the same few milliseconds."""
    enqueue(SCORE, id=transaction_id, attempt=attempt, reply_to=reply_to)


def enqueue_score_batch(*, batch_id: int, attempt: int) -> None:
    """Have the next undone batch of an import scored."""
    enqueue(SCORE_BATCH, id=batch_id, attempt=attempt)


def enqueue_recompute(*, alert_id: int) -> None:
    """Have an alert scored again from its snapshot."""
    enqueue(RECOMPUTE, id=alert_id)
