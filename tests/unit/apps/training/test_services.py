"""Runs and their real child processes: start, follow, fail, lose, cancel, retry."""

import json
import os
import signal
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from testkit.people import make_actor
from testkit.runs import follow, process_wait, speaks_wait

from apps.audit.models import Event
from apps.core import clock
from apps.core.errors import NotAllowedError
from apps.registry import api as registry
from apps.training import api, rules
from apps.training.models import Note, Point, Run, RunState
from apps.training.services import children, following, runs
from ml_core.contracts import ModelKind

pytestmark = pytest.mark.django_db
ADMIN = make_actor()


def test_a_started_run_is_queued_and_on_record(start):
    run = start(epochs=2)
    assert (run.state, run.kind, run.attempt) == (RunState.QUEUED, ModelKind.FRAUD, 1)
    assert Event.objects.get().verb == "run.start"
    assert api.queue_counts() == {"open": 1, "runs": 1}


def test_an_unknown_recipe_is_refused():
    with pytest.raises(NotAllowedError):
        runs.run_start(recipe="nonsense", params={}, seed=0, by=ADMIN, at=clock.now())


def test_starting_sends_the_task_of_the_train_lane_on_commit(start, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        run = start(end="hang")
    run.refresh_from_db()
    assert run.state == RunState.RUNNING
    assert children.child_of(run) is not None


def test_launching_writes_spec_and_data_and_a_child_of_low_priority_in_its_own_session(launch):
    run = launch(end="hang")
    spec = json.loads((Path(run.folder) / "spec.json").read_text())
    assert spec["recipe"] == "fraud_dfad_small"
    assert spec["seed"] == 7
    assert (Path(run.folder) / spec["inputs"]["transactions"]).read_bytes() == b"rows"
    assert run.rows == 4321
    speaks_wait(run)
    assert children.child_of(run).nice() == min(19, os.nice(0) + 10)  # below this process, whatever its own is
    assert os.getsid(run.pid) == run.pid


def test_the_child_inherits_no_secret(launch, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hush")
    monkeypatch.setenv("DATABASE_URL", "postgres://hush")
    run = launch(end="hang")
    speaks_wait(run)
    environment = children.child_of(run).environ()
    assert not {"SECRET_KEY", "DATABASE_URL"} & set(environment)
    assert environment["OMP_NUM_THREADS"] == "1"


def test_a_task_that_is_delivered_twice_launches_one_child(launch):
    run = launch(end="hang")
    before = run.pid
    children.run_launch(run_id=run.pk, attempt=1, at=clock.now())
    run.refresh_from_db()
    assert run.pid == before


def test_a_task_of_an_earlier_attempt_launches_nothing(start):
    run = start()
    runs.run_cancel(run_id=run.pk, by=ADMIN, at=clock.now())
    runs.run_retry(run_id=run.pk, by=ADMIN, at=clock.now())
    children.run_launch(run_id=run.pk, attempt=1, at=clock.now())
    run.refresh_from_db()
    assert (run.state, run.attempt, run.pid) == (RunState.QUEUED, 2, None)


def test_a_window_without_labels_fails_the_run_and_says_so(start, monkeypatch):
    monkeypatch.setattr(children.fraud, "labelled_transactions_write", lambda **_: 0)
    run = start()
    children.run_launch(run_id=run.pk, attempt=1, at=clock.now())
    run.refresh_from_db()
    assert (run.state, run.error_code) == (RunState.FAILED, "no_data")
    assert "longer" in run.error


def test_a_finished_run_leaves_a_candidate_points_notes_and_metrics(launch):
    run = launch(steps=16)
    process_wait(run)
    follow(run)
    assert run.state == RunState.DONE
    assert registry.model_get(run.digest).state == "candidate"
    assert (run.step, run.steps, run.epoch, run.epochs, run.stage_index) == (16, 16, 3, 3, 3)
    points = Point.objects.filter(run=run).order_by("step")
    assert [point.step for point in points] == list(range(1, 17))
    assert points[0].align_token > points[0].align_layer > points[0].align_global > 0
    assert Note.objects.filter(run=run, kind=Note.Kind.EVAL).count() == 2
    assert run.metrics["candidate"]["ap"] == 0.748
    assert run.metrics["champion"] is None
    assert Event.objects.order_by("-sequence").first().verb == "run.finish"


def test_following_twice_reads_nothing_twice(launch):
    run = launch(steps=8)
    process_wait(run)
    follow(run)
    follow(run)
    assert Point.objects.filter(run=run).count() == 8
    assert Event.objects.filter(verb="run.finish").count() == 1


def test_events_that_come_in_parts_are_all_read_once(launch, monkeypatch):
    monkeypatch.setattr(rules, "READ_BYTES", 700)
    run = launch(steps=20)
    process_wait(run)
    for _ in range(40):
        follow(run)
    assert run.state == RunState.DONE
    assert list(Point.objects.filter(run=run).order_by("step").values_list("step", flat=True)) == list(range(1, 21))


def test_a_failed_run_tells_why(launch):
    run = launch(steps=2, end="fail")
    process_wait(run)
    follow(run)
    assert (run.state, run.error_code) == (RunState.FAILED, "run_failed")
    assert "no fraud in the window" in run.error


def test_a_child_that_is_killed_makes_the_run_lost(launch):
    run = launch(steps=2, end="beat")
    os.kill(run.pid, signal.SIGKILL)
    process_wait(run)
    follow(run)
    follow(run)  # the first pass reads what it still wrote
    assert (run.state, run.error_code) == (RunState.LOST, "process_gone")
    assert Event.objects.order_by("-sequence").first().verb == "run.lose"


def test_a_child_that_dies_leaves_its_last_words(launch):
    run = launch(steps=2, end="die")
    process_wait(run)
    follow(run)
    follow(run)
    assert run.state == RunState.LOST
    assert "out of memory" in run.error


def test_a_child_that_falls_silent_makes_the_run_lost_and_is_ended(launch, django_capture_on_commit_callbacks):
    run = launch(steps=2, end="hang")
    process = psutil.Process(run.pid)
    follow(run, at=clock.now() + timedelta(seconds=rules.STALE_S - 5))
    assert run.state == RunState.RUNNING
    with django_capture_on_commit_callbacks(execute=True):
        follow(run, at=clock.now() + timedelta(seconds=rules.STALE_S + 5))
    assert (run.state, run.error_code) == (RunState.LOST, "heartbeat_stale")
    assert children.child_of(run) is None
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_an_artifact_that_is_not_what_the_run_says_fails_the_run(launch):
    run = launch(steps=2)
    process_wait(run)
    (Path(run.folder) / "artifact" / "card.md").write_text("other")
    follow(run)
    assert (run.state, run.error_code, run.digest) == (RunState.FAILED, "artifact_invalid", "")


def test_cancelling_ends_the_child_and_once_more_changes_nothing(launch, django_capture_on_commit_callbacks):
    run = launch(end="beat")
    with django_capture_on_commit_callbacks(execute=True):
        runs.run_cancel(run_id=run.pk, by=ADMIN, at=clock.now())
    runs.run_cancel(run_id=run.pk, by=ADMIN, at=clock.now())
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED
    assert children.child_of(run) is None
    assert Event.objects.filter(verb="run.cancel").count() == 1


def test_a_finished_run_is_neither_cancelled_nor_retried(launch):
    run = launch(steps=1)
    process_wait(run)
    follow(run)
    for service in (runs.run_cancel, runs.run_retry):
        with pytest.raises(NotAllowedError):
            service(run_id=run.pk, by=ADMIN, at=clock.now())


def test_a_retried_run_starts_afresh_in_another_folder(launch):
    run = launch(steps=4, end="fail")
    process_wait(run)
    first = follow(run).folder
    runs.run_retry(run_id=run.pk, by=ADMIN, at=clock.now())
    children.run_launch(run_id=run.pk, attempt=2, at=clock.now())
    run.refresh_from_db()
    assert (run.state, run.attempt, run.step, run.error) == (RunState.RUNNING, 2, 0, "")
    assert run.folder != first


def test_a_run_that_waits_too_long_is_sent_again(start, django_capture_on_commit_callbacks):
    run = start(end="hang")
    with django_capture_on_commit_callbacks(execute=True):
        following.runs_follow(at=clock.now())
    run.refresh_from_db()
    assert run.state == RunState.QUEUED
    with django_capture_on_commit_callbacks(execute=True):
        following.runs_follow(at=clock.now() + timedelta(seconds=rules.REQUEUE_S + 1))
    run.refresh_from_db()
    assert run.state == RunState.RUNNING


def test_an_unknown_run_is_told():
    with pytest.raises(runs.RunNotFoundError):
        runs.run_cancel(run_id=99, by=ADMIN, at=clock.now())


def test_another_process_with_the_childs_number_is_not_taken_for_it(launch):
    run = launch(end="hang")
    Run.objects.filter(pk=run.pk).update(pid_started=run.pid_started - 100)
    run.refresh_from_db()
    assert children.child_of(run) is None
    assert children.child_gone(run)
    Run.objects.filter(pk=run.pk).update(pid_started=run.pid_started + 100)
