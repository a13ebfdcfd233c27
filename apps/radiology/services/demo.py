"""Makes a batch of simulated studies look like a morning's work: priorities, and arrivals spread over hours."""

from datetime import datetime, timedelta

from django.db import transaction

from apps.radiology.models import Batch, Priority, Study

_SOURCE = "demo"
_STEP_MIN = 7


def demo_is_loaded() -> bool:
    """Whether demo studies were loaded before."""
    return Study.objects.filter(batch__source=_SOURCE).exists()


def demo_finish(*, batch_id: int, at: datetime) -> None:
    """Give each study of the demo batch a priority and an arrival, the same ones every time."""
    with transaction.atomic():
        batch = Batch.objects.get(pk=batch_id)
        Batch.objects.filter(pk=batch_id).update(name="Demo studies")
        for index, study in enumerate(batch.studies.order_by("uid")):
            if index % 9 == 0:
                study.priority = Priority.STAT
            elif index % 4 == 1:
                study.priority = Priority.URGENT
            wait = _STEP_MIN * (index % 40 + 1)
            if study.priority == Priority.STAT:
                wait = 3 + index % 11
            study.arrived_at = at - timedelta(minutes=wait)
            study.save(update_fields=["priority", "arrived_at"])
