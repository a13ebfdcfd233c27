"""Reads of accounts."""

import hashlib
import hmac
from zoneinfo import available_timezones

from apps.accounts.models import ApiKey


def key_find(*, secret: str) -> ApiKey | None:
    """The live key that `secret` belongs to, with its user, or None."""
    parts = secret.split("_", 2)
    if len(parts) != 3 or parts[0] != "assay":
        return None
    key = ApiKey.objects.select_related("user").filter(prefix=parts[1], revoked_at=None, user__is_active=True).first()
    if key is None or not hmac.compare_digest(key.secret_hash, secret_hash(secret)):
        return None
    return key


def secret_hash(secret: str) -> str:
    """SHA-256 in hex. The secret carries 256 random bits, so a slow password hash would protect nothing more."""
    return hashlib.sha256(secret.encode()).hexdigest()


def time_zone_choices() -> list[tuple[str, str]]:
    """All IANA zones of a place, by name."""
    return [(name, name.replace("_", " ")) for name in sorted(available_timezones()) if "/" in name or name == "UTC"]
