"""Shared by the tests of the fraud app: the moment at which they play, and actors of users."""

from datetime import UTC, datetime
from typing import Any

from apps.accounts.contracts import Actor

AT = datetime(2026, 5, 20, 12, tzinfo=UTC)


def actor(user: Any) -> Actor:
    """The actor that a user is."""
    return Actor(user_id=user.pk, name=user.username, role=user.role)
