"""Appending to the chain and verifying it."""

from datetime import UTC, datetime

import pytest
from django.db import DatabaseError, connection, transaction
from testkit.people import make_actor

from apps.audit import rules, selectors, services
from apps.audit.api import AuditEvent, record, record_many
from apps.audit.models import ChainHead, Event

pytestmark = pytest.mark.django_db
AT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def make_event(key: str = "1", **fields: object) -> AuditEvent:
    return AuditEvent(
        **{"actor": make_actor(), "verb": "alert.read", "object_type": "alert", "object_id": key, "at": AT} | fields
    )


def tamper(sql: str) -> None:
    """What somebody with the database's own rights could do: switch the triggers off and write."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit_event'")
            triggers = cursor.fetchall()
            for name, _sql in triggers:
                cursor.execute(f"DROP TRIGGER {name}")
            cursor.execute(sql)
            for _name, text in triggers:
                cursor.execute(text)
        else:
            cursor.execute("ALTER TABLE audit_event DISABLE TRIGGER USER")
            cursor.execute(sql)
            cursor.execute("ALTER TABLE audit_event ENABLE TRIGGER USER")


def test_events_are_linked_in_the_order_given():
    record_many(make_event(str(key)) for key in range(5))
    first, second, *_rest, last = Event.objects.order_by("sequence")
    assert first.previous_hash == rules.GENESIS
    assert second.previous_hash == first.hash
    assert [event.object_id for event in Event.objects.order_by("sequence")] == list("01234")
    head = ChainHead.objects.get()
    assert (head.sequence, head.hash) == (last.sequence, last.hash)


def test_more_events_than_one_insert_holds_make_one_chain():
    record_many(make_event(str(key)) for key in range(1203))
    report = selectors.chain_verify()
    assert report.whole
    assert report.checked == 1203


def test_recording_nothing_changes_nothing():
    record_many([])
    assert Event.objects.count() == 0


def test_an_event_keeps_what_it_was_told():
    record(make_event(allowed=False, detail={"amount": 1e22, "small": 1e-7, "word": "é\x00"}))
    event = Event.objects.get()
    assert (event.name, event.role, event.origin, event.at) == ("admin-1", "admin", "10.0.0.1", AT)
    assert event.detail == {"amount": 1e22, "small": 1e-7, "word": "é\x00"}
    assert not event.allowed
    assert selectors.chain_verify().whole


def test_hostile_text_is_made_storable_and_the_chain_still_holds():
    record(make_event("x\x00y\ud800" + "z" * 500))
    assert len(Event.objects.get().object_id) == 128
    assert selectors.chain_verify().whole


def test_an_event_goes_when_its_transaction_is_rolled_back():
    record(make_event("kept"))
    with transaction.atomic():
        record(make_event("gone"))
        transaction.set_rollback(True)
    record(make_event("kept too"))
    assert list(Event.objects.order_by("sequence").values_list("object_id", flat=True)) == ["kept", "kept too"]
    assert selectors.chain_verify().whole


@pytest.mark.parametrize(
    "sql", ["UPDATE audit_event SET name = 'other' WHERE sequence = 1", "DELETE FROM audit_event WHERE sequence = 1"]
)
def test_the_database_refuses_to_change_or_delete_an_event(sql):
    record(make_event())
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)
    assert Event.objects.get().name == "admin-1"


def test_the_database_refuses_to_replace_an_event():
    record(make_event())
    if connection.vendor != "sqlite":
        pytest.skip("only SQLite knows INSERT OR REPLACE")
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT OR REPLACE INTO audit_event SELECT * FROM audit_event")


@pytest.mark.parametrize(
    ("sql", "broken_at", "word"),
    [
        ("UPDATE audit_event SET name = 'innocent' WHERE sequence = 3", 3, "changed"),
        ("UPDATE audit_event SET allowed = NOT allowed WHERE sequence = 5", 5, "changed"),
        ("UPDATE audit_event SET detail_json = '{}' WHERE sequence = 1", 1, "changed"),
        ("UPDATE audit_event SET previous_hash = hash WHERE sequence = 4", 4, "follow"),
        ("DELETE FROM audit_event WHERE sequence = 2", 2, "missing"),
        ("DELETE FROM audit_event WHERE sequence >= 6", 6, "cut off"),
        ("UPDATE audit_event SET sequence = 9 WHERE sequence = 6", 6, "missing"),
    ],
)
def test_the_verifier_names_the_first_broken_event(sql, broken_at, word):
    record_many(make_event(str(key), detail={"key": key}) for key in range(1, 7))
    tamper(sql)
    report = selectors.chain_verify()
    assert not report.whole
    assert report.broken_at == broken_at
    assert word in report.reason


def test_a_head_that_was_moved_back_is_noticed():
    record_many(make_event(str(key)) for key in range(3))
    ChainHead.objects.update(hash="0" * 64)
    assert selectors.chain_verify().broken_at == 3


def test_a_chain_is_verified_part_by_part():
    record_many(make_event(str(key)) for key in range(10))
    first = selectors.chain_verify(limit=4)
    assert (first.checked, first.next_sequence, first.whole) == (4, 5, False)
    second = selectors.chain_verify(start=5, limit=4)
    assert (second.checked, second.next_sequence) == (4, 9)
    assert selectors.chain_verify(start=9, limit=4).whole


def test_an_empty_chain_is_whole():
    assert selectors.chain_verify().whole


def test_the_verdict_itself_goes_on_record():
    record(make_event())
    services.trail_verify(by=make_actor(), at=AT)
    event = Event.objects.order_by("-sequence").first()
    assert event.verb == "audit.verify"
    assert event.detail == {"whole": True, "events": 1}


def test_pages_go_by_sequence_and_end():
    record_many(make_event(str(key)) for key in range(7))
    page, older = selectors.event_page(selectors.event_list(), rows=5)
    assert [event.sequence for event in page] == [7, 6, 5, 4, 3]
    assert older == 3
    page, older = selectors.event_page(selectors.event_list(), before=older, rows=5)
    assert [event.sequence for event in page] == [2, 1]
    assert older == 0


def test_chunks_cover_every_event_once():
    record_many(make_event(str(key)) for key in range(10))
    chunks = list(selectors.event_chunks(Event.objects.all(), rows=5))
    assert [event.sequence for chunk in chunks for event in chunk] == list(range(10, 0, -1))
