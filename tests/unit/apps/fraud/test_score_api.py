"""The scoring API: keys, errors by field, idempotency, who may ask about what; no card number in any row."""

import json
from datetime import timedelta

import pytest
from testkit.fraud import actor

from apps.accounts import services as accounts
from apps.audit.models import Event
from apps.core import clock
from apps.fraud import tasks as registered_tasks  # noqa: F401  (a worker imports them; here eager calls need them)
from apps.fraud.models import Alert, ApiRequest, Card, Transaction

pytestmark = pytest.mark.django_db(transaction=True)
URL = "/api/v1/transactions/score"


@pytest.fixture
def secret(person):
    """Makes an integrator with a key."""

    def make(name: str = "shop", role: str = "integrator") -> str:
        user = person(name, role)
        return accounts.api_key_create(user=user, name="test", by=actor(user), at=clock.now())[1]

    return make


@pytest.fixture
def body():
    def make(**changes):
        at = (clock.now() - timedelta(minutes=1)).isoformat(timespec="seconds")
        return {
            "transaction_id": "t-1",
            "at": at,
            "card": "4539578763621486",
            "terminal": "T-9",
            "amount_cents": 12_050,
            "currency": "EUR",
        } | changes

    return make


@pytest.fixture
def send(client):
    def post(data, key, **headers):
        raw = data if isinstance(data, str) else json.dumps(data)
        headers = {"Authorization": f"Bearer {key}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return client.post(URL, raw, content_type="application/json", headers=headers)

    return post


def test_a_transaction_is_scored_within_the_request(send, secret, body, champion, every_score_alerts):
    response = send(body(), secret())
    answer = response.json()
    assert response.status_code == 200
    assert answer["state"] == "done"
    assert 0 <= answer["probability"] <= 1
    assert answer["score"] == round(100 * answer["probability"])
    assert answer["model_digest"] == champion.digest
    assert answer["alert_id"] == Alert.objects.get().pk


def test_the_card_number_is_in_no_row(send, secret, body, champion):
    send(body(), secret())
    rows = [list(model.objects.values()) for model in (Card, Transaction, ApiRequest, Event)]
    assert "4539578763621486" not in json.dumps(rows, default=str)
    assert Card.objects.get().display == "4539 57•• •••• 1486"


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}]
)
def test_without_a_valid_key_it_is_401_as_json(client, body, headers, db):
    response = client.post(URL, json.dumps(body()), content_type="application/json", headers=headers)
    assert response.status_code == 401
    assert response.json()["code"] == "unauthenticated"
    assert not Transaction.objects.exists()


def test_the_key_may_come_in_its_own_header(client, secret, body, champion):
    response = client.post(URL, json.dumps(body()), content_type="application/json", headers={"X-API-Key": secret()})
    assert response.status_code == 200


def test_a_key_of_an_analyst_is_no_key_for_scoring(send, secret, body):
    assert send(body(), secret("ann", "analyst")).status_code == 401


def test_get_is_refused(client, db):
    assert client.get(URL).status_code == 405


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount_cents": -1}, "amount_cents"),
        ({"amount_cents": "12.5"}, "amount_cents"),
        ({"amount_cents": 1.5}, "amount_cents"),
        ({"currency": "euro"}, "currency"),
        ({"at": "2026-05-01T10:00:00"}, "at"),
        ({"at": "2999-05-01T10:00:00Z"}, "at"),
        ({"card": ""}, "card"),
        ({"card": "a\u0000b"}, "card"),
        ({"transaction_id": "x" * 65}, "transaction_id"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_told_by_field(send, secret, body, changes, field):
    response = send(body(**changes), secret())
    assert response.status_code == 422
    assert any(field in name for name in response.json()["fields"])
    assert not Transaction.objects.exists()


@pytest.mark.parametrize("name", ["cvv", "CVC2", "pin"])
def test_security_codes_are_refused(send, secret, body, name):
    response = send(body(**{name: "123"}), secret())
    assert response.status_code == 422
    assert "refused" in json.dumps(response.json()["fields"])
    assert "123" not in response.content.decode()


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", '"x"', "\x00"])
def test_what_is_no_json_object_is_a_client_error(send, secret, raw):
    assert send(raw, secret()).status_code in (400, 422)


def test_the_same_key_and_body_give_the_same_answer_and_one_row(send, secret, body, champion):
    key, data = secret(), body()
    first, second = (send(data, key, Idempotency_Key="k-1") for _ in range(2))
    assert first.json() == second.json()
    assert Transaction.objects.count() == 1
    assert Event.objects.filter(verb="transactions.score").count() == 1


def test_the_same_key_with_another_body_is_422(send, secret, body, champion):
    key, data = secret(), body()
    send(data, key, Idempotency_Key="k-1")
    response = send(data | {"amount_cents": 1}, key, Idempotency_Key="k-1")
    assert response.status_code == 422
    assert response.json()["code"] == "idempotency_key_reused"


def test_the_same_transaction_with_another_content_is_a_conflict(send, secret, body, champion):
    key, data = secret(), body()
    send(data, key)
    assert send(data | {"amount_cents": 1}, key).status_code == 409
    assert Transaction.objects.get().amount_cents == 12_050


def test_two_integrators_do_not_see_each_other(client, send, secret, body, champion):
    one, two = secret("one"), secret("two")
    data = body()
    mine = send(data, one, Idempotency_Key="k").json()
    theirs = send(data | {"amount_cents": 1}, two, Idempotency_Key="k").json()
    assert mine["id"] != theirs["id"]
    get = lambda key, pk: client.get(f"/api/v1/transactions/{pk}", headers={"X-API-Key": key})  # noqa: E731
    assert get(one, mine["id"]).json() == mine
    assert get(two, mine["id"]).status_code == 404


def test_without_a_champion_the_row_is_kept_and_the_answer_is_202(send, secret, body, settings):
    settings.CELERY_TASK_EAGER_PROPAGATES = False
    from celery import current_app

    current_app.conf.task_eager_propagates = False
    try:
        response = send(body(), secret())
    finally:
        current_app.conf.task_eager_propagates = True
    assert response.status_code == 202
    assert response.json()["state"] == "queued"
    assert response.json()["status_url"].startswith("/api/v1/transactions/")
    assert Transaction.objects.get().state == "queued"


def test_the_description_of_the_api_names_the_endpoint_and_both_keys(client, db):
    described = client.get("/api/v1/openapi.json").json()
    assert "/api/v1/transactions/score" in described["paths"]
    assert {"_Bearer", "_Header"} <= set(described["components"]["securitySchemes"])
    page = client.get("/api/v1/docs").content.decode()
    assert "cdn" not in page
    assert "/static/ninja/swagger-ui-bundle.js" in page
