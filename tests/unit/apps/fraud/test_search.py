"""The search of the fraud half: what it finds, five questions, hostile words, a constant number of queries."""

import pytest
from testkit.fraud import AT

from apps.audit.models import Event
from apps.fraud import rules
from apps.fraud.models import Alert, Card, Terminal, Transaction

pytestmark = pytest.mark.django_db
URL = "/fraud/search/"
NUMBER = "4539 1488 0343 6467"
HOSTILE = [
    "%", "_", "%%%", "\\", "'", '"', "''; DROP TABLE fraud_alert; --", "<script>alert(1)</script>",
    "{{ 7 }}", "é\u202e", "-1", "9" * 17,
]  # fmt: skip


@pytest.fixture(autouse=True)
def clock_stands(monkeypatch):
    monkeypatch.setattr("apps.core.clock.now", lambda: AT)


@pytest.fixture
def signed_in(client, person):
    def as_role(role: str = "analyst"):
        client.force_login(person(f"{role}-x", role))
        return client

    return as_role


@pytest.fixture
def numbered(alerts, settings):
    """Two alerts; the first one's card has a real number."""
    first, second = alerts(2)
    token = rules.card_token(NUMBER, key=settings.TOKEN_KEY)
    Card.objects.filter(pk=first.card_id).update(token=token, display=rules.card_display(NUMBER))
    return first, second


def page_of(client, text: str) -> str:
    response = client.get(URL, {"q": text}, follow=True)
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize("role", ["analyst", "senior_analyst", "auditor", "admin"])
def test_the_search_opens_for_readers_and_without_words_says_what_to_try(signed_in, role):
    assert "an alert by its number" in page_of(signed_in(role), "")
    assert not Event.objects.filter(verb="fraud.search").exists()


@pytest.mark.parametrize("role", ["radiologist", "integrator"])
def test_the_search_does_not_exist_for_strangers(signed_in, role):
    assert signed_in(role).get(URL, {"q": "1"}).status_code == 404


def test_somebody_signed_out_is_sent_to_the_sign_in_page(client):
    response = client.get(URL, {"q": "C-1"})
    assert response.status_code == 302
    assert response["Location"].startswith("/sign-in/")


def test_the_search_refuses_post(signed_in):
    assert signed_in().post(URL, {"q": "1"}).status_code == 405


def test_searching_twice_finds_the_same_and_is_recorded_twice(signed_in, alerts):
    alerts(2)
    client = signed_in()
    pages = [page_of(client, "T-0001"), page_of(client, "T-0001")]
    assert pages[0].count("data-open") == pages[1].count("data-open") == 2  # the alert and the terminal
    events = Event.objects.filter(verb="fraud.search")
    assert [event.detail["query"] for event in events] == ["T-0001"] * 2
    assert events[0].sentence == "analyst-x searched the alerts"


@pytest.mark.parametrize("words", ["alert {}", "#{}", "Alert #{}"])
def test_an_alert_by_its_number_opens_at_once(signed_in, alerts, words):
    _, alert = alerts(2)
    response = signed_in().get(URL, {"q": words.format(alert.pk)})
    assert response["Location"] == f"/fraud/alerts/{alert.pk}/"


def test_the_id_of_a_transaction_opens_its_alert(signed_in, alerts):
    alert, _ = alerts(2)
    Transaction.objects.filter(pk=alert.transaction_id).update(external_id="tx-77/a")
    assert signed_in().get(URL, {"q": "tx-77/a"})["Location"] == f"/fraud/alerts/{alert.pk}/"


def test_a_transaction_without_an_alert_is_shown_with_its_score(signed_in, alerts):
    alert, _ = alerts(2)
    Transaction.objects.filter(pk=alert.transaction_id).update(external_id="tx-77")
    alert.snapshot.delete()
    Alert.objects.filter(pk=alert.pk).delete()
    page = page_of(signed_in(), "tx-77")
    assert "tx-77" in page
    assert "none" in page


