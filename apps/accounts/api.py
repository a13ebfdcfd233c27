"""What other apps may ask of accounts."""

from django.http import HttpRequest

from apps.accounts import selectors, services
from apps.accounts.contracts import Actor, Role, person_id, system_actor
from apps.core import clock

__all__ = [
    "Actor",
    "Role",
    "account_ensure",
    "actor_of",
    "api_key_ensure",
    "key_authenticate",
    "person_id",
    "system_actor",
]


def actor_of(request: HttpRequest) -> Actor:
    """The signed-in person of a request, with the address that the request came from."""
    user = request.user
    return Actor(user_id=user.pk, name=user.get_username(), role=user.role, origin=request.META.get("REMOTE_ADDR", ""))


def key_authenticate(secret: str, /, *, origin: str = "") -> Actor | None:
    """Who acts with this API key; None if it is unknown, revoked or its user is not active."""
    key = selectors.key_find(secret=secret)
    if key is None:
        return None
    services.api_key_touch(key_id=key.id, last_used_at=key.last_used_at, at=clock.now())
    return Actor(user_id=key.user_id, name=key.username, role=key.role, origin=origin)


def account_ensure(*, name: str, role: Role, password: str) -> None:
    """Make an account if there is none of this name; an admin may use the admin site."""
    services.user_ensure(name=name, role=role, password=password)


def api_key_ensure(*, owner: str, name: str, by: Actor) -> str | None:
    """Make a key called `name` for the user `owner` and return its secret; None if she has a live one of that name."""
    return services.api_key_ensure(owner=owner, name=name, by=by, at=clock.now())
