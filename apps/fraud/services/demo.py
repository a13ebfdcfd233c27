"""Demo data: a simulated bank's file moved so that it ends now, and older alerts judged by the demo analysts."""

import random
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from django.conf import settings

from apps.accounts.api import Actor
from apps.core.errors import AppError
from apps.fraud import rules, selectors
from apps.fraud.models import AlertPolicy
from apps.fraud.services import alerts

_WEEK = timedelta(days=7)
_OPEN_FOR = timedelta(days=5)  # younger alerts stay open
_THRESHOLD, _AGE_CAP_H = 0.15, 96


class SimulatorError(AppError):
    """The simulator ended with an error; the message holds its last line."""

    code = "simulator_failed"


def bank_file_make(*, path: Path, cards: int, days: int, seed: int, at: datetime) -> int:
    """Simulate a bank into `path`, whole weeks moved so that its last day is today; returns the rows kept.

    The simulator runs as a child process: the apps do not import the engine's data package.
    """
    raw = path.with_suffix(".raw.parquet")
    command = [sys.executable, "-m", "ml_core.data.bank", "--out", str(raw), "--cards", str(cards)]
    command += ["--days", str(days + 7), "--seed", str(seed)]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SimulatorError(f"the simulator ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    table = pq.read_table(raw)
    times = table["TX_DATETIME"].cast(pa.timestamp("s"))
    now = at.replace(tzinfo=None, microsecond=0)
    weeks = -((pc.max(times).as_py() - now) // _WEEK)  # the least that brings the last row to now or beyond
    moved = pc.add(times, pa.scalar(weeks * _WEEK, pa.duration("s")))
    table = table.set_column(table.schema.get_field_index("TX_DATETIME"), "TX_DATETIME", moved)
    table = table.filter(pc.less_equal(moved, pa.scalar(now, pa.timestamp("s"))))
    table = table.sort_by([("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")])
    pq.write_table(table, path, compression="zstd")
    raw.unlink()
    return int(table.num_rows)


def policy_set(*, at: datetime) -> None:
    """A low threshold and a long cap, so that a bank of few cards has a queue worth looking at."""
    AlertPolicy.objects.create(threshold=_THRESHOLD, age_cap_h=_AGE_CAP_H, at=at, by_name="demo")


def old_alerts_judge(*, analysts: Sequence[Actor], source: str, at: datetime, seed: int) -> int:
    """Have the demo analysts judge the alerts that are not of the last days, each some time after it opened.

    They follow the truth where the simulator's is known by now, and are unsure otherwise.
    """
    chance = random.Random(seed)
    judged = 0
    for alert in selectors.alerts_open_before(before=at - _OPEN_FOR, source=source):
        label = alert.transaction.label
        known = alert.transaction.label_known_at
        moment = min(alert.opened_at + timedelta(minutes=chance.randint(20, 600)), at)
        verdict = "unsure" if label is None or (known and known > at) else "fraud" if label else "genuine"
        if verdict == "unsure" and chance.random() < 0.6:
            verdict = "fraud" if label else "genuine"  # the cardholder was reached
        alerts.alert_dispose(
            alert_id=alert.pk,
            version=alert.version,
            verdict=verdict,
            reason_code=chance.choice(rules.REASON_CODES[verdict])[0],
            note="",
            by=chance.choice(analysts),
            at=moment,
        )
        judged += 1
    return judged
