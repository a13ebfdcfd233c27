"""Writes of accounts."""

import secrets
from datetime import datetime, timedelta

from django.db import transaction

from apps.accounts.contracts import Actor, Role
from apps.accounts.models import ApiKey, User
from apps.accounts.selectors import secret_hash

_USED_EVERY = timedelta(minutes=1)  # last_used_at is a hint for people, not worth a write on every request


@transaction.atomic
def api_key_create(*, user: User, name: str, by: Actor, at: datetime) -> tuple[ApiKey, str]:
    """Make a key for `user` and return it with its secret, which cannot be read again."""
    prefix = secrets.token_hex(5)
    secret = f"assay_{prefix}_{secrets.token_urlsafe(32)}"
    key = ApiKey(user=user, name=name, prefix=prefix, secret_hash=secret_hash(secret), created_at=at)
    key.full_clean()
    key.save()
    return key, secret


@transaction.atomic
def api_key_ensure(*, owner: str, name: str, by: Actor, at: datetime) -> str | None:
    """Make a key called `name` for `owner` unless she has a live one; returns its secret, or None."""
    user = User.objects.select_for_update().get(username=owner)
    if user.api_keys.filter(name=name, revoked_at=None).exists():
        return None
    return api_key_create(user=user, name=name, by=by, at=at)[1]


@transaction.atomic
def api_key_revoke(*, key: ApiKey, by: Actor, at: datetime) -> ApiKey:
    """Stop a key from working. Twice is the same as once."""
    if key.revoked_at is None:
        key.revoked_at = at
        key.save(update_fields=["revoked_at"])
    return key


def api_key_touch(*, key_id: int, last_used_at: datetime | None, at: datetime) -> None:
    """Note that a key was used, at most once a minute."""
    if last_used_at is None or at - last_used_at >= _USED_EVERY:
        ApiKey.objects.filter(pk=key_id).update(last_used_at=at)


@transaction.atomic
def user_ensure(*, name: str, role: Role, password: str) -> User:
    """The user of this name, made if there is none. An admin is staff and superuser, so that the admin site opens."""
    user = User.objects.filter(username=name).first()
    if user is None:
        is_admin = role is Role.ADMIN
        user = User(username=name, role=role.value, is_staff=is_admin, is_superuser=is_admin)
        user.set_password(password)
        user.full_clean()
        user.save()
    return user


@transaction.atomic
def profile_update(*, user: User, time_zone: str, theme: str) -> User:
    """Change how pages look to a person; raises ValidationError for an unknown zone or theme."""
    user.time_zone, user.theme = time_zone, theme
    user.full_clean(exclude=["password"])
    user.save(update_fields=["time_zone", "theme"])
    return user
