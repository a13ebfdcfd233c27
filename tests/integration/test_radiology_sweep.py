"""Files whose reader never came are read again; fresh ones are left to their own message."""

from datetime import timedelta

import pytest
from django.core.files.base import ContentFile

from apps.accounts.contracts import system_actor
from apps.core import clock
from apps.radiology import jobs
from apps.radiology.services import intake

pytestmark = pytest.mark.django_db


def test_only_files_that_waited_too_long_are_sent_again(settings, monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr(jobs, "enqueue_take_in", lambda *, batch_id: sent.append(batch_id))
    now = clock.now()
    batches = [
        intake.batch_create(name=name, source="test", by=system_actor(name="test"), at=now) for name in ("old", "new")
    ]
    long_ago = now - timedelta(seconds=2 * settings.LANE_LIMIT_S["cpu"])
    for batch, at in zip(batches, (long_ago, now), strict=True):
        intake.file_receive(batch=batch, name="a.dcm", content=ContentFile(b"x"), at=at)
    assert intake.batches_resend(at=now) == 1
    assert sent == [batches[0].pk]
