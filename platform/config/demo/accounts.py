"""The demo's accounts: one person for each role and a second analyst, and a key for the integrator."""

from pathlib import Path

from django.conf import settings

from apps.accounts.contracts import Role, system_actor
from apps.accounts.models import User
from apps.accounts.services import api_key_create
from apps.core import clock

NAMES = {
    "analyst-1": Role.ANALYST,
    "analyst-2": Role.ANALYST,
    "senior-1": Role.SENIOR_ANALYST,
    "radiologist-1": Role.RADIOLOGIST,
    "admin-1": Role.ADMIN,
    "auditor-1": Role.AUDITOR,
    "integrator-1": Role.INTEGRATOR,
}


def accounts_ensure(*, key_file: Path) -> None:
    """Make the accounts that are missing; the integrator's key goes to `key_file`, which only its owner can read."""
    known = set(User.objects.filter(username__in=NAMES).values_list("username", flat=True))
    for name, role in NAMES.items():
        if name not in known:
            _make(name=name, role=role)
    integrator = User.objects.get(username="integrator-1")
    if not key_file.exists() or not integrator.api_keys.filter(revoked_at=None).exists():
        by = system_actor(name="demo")
        _key, secret = api_key_create(user=integrator, name="demo", by=by, at=clock.now())
        key_file.touch(mode=0o600)
        key_file.write_text(secret, encoding="utf-8")


def _make(*, name: str, role: Role) -> None:
    is_admin = role is Role.ADMIN
    user = User(username=name, role=role.value, is_staff=is_admin, is_superuser=is_admin)
    user.set_password(settings.DEMO_PASSWORD)
    user.full_clean()
    user.save()
