"""Walks every URL with every role: signed out goes to sign-in, a stranger gets 404, nobody ever gets 500."""

import uuid
from collections.abc import Iterator

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from apps.accounts import services
from apps.accounts.contracts import Role

pytestmark = pytest.mark.django_db
_OPEN = ("sign-in/", "health/")  # for everybody
_OF_PROGRAMS = ("api/",)  # API keys, not sessions: 401 and schema pages
_UUID = str(uuid.UUID(int=0))
_SAMPLES = {"int": "999999", "str": "none", "slug": "none", "uuid": _UUID, "path": "none", "uid": "1.2.3"}


def _routes(patterns: list[URLPattern | URLResolver], prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern).lstrip("^")
        if isinstance(pattern, URLResolver):
            if route != "admin/":  # Django's own; its door is tested with accounts
                yield from _routes(pattern.url_patterns, route)
        else:
            yield route, pattern


def _concrete(route: str, pattern: URLPattern) -> str:
    for name, converter in getattr(pattern.pattern, "converters", {}).items():
        kind = type(converter).__name__.removesuffix("Converter").lower().replace("string", "str")
        for written in (f"<{kind}:{name}>", f"<{name}>"):
            route = route.replace(written, _SAMPLES.get(kind, "none"))
    return "/" + route.rstrip("$")


ROUTES = [(_concrete(route, pattern), pattern) for route, pattern in _routes(get_resolver().url_patterns)]
GUARDED = [(path, pattern) for path, pattern in ROUTES if not path.lstrip("/").startswith((*_OPEN, *_OF_PROGRAMS))]


def test_there_is_something_to_walk():
    assert len(GUARDED) > 5


@pytest.mark.parametrize("method", ["get", "post"])
def test_signed_out_nobody_sees_anything(client, method):
    leaks = []
    for path, _pattern in GUARDED:
        answer = getattr(client, method)(path)
        to_sign_in = answer.status_code == 302 and answer.url.startswith("/sign-in/")
        if not (to_sign_in or answer.status_code in {404, 405} or path == "/sign-out/"):
            leaks.append((path, answer.status_code, getattr(answer, "url", "")))
    assert leaks == []


@pytest.mark.parametrize("role", list(Role))
def test_a_stranger_to_a_page_gets_404_and_nobody_gets_500(client, role):
    client.raise_request_exception = False
    user = services.user_ensure(name="walker", role=role, password="a long password")
    client.force_login(user)
    wrong = []
    for path, pattern in GUARDED:
        if path == "/sign-out/":
            continue
        roles = getattr(pattern.callback, "roles", None)
        for method in ("get", "post"):
            status = getattr(client, method)(path).status_code
            if status >= 500 or (roles is not None and role not in roles and status not in {404, 405}):
                wrong.append((method, path, status))
    assert wrong == []


def test_every_view_of_ours_says_who_may_open_it():
    """role_required leaves `roles` on the view; views for everybody who is signed in are named here."""
    for_all = {"home", "profile", "theme", "sign_out"}
    unguarded = [
        path
        for path, pattern in GUARDED
        if getattr(pattern.callback, "roles", None) is None and pattern.name not in for_all
    ]
    assert unguarded == []
