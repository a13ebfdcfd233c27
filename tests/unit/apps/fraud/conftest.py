"""People, a champion, and a small file of transactions for the tests of the fraud app."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from testkit.fraud import AT

from apps.accounts.api import system_actor
from apps.fraud.models import Alert, AlertPolicy
from apps.fraud.services import imports, scoring
from apps.fraud.services.schemas import schema_load
from apps.registry.models import ModelVersion

HEADER = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD"


@pytest.fixture
def champion(db):
    """A registered fraud model that serves; the fake engine needs no folder."""
    return ModelVersion.objects.create(
        kind="fraud", digest="a81f42c0" * 8, folder="/nowhere", name="test", state="champion",
        created_at=AT, created_by="test",
    )  # fmt: skip


@pytest.fixture
def every_score_alerts(db):
    """A policy under which whatever the fake engine says opens an alert."""
    return AlertPolicy.objects.create(threshold=1e-9, age_cap_h=24, at=AT, by_name="test")


@pytest.fixture
def person(db):
    """Makes a user of a role: `person("analyst-1", "analyst")`."""

    def make(name: str, role: str = "analyst"):
        return get_user_model().objects.create_user(username=name, password="x-Pass-123456", role=role)

    return make


@pytest.fixture
def csv_file(tmp_path):
    """Writes rows under the Handbook's header: `csv_file("1,2026-05-01 10:00:00,1,1,10.00,0")`."""

    def write(*rows: str, name: str = "rows.csv", header: str = HEADER) -> Path:
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def import_rows(csv_file, champion):
    """Imports rows and scores them in this process; returns the report."""

    def run(*rows: str, at: datetime = AT, replay: bool = False, **options):
        return imports.file_import(
            csv_file(*rows, **options),
            schema=schema_load("handbook"),
            by=system_actor(name="test"),
            at=at,
            replay=replay,
            on_batch=lambda batch_id: scoring.batch_score_next(batch_id=batch_id, attempt=1, at=at),
        )

    return run


@pytest.fixture
def alerts(import_rows, every_score_alerts):
    """Makes n open alerts of n cards with growing amounts; the largest has the highest priority among equals."""

    def make(n: int, *, at: datetime = AT) -> list[Alert]:
        first = Alert.objects.count()
        rows = [
            f"{first + i},{at - timedelta(hours=1):%Y-%m-%d %H:%M:%S},{first + i},{i % 3},{10 + i}.00,"
            for i in range(n)
        ]
        import_rows(*rows, at=at, name=f"alerts-{first}.csv")
        return list(Alert.objects.order_by("pk")[first:])

    return make
