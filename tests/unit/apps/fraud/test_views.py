"""The analysts' pages: five questions a view, filters in the URL, hostile strings, a constant number of queries."""

import pytest
from testkit.fraud import AT

from apps.fraud.models import Alert, AlertNote, Disposition, SavedView, Terminal

pytestmark = pytest.mark.django_db
READ = ["/fraud/", "/fraud/closed/"]
WRITE = ["claim", "release", "verdict", "undo", "reopen", "notes"]


@pytest.fixture(autouse=True)
def clock_stands(monkeypatch):
    monkeypatch.setattr("apps.core.clock.now", lambda: AT)


@pytest.fixture
def signed_in(client, person):
    def as_role(role: str, name: str = ""):
        client.force_login(person(name or f"{role}-x", role))
        return client

    return as_role


@pytest.mark.parametrize("url", [*READ, "/fraud/mine/"])
def test_lists_open_for_an_analyst(signed_in, alerts, url):
    alerts(2)
    assert signed_in("analyst").get(url).status_code == 200


@pytest.mark.parametrize("url", READ)
@pytest.mark.parametrize("role", ["auditor", "admin", "senior_analyst"])
def test_lists_open_for_those_who_look_in(signed_in, url, role):
    assert signed_in(role).get(url).status_code == 200


@pytest.mark.parametrize("url", [*READ, "/fraud/mine/"])
@pytest.mark.parametrize("role", ["radiologist", "integrator"])
def test_lists_do_not_exist_for_strangers(signed_in, url, role):
    assert signed_in(role).get(url).status_code == 404


@pytest.mark.parametrize("url", [*READ, "/fraud/mine/", "/fraud/alerts/1/"])
def test_pages_send_somebody_signed_out_to_the_sign_in_page(client, url):
    response = client.get(url)
    assert response.status_code == 302
    assert "next=" in response["Location"]


@pytest.mark.parametrize("url", [*READ, "/fraud/mine/", "/fraud/alerts/1/"])
def test_pages_refuse_post(signed_in, url):
    assert signed_in("analyst").post(url).status_code == 405


@pytest.mark.parametrize("verb", [*WRITE, "recompute"])
def test_actions_refuse_get(signed_in, alerts, verb):
    (alert,) = alerts(1)
    assert signed_in("analyst").get(f"/fraud/alerts/{alert.pk}/{verb}/").status_code == 405


@pytest.mark.parametrize("verb", WRITE)
@pytest.mark.parametrize("role", ["auditor", "admin", "radiologist"])
def test_actions_do_not_exist_for_those_who_only_look(signed_in, alerts, verb, role):
    (alert,) = alerts(1)
    assert signed_in(role).post(f"/fraud/alerts/{alert.pk}/{verb}/").status_code == 404


@pytest.mark.parametrize("verb", [*WRITE, "recompute"])
def test_actions_on_no_alert_are_404(signed_in, verb):
    data = {"version": 1, "verdict": "fraud", "text": "x"}
    assert signed_in("analyst").post(f"/fraud/alerts/999/{verb}/", data).status_code == 404


def test_an_alert_shows_score_reasons_card_and_model(signed_in, alerts):
    (alert,) = alerts(1)
    page = signed_in("analyst").get(f"/fraud/alerts/{alert.pk}/").content.decode()
    assert alert.card.display in page
    assert alert.model_digest[:8] in page
    assert all(reason["text"] in page for reason in alert.reasons if "'" not in reason["text"])


def test_an_alert_that_does_not_exist_is_404(signed_in):
    assert signed_in("analyst").get("/fraud/alerts/999/").status_code == 404


def test_a_verdict_closes_the_alert_and_twice_is_a_conflict(signed_in, alerts):
    (alert,) = alerts(1)
    client = signed_in("analyst")
    data = {"version": alert.version, "verdict": "fraud", "reason_code": "fraud:stolen", "note": "rang back"}
    assert client.post(f"/fraud/alerts/{alert.pk}/verdict/", data).status_code == 302
    second = client.post(f"/fraud/alerts/{alert.pk}/verdict/", data)
    assert second.status_code == 409
    assert Disposition.objects.get().reason_code == "stolen"


