"""Health says which part fails."""

import pytest
from django.urls import reverse

from config import broker


@pytest.fixture
def on_real_broker(settings, broker_url):
    settings.CELERY_BROKER_URL = broker_url
    with broker.connect() as client:
        client.flushdb()
        yield client
        client.flushdb()


def test_live_asks_nothing(client):
    assert client.get(reverse("health_live")).json() == {"status": "ok"}


@pytest.mark.django_db
def test_ready_names_the_broker_when_it_is_away(client, settings, tmp_path):
    settings.CELERY_BROKER_URL = f"redis+socket://{tmp_path}/absent.sock"
    answer = client.get(reverse("health_ready"))
    assert answer.status_code == 503
    assert "broker" in answer.json()["failing"]
    assert answer.json()["parts"]["database"] == "ok"


@pytest.mark.django_db
def test_ready_names_every_lane_without_a_worker(client, on_real_broker):
    broker.heartbeat_write(hostname="io@test", lanes=["io", "train"])
    parts = client.get(reverse("health_ready")).json()["parts"]
    assert (parts["worker.io"], parts["worker.train"]) == ("ok", "ok")
    assert parts["worker.gpu"] == "no worker serves this lane"


def test_a_heartbeat_goes_stale_by_itself(on_real_broker):
    broker.heartbeat_write(hostname="io@test", lanes=["io"])
    assert 0 < on_real_broker.ttl("assay:worker:alive:io@test") <= broker.STALE_S


def test_workers_of_an_earlier_life_are_forgotten(on_real_broker, broker_url):
    broker.heartbeat_write(hostname="gpu@test", lanes=["gpu"])
    broker.models_write(hostname="gpu@test", models={"fraud": {"digest": "0" * 64}})
    assert broker.workers_read()["gpu@test"]["models"] == {"fraud": {"digest": "0" * 64}}
    broker.heartbeats_clear(broker_url)
    assert broker.workers_read() == {}
    assert on_real_broker.keys("assay:worker:*") == []


def test_health_is_for_reading_alone(client):
    assert client.post(reverse("health_live")).status_code == 405
