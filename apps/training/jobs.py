"""Names of the training tasks and how they are sent."""

from apps.core.jobs import enqueue

START = "training.train.start"
STOP = "training.train.stop"
FOLLOW = "training.io.follow"


def enqueue_start(*, run_id: int, attempt: int) -> None:
    """Launch this attempt of a run on the machine of the lane `train`."""
    enqueue(START, id=str(run_id), attempt=attempt)


def enqueue_stop(*, run_id: int, attempt: int) -> None:
    """End the child of this attempt, should it still live."""
    enqueue(STOP, id=str(run_id), attempt=attempt)
