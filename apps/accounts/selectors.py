"""Reads of accounts."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import available_timezones

from apps.accounts.models import ApiKey
from apps.core.prepared import Prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveKey:
    """A key that may be used, and whose it is."""

    id: int
    last_used_at: datetime | None
    user_id: int
    username: str
    role: str


_LIVE = Prepared(
    lambda prefixes: ApiKey.objects.filter(prefix__in=prefixes, revoked_at=None, user__is_active=True).values_list(
        "secret_hash", "id", "last_used_at", "user_id", "user__username", "user__role"
    )
)


def key_find(*, secret: str) -> LiveKey | None:
    """The live key that `secret` belongs to, with its user, or None."""
    parts = secret.split("_", 2)
    if len(parts) != 3 or parts[0] != "assay":
        return None
    found = _LIVE.rows([parts[1]])
    if not found or not hmac.compare_digest(found[0][0], secret_hash(secret)):
        return None
    _, pk, last_used_at, user_id, username, role = found[0]
    return LiveKey(id=pk, last_used_at=last_used_at, user_id=user_id, username=username, role=role)


def secret_hash(secret: str) -> str:
    """SHA-256 in hex. The secret carries 256 random bits, so a slow password hash would protect nothing more."""
    return hashlib.sha256(secret.encode()).hexdigest()


def time_zone_choices() -> list[tuple[str, str]]:
    """All IANA zones of a place, by name."""
    return [(name, name.replace("_", " ")) for name in sorted(available_timezones()) if "/" in name or name == "UTC"]
