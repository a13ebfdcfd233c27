"""Hands a task to its lane once the database transaction has committed."""

from celery import current_app
from django.db import transaction


def enqueue(name: str, /, **kwargs: object) -> None:
    """Send the task `name` (<app>.<lane>.<verb>) on commit; arguments must be JSON."""
    transaction.on_commit(lambda: current_app.signature(name, kwargs=kwargs).apply_async())
