"""The training pages."""

import pytest
from django.urls import reverse
from testkit.people import make_user
from testkit.runs import follow, process_wait

from apps.accounts.contracts import Role
from apps.audit.models import Event
from apps.core import clock
from apps.registry import api as registry
from apps.training.models import Run, RunState
from apps.training.services import children

pytestmark = pytest.mark.django_db
GOOD = {
    "recipe": "fraud_dfad_small",
    "since": "2026-03-01",
    "until": "2026-06-01",
    "teacher": "lightgbm",
    "student": "small",
    "epochs": "3",
    "seed": "7",
}
GETS = ("run_detail", "run_status", "run_charts")
POSTS = ("run_cancel", "run_retry")


@pytest.fixture
def admin(client):
    client.force_login(make_user(Role.ADMIN))
    return client


def url(name: str, run: Run | None = None) -> str:
    return reverse(f"training:{name}", args=[run.pk] if run else [])


def test_an_empty_list_says_what_to_do(admin):
    page = admin.get(url("run_list")).content.decode()
    assert "No run yet" in page
    assert url("run_new") in page


def test_the_list_shows_runs_and_its_filters_narrow_it(admin, start):
    run = start()
    assert f'href="{url("run_detail", run)}"' in admin.get(url("run_list")).content.decode()
    assert "No run fits" in admin.get(url("run_list"), {"state": "DONE"}).content.decode()
    assert "No run fits" in admin.get(url("run_list"), {"kind": "report"}).content.decode()


def test_the_list_asks_again_only_while_a_run_is_open(admin, start):
    run = start()
    rows = admin.get(url("run_list"), HTTP_HX_REQUEST="true").content.decode()
    assert "every 2s" in rows
    assert "<html" not in rows
    Run.objects.filter(pk=run.pk).update(state=RunState.CANCELLED)
    assert "every 2s" not in admin.get(url("run_list"), HTTP_HX_REQUEST="true").content.decode()


def test_the_list_costs_the_same_number_of_queries_however_long(admin, start, django_assert_max_num_queries):
    for _ in range(30):
        start()
    with django_assert_max_num_queries(20):
        admin.get(url("run_list"))


def test_starting_queues_a_run_and_opens_its_page(admin):
    answer = admin.post(url("run_new"), GOOD)
    run = Run.objects.get()
    assert answer.url == url("run_detail", run)
    assert (run.state, run.created_by, run.seed) == (RunState.QUEUED, "admin-1", 7)


def test_starting_twice_makes_two_runs_since_both_were_asked_for(admin):
    for _ in range(2):
        admin.post(url("run_new"), GOOD)
    assert Run.objects.count() == 2


def test_a_mistake_in_the_form_is_told_by_field_and_nothing_starts(admin):
    answer = admin.post(url("run_new"), GOOD | {"epochs": "0"})
    assert answer.status_code == 422
    assert "greater than or equal to 1" in answer.content.decode()
    assert not Run.objects.exists()


def test_a_running_run_shows_progress_stages_log_and_asks_again(admin, launch):
    run = launch(steps=16, end="beat")
    while run.step < 16:
        follow(run)
    page = admin.get(url("run_detail", run)).content.decode()
    for words in ("step 16 of 16", "✓ teacher", "● distilling", "1 more", "seed 7", "heartbeat", "every 2s", "4,321"):
        assert words in page
    assert Event.objects.order_by("-sequence").first().verb == "run.read"


def test_the_live_part_reloads_the_page_when_the_run_has_ended(admin, start):
    run = start()
    ask = url("run_status", run) + "?attempt=1"
    assert "HX-Refresh" not in admin.get(ask).headers
    Run.objects.filter(pk=run.pk).update(state=RunState.CANCELLED)
    assert admin.get(ask).headers["HX-Refresh"] == "true"


def test_the_charts_have_the_points_of_the_present_attempt(admin, launch):
    run = launch(steps=16, end="fail")
    process_wait(run)
    follow(run)
    charts = {chart["key"]: chart for chart in admin.get(url("run_charts", run)).json()["charts"]}
    assert charts["loss"]["steps"] == list(range(1, 17))
    assert charts["align"]["names"] == ["token", "layer", "global"]
    assert charts["validation"]["steps"] == [8, 16]
    assert charts["validation"]["series"][0][-1] == pytest.approx(0.75)
    assert len(charts["lr"]["series"][0]) == 16
    Run.objects.filter(pk=run.pk).update(attempt=2)
    assert admin.get(url("run_charts", run)).json()["charts"][0]["steps"] == []


