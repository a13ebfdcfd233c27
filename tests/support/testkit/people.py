"""People for tests: a user of a role, and the actor that stands for her."""

from apps.accounts.contracts import Actor, Role
from apps.accounts.models import User


def make_user(role: Role, *, name: str = "") -> User:
    """A user of this role; call it twice with other names for two people."""
    return User.objects.create(username=name or f"{role.value}-1", role=role.value)


def make_actor(*, name: str = "admin-1", role: Role = Role.ADMIN) -> Actor:
    """An actor without an account."""
    return Actor(user_id=1, name=name, role=role.value, origin="10.0.0.1")
