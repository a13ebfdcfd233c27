"""The demo's accounts: one person for each role and a second analyst, and a key for the integrator."""

from pathlib import Path

from django.conf import settings

from apps.accounts import api as accounts
from apps.accounts.contracts import Role, system_actor

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
    for name, role in NAMES.items():
        accounts.account_ensure(name=name, role=role, password=settings.DEMO_PASSWORD)
    secret = accounts.api_key_ensure(owner="integrator-1", name="demo", by=system_actor(name="demo"))
    if secret is not None:
        key_file.unlink(missing_ok=True)
        key_file.touch(mode=0o600)
        key_file.write_text(secret, encoding="utf-8")
