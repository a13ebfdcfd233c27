"""Fifty people ask for the next alert at once: on PostgreSQL each gets another one."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import pytest
from testkit.services import postgres_url

ROOT = Path(__file__).resolve().parents[2]
_CODE = """
import django
django.setup()
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from django.core.management import call_command
from django.db import connection
call_command("migrate", verbosity=0)
from apps.accounts.api import Actor
from apps.accounts.contracts import Role
from apps.accounts.services import user_ensure
from apps.core import clock
from apps.fraud.models import Alert, Card, Terminal, Transaction
from apps.fraud.services.alerts import alert_claim_next
at = clock.now()
card, terminal = Card.objects.create(token="t", display="C-0001"), Terminal.objects.create(key="1", name="T-0001")
people = [user_ensure(name=f"a{i}", role=Role.ANALYST, password="x-Pass-123456") for i in range(50)]
for i in range(50):
    row = Transaction.objects.create(source="s", external_id=str(i), at=at, card=card, terminal=terminal,
        amount_cents=i, currency="EUR", state="done", probability=0.5)
    Alert.objects.create(transaction=row, card=card, terminal=terminal, amount_cents=i, currency="EUR",
        probability=0.5, band=2, threshold=0.3, base_points=0, model_digest="d", scored_at=at, priority=i,
        opened_at=at - timedelta(hours=30 if i % 2 else 1))
gate = Barrier(50)
def claim(user):
    try:
        gate.wait()
        found = alert_claim_next(by=Actor(user_id=user.pk, name=user.username, role=user.role), at=at)
        return found.pk if found else None
    finally:
        connection.close()
with ThreadPoolExecutor(50) as pool:
    got = list(pool.map(claim, people))
print("DIFFERENT", len(set(got) - {None}), Alert.objects.filter(state="claimed").count())
"""


@pytest.fixture
def database():
    url = postgres_url()
    if url is None:
        pytest.skip("no postgres answers")
    name = f"assay_fraud_{uuid.uuid4().hex[:10]}"
    with psycopg.connect(url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield f"{url.rsplit('/', 1)[0]}/{name}"
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_fifty_threads_claim_fifty_alerts_all_different(tmp_path, database):
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "config.settings.test",
        "DATABASE_URL": database,
        "ASSAY_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _CODE], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert "DIFFERENT 50 50" in done.stdout, done.stderr[-2000:]
