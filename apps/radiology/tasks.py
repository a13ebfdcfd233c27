"""Work of radiology in the lanes: reading files, drafting."""

from celery import shared_task
from django.conf import settings

from apps.core import clock
from apps.radiology import jobs
from apps.radiology.services import drafts, intake


@shared_task(name=jobs.TAKE_IN)
def take_in(*, batch_id: int, **_: object) -> None:
    """Read the waiting files of a batch; a batch too large for one turn goes on in the next."""
    intake.batch_take_in(batch_id=batch_id, now=clock.now, seconds=0.6 * settings.LANE_LIMIT_S["cpu"])


@shared_task(name=jobs.DRAFT)
def draft(**_: object) -> None:
    """Draft what waits; what does not fit the turn goes on in the next."""
    drafts.drafts_run(now=clock.now, seconds=0.5 * settings.LANE_LIMIT_S["gpu"])


@shared_task(name=jobs.SWEEP)
def sweep(**_: object) -> None:
    """Send again what waits for a reader because the broker or a worker was away (beat runs it)."""
    intake.batches_resend(at=clock.now())
