"""A worker that is wrongly set up is refused with every reason."""

from types import SimpleNamespace

import pytest
from celery import current_app
from django.db import OperationalError, connection

from config import workers
from config.limits import lane_of


def test_the_demos_workers_may_start():
    for lanes in (["io", "train"], ["cpu"], ["gpu"]):
        assert workers.faults_find(lanes=lanes, pool="prefork", concurrency=1) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lanes": []}, "no lane named"),
        ({"lanes": ["gpus"]}, "unknown lane gpus"),
        ({"lanes": ["io"], "pool": "solo"}, "must be prefork"),
        ({"lanes": ["gpu"], "concurrency": None}, "--concurrency=1"),
        ({"lanes": ["gpu", "io"]}, "a worker of its own"),
    ],
)
def test_a_wrong_option_is_named(options, reason):
    faults = workers.faults_find(**{"pool": "prefork", "concurrency": 1} | options)
    assert any(reason in fault for fault in faults)


def test_messages_must_not_come_back_while_their_task_still_runs(settings):
    settings.CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": max(settings.LANE_LIMIT_S.values())}
    faults = workers.faults_find(lanes=["io"], pool="prefork", concurrency=1)
    assert any("visibility_timeout" in fault for fault in faults)


def test_every_task_of_ours_has_the_limits_of_its_lane(settings):
    current_app.loader.import_default_modules()
    current_app.finalize()
    assert workers.task_faults_find(tasks=current_app.tasks) == []
    task = current_app.tasks["config.gpu.champions_load"]
    assert task.time_limit == settings.LANE_LIMIT_S["gpu"]
    assert task.soft_time_limit == 0.9 * task.time_limit


def test_a_task_without_a_lane_is_a_fault():
    class NoLane(SimpleNamespace):
        __module__ = "apps.fraud.tasks"

    faults = workers.task_faults_find(tasks={"fraud.score": NoLane(time_limit=1)})
    assert faults == ["task fraud.score does not say its lane: <app>.<lane>.<verb>"]


@pytest.mark.parametrize(
    ("name", "lane"), [("fraud.gpu.score", "gpu"), ("celery.backend_cleanup", None), ("a.b.c", None)]
)
def test_the_lane_is_the_middle_word(name, lane):
    assert lane_of(name) == lane


@pytest.fixture
def closed(monkeypatch):
    """How often a connection was closed, by a worker that ended a task just now (SQLite in memory would stay open)."""
    monkeypatch.setitem(workers._worker, "worked_at", 0.0)
    workers._on_task_end()
    connection.ensure_connection()
    calls: list[bool] = []
    monkeypatch.setattr(connection, "close", lambda: calls.append(True))
    yield calls
    connection.errors_occurred = False


@pytest.mark.django_db(transaction=True)
class TestConnectionsBetweenTasks:
    def test_a_connection_in_use_stays_open(self, closed):
        workers._on_task()
        assert closed == []

    def test_one_that_lay_idle_is_closed(self, closed, monkeypatch):
        monkeypatch.setitem(workers._worker, "worked_at", workers._worker["worked_at"] - workers.CONNECTION_IDLE_S - 1)
        workers._on_task()
        assert closed == [True]

    def test_one_that_met_an_error_is_closed(self, closed):
        with pytest.raises(OperationalError), connection.wrap_database_errors:
            raise connection.Database.OperationalError("the server went away")
        workers._on_task()
        assert closed == [True]


def test_celery_does_not_close_connections_itself():
    from config.celery import app

    assert app.conf.get("CELERY_DB_REUSE_MAX", 0) > 10**6
