"""The tasks of radiology by name, and how to hand them to their lane."""

from apps.core.jobs import enqueue

TAKE_IN = "radiology.cpu.take_in"
DRAFT = "radiology.gpu.draft"
SWEEP = "radiology.io.sweep"


def enqueue_take_in(*, batch_id: int) -> None:
    """Read the waiting files of a batch."""
    enqueue(TAKE_IN, batch_id=batch_id)


def enqueue_draft() -> None:
    """Draft whatever studies wait for a draft."""
    enqueue(DRAFT)
