"""Sign-in, profile, theme and keys: it works, wrong method, signed out, wrong role or owner, done twice."""

import pytest
from django.urls import reverse

from apps.accounts import services
from apps.accounts.contracts import Role
from apps.accounts.models import ApiKey

pytestmark = pytest.mark.django_db
PASSWORD = "a long password"


@pytest.fixture
def person():
    return lambda role: services.user_ensure(name=f"{role}-1", role=role, password=PASSWORD)


@pytest.fixture
def signed_in(client, person):
    def as_role(role):
        client.force_login(person(role))
        return client

    return as_role


def test_signing_in_leads_to_the_list_of_the_role(client, person, settings):
    person(Role.AUDITOR)
    answer = client.post(reverse("accounts:sign_in"), {"username": "auditor-1", "password": PASSWORD})
    assert answer.url == reverse("core:home")
    assert client.get(answer.url).url == settings.HOME_BY_ROLE["auditor"]


def test_a_wrong_password_is_told_on_the_form(client, person):
    person(Role.AUDITOR)
    answer = client.post(reverse("accounts:sign_in"), {"username": "auditor-1", "password": "wrong"})
    assert answer.status_code == 200
    assert b"do not match" in answer.content


def test_five_failures_lock_the_name_at_that_address(client, person, settings):
    settings.AXES_ENABLED = True
    person(Role.AUDITOR)
    for _ in range(5):
        answer = client.post(reverse("accounts:sign_in"), {"username": "auditor-1", "password": "wrong"})
    assert answer.status_code == 429
    assert b"15 minutes" in answer.content
    right = client.post(reverse("accounts:sign_in"), {"username": "auditor-1", "password": PASSWORD})
    assert right.status_code == 429


def test_signing_out_needs_post_and_ends_the_session(signed_in):
    client = signed_in(Role.AUDITOR)
    assert client.get(reverse("accounts:sign_out")).status_code == 405
    client.post(reverse("accounts:sign_out"))
    assert client.get(reverse("accounts:profile")).status_code == 302


def test_the_profile_keeps_zone_and_theme(signed_in):
    client = signed_in(Role.ANALYST)
    client.post(reverse("accounts:profile"), {"time_zone": "Asia/Tokyo", "theme": "dark"})
    page = client.get(reverse("accounts:profile"))
    assert b'data-theme="dark"' in page.content
    assert page.wsgi_request.user.time_zone == "Asia/Tokyo"


def test_a_zone_that_does_not_exist_is_refused(signed_in):
    client = signed_in(Role.ANALYST)
    answer = client.post(reverse("accounts:profile"), {"time_zone": "Mars/Olympus", "theme": "dark"})
    assert b"errorlist" in answer.content
    assert client.get(reverse("accounts:profile")).wsgi_request.user.time_zone == "UTC"


def test_the_theme_returns_to_the_page_but_to_no_other_site(signed_in):
    client = signed_in(Role.ANALYST)
    url = reverse("accounts:theme")
    assert client.post(url, {"theme": "dark", "next": "/profile/"}).url == "/profile/"
    assert client.post(url, {"theme": "dark", "next": "https://evil.example/"}).url == reverse("core:home")
    assert client.post(url, {"theme": "pink"}).status_code == 400
    assert client.get(url).status_code == 405


def test_a_key_is_shown_once_and_can_be_revoked_twice(signed_in):
    client = signed_in(Role.INTEGRATOR)
    page = client.post(reverse("accounts:api_key_create"), {"name": "gateway"})
    key = ApiKey.objects.get()
    assert f"assay_{key.prefix}_".encode() in page.content
    assert f"assay_{key.prefix}_".encode() not in client.get(reverse("accounts:profile")).content
    for _ in range(2):
        assert client.post(reverse("accounts:api_key_revoke", args=[key.pk])).status_code == 302
    key.refresh_from_db()
    assert key.revoked_at is not None


def test_a_key_without_a_name_is_refused_with_a_reason(signed_in):
    answer = signed_in(Role.INTEGRATOR).post(reverse("accounts:api_key_create"), {"name": ""})
    assert answer.status_code == 422
    assert not ApiKey.objects.exists()


def test_an_analyst_has_no_keys(signed_in):
    assert signed_in(Role.ANALYST).post(reverse("accounts:api_key_create"), {"name": "x"}).status_code == 404


def test_nobody_revokes_the_key_of_somebody_else(signed_in, person):
    client = signed_in(Role.INTEGRATOR)
    client.post(reverse("accounts:api_key_create"), {"name": "gateway"})
    client.force_login(person(Role.ADMIN))
    key = ApiKey.objects.get()
    assert client.post(reverse("accounts:api_key_revoke", args=[key.pk])).status_code == 404
    key.refresh_from_db()
    assert key.revoked_at is None


def test_the_admin_site_opens_for_admins_and_is_not_there_for_others(client, person):
    assert client.get("/admin/").status_code == 302
    client.force_login(person(Role.ANALYST))
    assert client.get("/admin/", follow=True).status_code == 404
    client.force_login(person(Role.ADMIN))
    assert client.get("/admin/").status_code == 200
    assert client.get("/admin/accounts/apikey/").status_code == 200
