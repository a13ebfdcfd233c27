"""What other apps may ask of accounts."""

from django.http import HttpRequest

from apps.accounts.contracts import Actor, Role, system_actor

__all__ = ["Actor", "Role", "actor_of", "system_actor"]


def actor_of(request: HttpRequest) -> Actor:
    """The signed-in person of a request, with the address that the request came from."""
    user = request.user
    return Actor(
        user_id=user.pk, name=user.get_username(), role=user.role, origin=request.META.get("REMOTE_ADDR", "")
    )
