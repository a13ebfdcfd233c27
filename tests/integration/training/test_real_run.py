"""The real fraud recipe on a small simulated bank: import, run as a child process, candidate, promotion, champion."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from testkit.people import make_actor
from testkit.runs import follow, process_wait

from apps.core import clock
from apps.registry import api as registry
from apps.training.models import Note, Point, RunState
from apps.training.services import children, runs
from ml_core.contracts import ModelKind
from ml_core.data import bank

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
WAIT_S = 280


def test_a_run_of_the_real_recipe_becomes_champion(settings, tmp_path: Path):
    settings.RUNS_DIR, settings.MEDIA_ROOT = tmp_path / "runs", tmp_path / "private"
    bank.write_parquet(bank.simulate(seed=3, cards=250, terminals=500, days=45), tmp_path / "bank.parquet")
    call_command("fraud_import", str(tmp_path / "bank.parquet"), schema="bank", score="none")
    call_command("registry_sync")
    before = registry.champion(ModelKind.FRAUD).key.digest
    since = datetime(2026, 1, 1, tzinfo=UTC)
    run = runs.run_start(
        recipe="fraud_dfad_small",
        params={"epochs": 1, "teacher": "lightgbm", "student": "base"},
        seed=7,
        since=since,
        until=since + timedelta(days=45),
        by=make_actor(),
        at=clock.now(),
    )
    assert (sys.executable, "-m", "ml_core", "train") == children.COMMAND
    children.run_launch(run_id=run.pk, attempt=1, at=clock.now())
    run.refresh_from_db()
    process_wait(run, limit_s=WAIT_S)
    follow(run)
    assert run.state == RunState.DONE, run.error
    assert run.digest not in {"", before}
    assert run.champion_digest == before
    assert set(run.metrics["candidate"]) == set(run.metrics["champion"])
    assert Point.objects.filter(run=run).exclude(align_token=None).exists()
    assert Note.objects.filter(run=run, kind=Note.Kind.EVAL).exists()
    assert registry.model_get(run.digest).state == "candidate"
    assert registry.champion(ModelKind.FRAUD).key.digest == before
    registry.model_promote(digest=run.digest, by=make_actor(), at=clock.now())
    assert registry.champion(ModelKind.FRAUD).key.digest == run.digest
