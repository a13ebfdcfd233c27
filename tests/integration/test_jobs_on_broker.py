"""Tasks on a real broker: each goes to the queue of its lane; a broker that is away fails nobody's request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).resolve().parents[2]
_CODE = """
import django
django.setup()
from apps.core.jobs import enqueue
enqueue("fraud.gpu.no_such_task", id=7)
print("kept")
"""


def enqueue_in_child(tmp_path: Path, url: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "config.settings.test",
        "REDIS_URL": url,
        "ASSAY_HOME": str(tmp_path),
        "LOG_FORMAT": "json",
    }
    env.pop("DATABASE_URL", None)
    return subprocess.run(
        [sys.executable, "-c", _CODE], env=env, capture_output=True, text=True, check=True, timeout=60
    )


@pytest.fixture
def queues(broker_url):
    client = redis.Redis.from_url(broker_url.replace("redis+socket://", "unix://", 1))
    client.delete("gpu")
    yield client
    client.delete("gpu")
    client.close()


def test_a_task_goes_to_the_queue_of_its_lane(tmp_path, broker_url, queues):
    enqueue_in_child(tmp_path, broker_url)
    message = json.loads(queues.lindex("gpu", 0))
    assert message["headers"]["task"] == "fraud.gpu.no_such_task"
    assert queues.llen("gpu") == 1


def test_a_broker_that_is_away_is_logged_and_fails_nothing(tmp_path):
    done = enqueue_in_child(tmp_path, f"redis+socket://{tmp_path}/absent.sock")
    assert "kept" in done.stdout
    logged = [json.loads(line) for line in done.stderr.splitlines() if "task_not_sent" in line]
    assert logged[0]["task"] == "fraud.gpu.no_such_task"
