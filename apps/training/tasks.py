"""Tasks of the train lane and the one that follows running children."""

from celery import shared_task

from apps.core import clock
from apps.training import jobs
from apps.training.services import children, following


@shared_task(name=jobs.START)
def start(*, id: str, attempt: int, **_: object) -> None:
    """Write the folder of an attempt and launch its child."""
    children.run_launch(run_id=int(id), attempt=attempt, at=clock.now())


@shared_task(name=jobs.STOP)
def stop(*, id: str, attempt: int, **_: object) -> None:
    """End the child of an attempt that is over."""
    children.run_stop(run_id=int(id), attempt=attempt)


@shared_task(name=jobs.FOLLOW)
def follow(**_: object) -> None:
    """Read what the running children wrote."""
    following.runs_follow(at=clock.now())