def test_a_bare_number_that_names_more_than_one_thing_lists_them_all(signed_in, alerts):
    first, second = alerts(2)
    Transaction.objects.filter(pk=first.transaction_id).update(external_id=str(second.pk))
    page = page_of(signed_in(), str(second.pk))
    assert f"/fraud/alerts/{first.pk}/" in page
    assert f"/fraud/alerts/{second.pk}/" in page


def test_cards_and_terminals_are_found_by_what_they_are_called_with_their_alerts(signed_in, alerts):
    _, alert = alerts(2)
    client = signed_in()
    for text in (alert.card.display, alert.card.display.lower(), alert.card.token[:12], alert.terminal.name):
        page = page_of(client, text)
        assert f"/fraud/alerts/{alert.pk}/" in page, text


def test_a_pasted_card_number_finds_its_card_and_stays_neither_in_the_address_nor_in_the_trail(signed_in, numbered):
    alert, other = numbered
    response = signed_in().get(URL, {"q": f" {NUMBER} "}, follow=True)
    address = response.redirect_chain[-1][0]
    page = response.content.decode()
    assert f"/fraud/alerts/{alert.pk}/" in page
    assert f"/fraud/alerts/{other.pk}/" not in page
    for digits in (NUMBER, NUMBER.replace(" ", "")):
        assert digits not in address
        assert digits not in page
        assert not Event.objects.filter(detail_json__contains=digits).exists()


@pytest.mark.parametrize("text", ["6467", "4539 14", "453914", "4539-14"])
def test_the_first_six_and_the_last_four_digits_find_a_card(signed_in, numbered, text):
    assert f"/fraud/alerts/{numbered[0].pk}/" in page_of(signed_in(), text)


def test_a_transaction_whose_id_looks_like_a_card_number_is_found(signed_in, alerts):
    alert, _ = alerts(2)
    Transaction.objects.filter(pk=alert.transaction_id).update(external_id=NUMBER.replace(" ", ""))
    response = signed_in().get(URL, {"q": NUMBER.replace(" ", "")})
    assert response["Location"] == f"/fraud/alerts/{alert.pk}/"


def test_nothing_found_says_so_and_what_to_try(signed_in, alerts):
    alerts(1)
    page = page_of(signed_in(), "no such thing")
    assert "Nothing found for “no such thing”" in page
    assert "an alert by its number" in page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_find_nothing_and_break_nothing(signed_in, alerts, text):
    alerts(2)
    page = page_of(signed_in(), text)
    assert "Nothing found for" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize("text", ["x" * 10_000, "4" * 10_000, "a\x00b"])
def test_words_beyond_the_limit_are_refused_by_name(signed_in, text):
    response = signed_in().get(URL, {"q": text})
    assert response.status_code == 422
    assert 'role="alert"' in response.content.decode()
    assert f'value="{"x" * 101}' not in response.content.decode()


def test_names_with_markup_are_escaped(signed_in, alerts):
    alerts(1)
    Terminal.objects.update(name="<b>evil</b>", category="<i>evil")
    page = page_of(signed_in(), "<b>ev")
    assert "<b>evil" not in page
    assert "&lt;b&gt;evil" in page


def test_a_group_is_cut_and_says_so(signed_in, alerts):
    alerts(25)
    page = page_of(signed_in(), "T-00")
    assert page.count("data-claim-url") == 20
    assert "there are more" in page


def test_the_search_asks_the_same_number_of_queries_for_three_alerts_and_for_sixty(
    signed_in, alerts, django_assert_max_num_queries
):
    client = signed_in()
    client.get(URL)
    for n in (3, 60):
        alerts(n)
        with django_assert_max_num_queries(23):
            client.get(URL, {"q": "C-0"})


def test_a_card_number_in_a_filter_of_the_queue_is_masked_in_the_trail(signed_in):
    signed_in().get("/fraud/", {"q": NUMBER})
    (event,) = Event.objects.filter(verb="queue.read")
    assert "1488" not in event.detail_json
    assert "6467" in event.detail_json


def test_the_box_stands_on_the_pages_of_the_half(signed_in):
    page = signed_in().get("/fraud/").content.decode()
    assert f'action="{URL}"' in page
    assert 'aria-label="Search card, terminal, alert"' in page
