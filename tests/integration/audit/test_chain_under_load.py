"""The hash chain written by eight processes at once, on SQLite and PostgreSQL; tampering is named on both."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit.databases import VENDORS, database, manage, script_start

pytestmark = pytest.mark.slow
PROCESSES, ROUNDS, THREADS = 8, 12, 2
APPEND = """
import sys, threading
from apps.accounts.api import system_actor
from apps.audit.api import AuditEvent, record_many
from apps.core import clock
from django.db import connection, transaction

def work(who):
    for turn in range({rounds}):
        with transaction.atomic():
            record_many(AuditEvent(actor=system_actor(name=who), verb="load.write", object_type="load",
                object_id=f"{{turn}}-{{part}}", at=clock.now(), detail={{"turn": turn}}) for part in range(3))
    connection.close()

threads = [threading.Thread(target=work, args=(f"process {number} thread {{i}}",)) for i in range({threads})]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
TAMPER = """
from django.db import connection
with connection.cursor() as cursor:
    if connection.vendor == "sqlite":
        cursor.execute("DROP TRIGGER audit_event_no_update")
    else:
        cursor.execute("ALTER TABLE audit_event DISABLE TRIGGER USER")
    cursor.execute("UPDATE audit_event SET name = 'somebody else' WHERE sequence = 100")
"""
REFUSED = """
from django.db import DatabaseError, connection
told = []
statements = ["UPDATE audit_event SET name = 'x'", "DELETE FROM audit_event"]
if connection.vendor == "postgresql":
    statements.append("TRUNCATE audit_event")
for statement in statements:
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        told.append("done")
    except DatabaseError as error:
        told.append("append-only" in str(error))
print(told)
"""


@pytest.fixture(scope="module", params=VENDORS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A database into which eight processes of two threads have appended at once."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    with database(request.param, folder=folder) as env:
        code = [APPEND.format(rounds=ROUNDS, threads=THREADS, number=number) for number in range(PROCESSES)]
        processes = [script_start(env, each) for each in code]
        for process in processes:
            _out, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
            assert "Traceback" not in errors, errors
        yield env


def verify(env: dict[str, str]) -> dict[str, object]:
    done = manage(env, "audit_verify", "--json", check=False)
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_processes_leave_one_unbroken_chain_with_every_event(loaded):
    report = verify(loaded)
    assert report["whole"], report
    assert report["checked"] == PROCESSES * THREADS * ROUNDS * 3


def test_the_database_refuses_update_delete_and_truncate(loaded):
    process = script_start(loaded, REFUSED)
    out, errors = process.communicate(timeout=60)
    assert set(json.loads(out.splitlines()[-1].lower())) == {True}, errors


def test_a_changed_event_is_named(loaded):
    process = script_start(loaded, TAMPER)
    _out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    report = verify(loaded)
    assert report["broken_at"] == 100
    assert "changed" in report["reason"]
    assert manage(loaded, "audit_verify", check=False).returncode == 1
