"""Tasks leave on commit."""

import pytest
from celery import shared_task
from django.db import transaction

from apps.core import jobs

pytestmark = pytest.mark.django_db
_seen: list[str] = []


@shared_task(name="core.io.test_note")
def note(*, text: str, **_: object) -> None:
    _seen.append(text)


@pytest.fixture
def seen():
    _seen.clear()
    return _seen


def test_a_task_leaves_on_commit(seen, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        jobs.enqueue("core.io.test_note", text="sent")
        assert seen == []
    assert seen == ["sent"]


def test_a_task_of_a_transaction_that_failed_never_leaves(seen, django_capture_on_commit_callbacks):
    def fail():
        with transaction.atomic():
            jobs.enqueue("core.io.test_note", text="sent")
            raise LookupError

    with django_capture_on_commit_callbacks(execute=True), pytest.raises(LookupError):
        fail()
    assert seen == []


def test_arguments_stand_in_a_messages_body_alone(monkeypatch, django_capture_on_commit_callbacks):
    sent = []
    monkeypatch.setattr(jobs.current_app, "signature", lambda name, kwargs: sent.append((name, kwargs)) or _Sent(sent))
    jobs.send_now("core.io.test_note", card="4111")
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        jobs.enqueue("core.io.test_note", card="4111")
    options = [each for each in sent if isinstance(each, dict)]
    assert [(each["argsrepr"], each["kwargsrepr"]) for each in options] == [("", "")] * 2


class _Sent:
    def __init__(self, seen):
        self._seen = seen

    def apply_async(self, **options):
        self._seen.append(options)
