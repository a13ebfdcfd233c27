"""API keys as other apps see them."""

from datetime import UTC, datetime, timedelta

import pytest

from apps.accounts import api, services
from apps.accounts.contracts import Role, system_actor
from apps.accounts.models import ApiKey

pytestmark = pytest.mark.django_db
AT = datetime(2026, 5, 12, 14, 5, tzinfo=UTC)
BY = system_actor(name="test")


@pytest.fixture
def integrator():
    return services.user_ensure(name="gateway", role=Role.INTEGRATOR, password="a long password")


@pytest.fixture
def key(integrator):
    return services.api_key_create(user=integrator, name="gateway", by=BY, at=AT)


def test_a_key_acts_as_its_user(key):
    actor = api.key_authenticate(key[1], origin="10.0.0.1")
    assert actor is not None
    assert (actor.name, actor.role, actor.origin) == ("gateway", "integrator", "10.0.0.1")


def test_the_secret_itself_is_not_kept(key):
    row, secret = key
    assert secret not in repr(ApiKey.objects.filter(pk=row.pk).values().get())


@pytest.mark.parametrize("wrong", ["", "assay", "assay_x_y", "other_{prefix}_{rest}", "assay_{prefix}_{rest}x"])
def test_anything_but_the_whole_key_is_refused(key, wrong):
    _assay, prefix, rest = key[1].split("_", 2)
    assert api.key_authenticate(wrong.format(prefix=prefix, rest=rest)) is None


def test_a_revoked_key_stops_at_once_and_revoking_twice_keeps_the_first_time(key):
    row, secret = key
    services.api_key_revoke(key=row, by=BY, at=AT)
    services.api_key_revoke(key=row, by=BY, at=AT + timedelta(days=1))
    assert api.key_authenticate(secret) is None
    assert ApiKey.objects.get(pk=row.pk).revoked_at == AT


def test_a_key_of_somebody_who_has_left_is_refused(key, integrator):
    integrator.is_active = False
    integrator.save(update_fields=["is_active"])
    assert api.key_authenticate(key[1]) is None


def test_the_last_use_is_noted_at_most_once_a_minute(key):
    row = key[0]
    services.api_key_touch(key_id=row.pk, last_used_at=None, at=AT)
    row.refresh_from_db()
    services.api_key_touch(key_id=row.pk, last_used_at=row.last_used_at, at=AT + timedelta(seconds=30))
    row.refresh_from_db()
    assert row.last_used_at == AT


def test_a_named_key_is_made_once(integrator):
    assert api.api_key_ensure(owner="gateway", name="demo", by=BY) is not None
    assert api.api_key_ensure(owner="gateway", name="demo", by=BY) is None