def test_a_conflict_keeps_the_note_that_was_typed(signed_in, alerts):
    (alert,) = alerts(1)
    Alert.objects.update(version=7)
    data = {"version": 1, "verdict": "genuine", "reason_code": "", "note": "twenty minutes of work"}
    response = signed_in("analyst").post(f"/fraud/alerts/{alert.pk}/verdict/", data)
    assert response.status_code == 409
    assert "twenty minutes of work" in response.content.decode()
    assert "somebody changed this alert" in response.content.decode()


def test_claim_next_opens_the_first_free_alert(signed_in, alerts):
    alerts(2)
    first = Alert.objects.order_by("-priority", "id").first()
    assert signed_in("analyst").post("/fraud/next/")["Location"] == f"/fraud/alerts/{first.pk}/"


def test_claim_next_says_when_nothing_is_free(signed_in):
    response = signed_in("analyst").post("/fraud/next/", follow=True)
    assert "Nothing is free" in response.content.decode()


def test_filters_in_the_url_narrow_the_queue_and_bad_ones_are_named(signed_in, alerts):
    made = alerts(3)
    client = signed_in("analyst")
    page = client.get("/fraud/?amount_from=12&amount_to=12").content.decode()
    assert f"/fraud/alerts/{made[2].pk}/" in page
    assert f"/fraud/alerts/{made[0].pk}/" not in page
    assert "was left out" in client.get("/fraud/?older_than_h=soon").content.decode()


def test_search_finds_by_card_terminal_and_number(signed_in, alerts):
    made = alerts(3)
    client = signed_in("analyst")
    for text in (made[1].card.display, str(made[1].pk)):
        assert f"/fraud/alerts/{made[1].pk}/" in client.get("/fraud/", {"q": text}).content.decode()


def test_a_view_is_saved_and_deleted_by_its_owner_only(signed_in):
    client = signed_in("analyst", "a1")
    client.post("/fraud/views/", {"name": "Night", "query": "band=4&evil=1"})
    view = SavedView.objects.get()
    assert view.query == "band=4"
    assert signed_in("analyst", "a2").post(f"/fraud/views/{view.pk}/delete/").status_code == 404
    client.force_login(view.owner)
    assert client.post(f"/fraud/views/{view.pk}/delete/").status_code == 302
    assert client.post(f"/fraud/views/{view.pk}/delete/").status_code == 404


def test_the_queue_asks_the_same_number_of_queries_for_three_alerts_and_for_sixty(
    signed_in, alerts, django_assert_max_num_queries
):
    client = signed_in("analyst")
    client.get("/fraud/")
    for n in (3, 60):
        alerts(n)
        with django_assert_max_num_queries(21):
            client.get("/fraud/")


def test_htmx_gets_the_next_rows_alone(signed_in, alerts):
    alerts(60)
    response = signed_in("analyst").get("/fraud/?offset=50", headers={"HX-Request": "true"})
    page = response.content.decode()
    assert page.count("data-claim-url") == 10
    assert "<html" not in page


def test_hostile_strings_are_escaped_everywhere(signed_in, alerts):
    (alert,) = alerts(1)
    evil = "<script>alert(1)</script>"
    Terminal.objects.update(name=evil[:40], category=evil[:30])
    Alert.objects.update(main_reason=evil, reasons=[{"feature": evil, "text": evil, "points": 3.0}])
    client = signed_in("analyst")
    client.post(f"/fraud/alerts/{alert.pk}/notes/", {"text": evil})
    assert AlertNote.objects.get().text == evil
    for url in ("/fraud/", f"/fraud/alerts/{alert.pk}/"):
        assert evil not in client.get(url).content.decode()


def test_reading_an_alert_is_recorded(signed_in, alerts):
    from apps.audit.models import Event

    (alert,) = alerts(1)
    signed_in("auditor").get(f"/fraud/alerts/{alert.pk}/")
    event = Event.objects.get(verb="alert.read")
    assert (event.object_id, event.role) == (str(alert.pk), "auditor")
