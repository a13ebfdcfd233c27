"""Hands a task to its lane once the database transaction has committed."""

import structlog
from celery import current_app
from django.db import transaction
from kombu.exceptions import OperationalError

log = structlog.get_logger(__name__)
# celery writes arguments a second time into a message's headers, for monitors to show: nobody's business, and slow
_UNSHOWN = {"argsrepr": "", "kwargsrepr": ""}


def enqueue(name: str, /, **kwargs: object) -> None:
    """Send the task `name` (<app>.<lane>.<verb>) on commit; arguments must be JSON.

    The row holds the state, so a broker that is away loses nothing: the row stays QUEUED, the failure is logged, and
    the sweep that beat runs for each kind of row sends it again. The person's request has been kept and must not fail.
    """
    transaction.on_commit(lambda: _send(name, kwargs))


def send_now(name: str, /, **kwargs: object) -> bool:
    """Send the task at once, outside of any transaction, and once only; False when the broker does not take it."""
    try:
        current_app.signature(name, kwargs=kwargs).apply_async(retry=False, **_UNSHOWN)
    except OperationalError as error:
        log.warning("task_not_sent", task=name, reason=str(error))
        return False
    return True


def _send(name: str, kwargs: dict[str, object]) -> None:
    try:
        current_app.signature(name, kwargs=kwargs).apply_async(**_UNSHOWN)
    except OperationalError as error:
        log.error("task_not_sent", task=name, arguments=kwargs, reason=str(error))