def test_a_finished_run_shows_candidate_beside_champion_and_leads_to_promotion(admin, launch, tmp_path):
    run = launch(steps=2)
    process_wait(run)
    follow(run)
    page = admin.get(url("run_detail", run)).content.decode()
    assert reverse("registry:model_promote", args=[run.digest]) in page
    assert "no champion to compare with" in page
    admin.post(reverse("registry:model_promote", args=[run.digest]))
    assert registry.champion(registry.model_get(run.digest).key.kind).key.digest == run.digest
    assert "serves now" in admin.get(url("run_detail", run)).content.decode()
    second = launch(steps=2)
    process_wait(second)
    follow(second)
    page = admin.get(url("run_detail", second)).content.decode()
    assert "same held-out rows" in page
    assert "+0.007" in page


def test_why_a_run_failed_is_on_its_page(admin, launch):
    run = launch(steps=2, end="fail")
    process_wait(run)
    follow(run)
    page = admin.get(url("run_detail", run)).content.decode()
    assert "no fraud in the window" in page
    assert url("run_retry", run) in page


def test_cancelling_twice_is_cancelling_once(admin, start):
    run = start()
    for _ in range(2):
        assert admin.post(url("run_cancel", run)).url == url("run_detail", run)
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED
    assert Event.objects.filter(verb="run.cancel").count() == 1


def test_retrying_queues_another_attempt_and_twice_is_told(admin, start):
    run = start()
    admin.post(url("run_cancel", run))
    admin.post(url("run_retry", run))
    run.refresh_from_db()
    assert (run.state, run.attempt) == (RunState.QUEUED, 2)
    assert "only one that ended" in admin.post(url("run_retry", run), follow=True).content.decode()
    run.refresh_from_db()
    assert run.attempt == 2


def test_hostile_text_of_a_child_is_escaped(admin, start):
    run = start()
    Run.objects.filter(pk=run.pk).update(state=RunState.FAILED, error="<script>alert(1)</script>", stage="<b>")
    assert "<script>alert" not in admin.get(url("run_detail", run)).content.decode()


def test_a_run_that_does_not_exist_is_not_found(admin):
    for name in GETS:
        assert admin.get(reverse(f"training:{name}", args=[999])).status_code == 404
    for name in POSTS:
        assert admin.post(reverse(f"training:{name}", args=[999])).status_code == 404


def test_the_wrong_method_is_refused(admin, start):
    run = start()
    assert [admin.post(url(name, run)).status_code for name in GETS] == [405] * 3
    assert [admin.get(url(name, run)).status_code for name in POSTS] == [405] * 2
    assert admin.post(url("run_list")).status_code == 405
    assert admin.delete(url("run_new")).status_code == 405


def test_who_is_signed_out_is_sent_to_sign_in(client, start):
    run = start()
    answers = [client.get(url(name, run)) for name in GETS] + [client.post(url(name, run)) for name in POSTS]
    answers += [client.get(url("run_list")), client.post(url("run_new"), GOOD)]
    assert all(answer.url.startswith(reverse("accounts:sign_in")) for answer in answers)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_a_stranger_finds_nothing_and_changes_nothing(client, start, role):
    run = start()
    client.force_login(make_user(role))
    answers = [client.get(url(name, run)) for name in GETS] + [client.post(url(name, run)) for name in POSTS]
    answers += [client.get(url("run_list")), client.post(url("run_new"), GOOD)]
    assert {answer.status_code for answer in answers} == {404}
    run.refresh_from_db()
    assert (run.state, Run.objects.count()) == (RunState.QUEUED, 1)


def test_the_time_left_is_told_at_the_pace_so_far(admin, launch):
    run = launch(steps=16, end="beat")
    while run.step < 16:
        follow(run)
    Run.objects.filter(pk=run.pk).update(step=8, first_step_at=clock.now() - (clock.now() - run.started_at) * 100)
    assert " left" in admin.get(url("run_status", run) + "?attempt=1").content.decode()
    assert children.child_of(run) is not None
