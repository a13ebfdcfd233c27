"""The auditor's pages."""

import csv
import io
from datetime import timedelta

import pytest
from django.db import connection
from django.urls import reverse
from testkit.people import make_actor, make_user

from apps.accounts.contracts import Role
from apps.audit.api import AuditEvent, record_many
from apps.audit.models import Event
from apps.core import clock

pytestmark = pytest.mark.django_db
PAGES = [
    ("audit:search", "get", ()),
    ("audit:export", "get", ()),
    ("audit:event", "get", (1,)),
    ("audit:verify", "post", ()),
]


@pytest.fixture
def auditor(client):
    client.force_login(make_user(Role.AUDITOR))
    return client


@pytest.fixture(autouse=True)
def trail():
    now = clock.now()
    told = [
        ("ann", "alert.read", "alert", "8812", True, 50),
        ("bob", "alert.close", "alert", "8813", True, 2),
        ("=cmd()", "report.sign", "report", "7", False, 1),
    ]
    record_many(
        AuditEvent(
            actor=make_actor(name=name),
            verb=verb,
            object_type=kind,
            object_id=key,
            allowed=allowed,
            at=now - timedelta(hours=hours),
        )
        for name, verb, kind, key, allowed, hours in told
    )


def test_events_are_shown_as_sentences_newest_first(auditor):
    page = auditor.get(reverse("audit:search")).content.decode()
    assert page.index("bob closed alert 8813") < page.index("ann read alert 8812")
    assert "refused" in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"who": "bob"}, {"bob"}),
        ({"what": "alert"}, {"ann", "bob"}),
        ({"what": "alert read"}, set()),
        ({"object": "alert 8812"}, {"ann"}),
        ({"object": "report"}, {"=cmd()"}),
        ({"object": "881"}, {"ann", "bob"}),
        ({"refused": "on"}, {"=cmd()"}),
        ({"who": "nobody"}, set()),
    ],
)
def test_the_filters_of_the_url_narrow_the_list(auditor, query, found):
    events = auditor.get(reverse("audit:search"), query).context["events"]
    assert {event.name for event in events} - {"auditor-1"} == found


def test_a_span_of_time_narrows_the_list(auditor):
    since = (clock.now() - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M")
    until = (clock.now() - timedelta(minutes=90)).strftime("%Y-%m-%dT%H:%M")
    events = auditor.get(reverse("audit:search"), {"since": since, "until": until}).context["events"]
    assert {event.name for event in events} == {"bob"}


def test_a_date_that_is_none_is_told_and_finds_everything(auditor):
    answer = auditor.get(reverse("audit:search"), {"since": "yesterday-ish", "before": "x"})
    assert answer.status_code == 200
    assert "Enter a valid date" in answer.content.decode()


def test_searching_is_on_record_with_what_was_asked(auditor):
    auditor.get(reverse("audit:search"), {"who": "bob"})
    event = Event.objects.order_by("-sequence").first()
    assert (event.name, event.verb, event.detail) == ("auditor-1", "audit.search", {"who": "bob"})


def test_one_event_shows_its_hash(auditor):
    event = Event.objects.get(sequence=2)
    page = auditor.get(reverse("audit:event", args=[2])).content.decode()
    assert event.hash in page
    assert event.previous_hash in page


def test_an_event_that_does_not_exist_is_not_found(auditor):
    assert auditor.get(reverse("audit:event", args=[999])).status_code == 404


def test_verifying_says_that_every_link_holds(auditor):
    for headers in ({}, {"HTTP_HX_REQUEST": "true"}):
        answer = auditor.post(reverse("audit:verify"), **headers)
        assert "every link holds" in answer.content.decode()


def test_verifying_twice_gives_the_same_verdict(auditor):
    first = auditor.post(reverse("audit:verify")).context["report"]
    second = auditor.post(reverse("audit:verify")).context["report"]
    assert first.whole
    assert second.whole
    assert second.checked == first.checked + 1  # the first verdict is an event itself


def test_a_long_chain_is_verified_in_parts_that_ask_for_the_next(auditor, monkeypatch):
    monkeypatch.setattr("apps.audit.views._VERIFY_ROWS", 2)
    answer = auditor.post(reverse("audit:verify"), HTTP_HX_REQUEST="true")
    assert 'name="start" value="3"' in answer.content.decode()
    answer = auditor.post(reverse("audit:verify"), {"start": "3"}, HTTP_HX_REQUEST="true")
    assert "3 events checked" in answer.content.decode()


def test_the_export_holds_what_the_filters_find_and_no_formula(auditor):
    answer = auditor.get(reverse("audit:export"), {"refused": "on"})
    rows = list(csv.reader(io.StringIO(b"".join(answer.streaming_content).decode())))
    assert rows[0][:3] == ["sequence", "at", "who"]
    assert [row[2] for row in rows[1:]] == ["'=cmd()"]
    assert "attachment" in answer["Content-Disposition"]
    event = Event.objects.order_by("-sequence").first()
    assert (event.verb, event.detail) == ("audit.export", {"refused": "on", "events": 1})


async def test_the_export_streams_under_asgi_too(async_client, transactional_db):
    from asgiref.sync import sync_to_async

    user = await sync_to_async(make_user)(Role.AUDITOR, name="async-auditor")
    await async_client.aforce_login(user)
    answer = await async_client.get(reverse("audit:export"))
    text = "".join([part.decode() async for part in answer.streaming_content])
    assert text.startswith("sequence,at,who")
    # That thread's own connection, which would keep the test database from being dropped.
    await sync_to_async(lambda: connection.close())()


@pytest.mark.parametrize(("name", "method", "args"), PAGES)
def test_the_wrong_method_is_refused(auditor, name, method, args):
    other = "post" if method == "get" else "get"
    assert getattr(auditor, other)(reverse(name, args=args)).status_code == 405


@pytest.mark.parametrize(("name", "method", "args"), PAGES)
def test_who_is_signed_out_is_sent_to_sign_in(client, name, method, args):
    answer = getattr(client, method)(reverse(name, args=args))
    assert answer.status_code == 302
    assert answer.url.startswith(reverse("accounts:sign_in"))


@pytest.mark.parametrize("role", [Role.ANALYST, Role.SENIOR_ANALYST, Role.RADIOLOGIST, Role.INTEGRATOR])
@pytest.mark.parametrize(("name", "method", "args"), PAGES)
def test_a_stranger_finds_nothing(client, role, name, method, args):
    client.force_login(make_user(role))
    assert getattr(client, method)(reverse(name, args=args)).status_code == 404


def test_the_admin_site_shows_events_and_lets_nobody_change_them(client):
    user = make_user(Role.ADMIN)
    user.is_staff = user.is_superuser = True
    user.save()
    client.force_login(user)
    assert client.get("/admin/audit/event/").status_code == 200
    assert client.get("/admin/audit/event/add/").status_code == 403
    assert client.post("/admin/audit/event/1/delete/", {"post": "yes"}).status_code == 403
