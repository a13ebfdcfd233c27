"""What other apps may know of a person."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a person is allowed to do; exactly one a person."""

    ANALYST = "analyst"
    SENIOR_ANALYST = "senior_analyst"
    RADIOLOGIST = "radiologist"
    ADMIN = "admin"
    AUDITOR = "auditor"
    INTEGRATOR = "integrator"


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who acts: a person or the system itself (`user_id` None); `origin` is an IP address or a worker's name."""

    user_id: int | None
    name: str
    role: str
    origin: str = ""


def person_id(actor: Actor) -> int:
    """The user of an act that only a person may do; ValueError for the system itself."""
    if actor.user_id is None:
        raise ValueError(f"{actor.name} is no person")
    return actor.user_id


def system_actor(*, name: str) -> Actor:
    """The actor of work that nobody asked for by hand, as beat or an importer."""
    return Actor(user_id=None, name=name, role="system")
