"""Requests at the worker: each stored and scored once, a refusal harms nobody else, answers come under tokens."""

from dataclasses import replace

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from testkit.fraud import AT

from apps.audit.models import Event
from apps.fraud.contracts import Asked, ParsedTransaction, Refusal, ScoreAnswer
from apps.fraud.models import ApiRequest, Card, Transaction
from apps.fraud.services import arrivals, requests

pytestmark = pytest.mark.django_db


@pytest.fixture
def ask(person):
    """Makes a request: `ask("t-1", key="k", cents=500)`; tokens count up."""
    owners: dict[str, int] = {}
    count = iter(range(1_000))

    def make(name: str = "t-1", *, key: str = "", cents: int = 500, owner: str = "shop", sha: str = "") -> Asked:
        if owner not in owners:
            owners[owner] = person(owner, "integrator").pk
        row = ParsedTransaction(
            line=0, external_id=name, at=AT, card_token="c" * 64, card_display="4539 57•• •••• 1486",
            terminal_key="T-9", terminal_name="T-9", amount_cents=cents, currency="EUR",
        )  # fmt: skip
        return Asked(
            token=f"token-{next(count)}", owner_id=owners[owner], key=key, body_sha256=sha or f"{name}-{cents}", row=row
        )

    return make


def take(*asked):
    return requests.requests_take(asked=asked, wanted=[], at=AT)


def test_a_request_survives_the_message(ask):
    asked = ask(key="k")
    assert Asked.from_json(asked.as_json()) == asked


def test_what_came_together_is_scored_together_and_answered_by_token(ask, champion):
    asked = [ask(f"t-{i}") for i in range(5)]
    outcomes = take(*asked)
    assert set(outcomes) == {each.token for each in asked}
    assert {outcomes[each.token].transaction_id for each in asked} == {f"t-{i}" for i in range(5)}
    assert all(isinstance(each, ScoreAnswer) and each.state == "done" for each in outcomes.values())
    assert Event.objects.filter(verb="transactions.score").count() == 1
    assert Card.objects.count() == 1


def test_at_the_worker_the_disk_is_waited_for_with_the_score_or_with_the_promise_of_one(ask, champion, monkeypatch):
    with CaptureQueriesContext(connection) as scored:
        take(ask("t-1"))
    monkeypatch.setattr(requests.scoring, "transactions_score", lambda **_: None)
    with CaptureQueriesContext(connection) as left:
        outcomes = take(ask("t-2"))
    assert {each.state for each in outcomes.values()} == {"queued"}
    with CaptureQueriesContext(connection) as accepted:
        requests.request_accept(asked=ask("t-3"), at=AT)
    off, again = "SET LOCAL synchronous_commit TO OFF", 'UPDATE "fraud_transaction" SET "attempt"'
    found = [
        [any(each["sql"].startswith(text) for each in queries) for text in (off, again)]
        for queries in (scored, left, accepted)
    ]
    on_postgresql = connection.vendor == "postgresql"
    assert found == [[on_postgresql, False], [on_postgresql, on_postgresql], [False, False]]


@pytest.mark.parametrize("key", ["", "k"])
def test_the_same_request_twice_in_one_batch_is_one_row(ask, champion, key):
    first, second = ask(key=key), ask(key=key)
    outcomes = take(first, second)
    assert outcomes[first.token] == outcomes[second.token]
    assert Transaction.objects.count() == 1
    assert ApiRequest.objects.count() == (1 if key else 0)


@pytest.mark.parametrize("key", ["", "k"])
def test_the_same_request_in_a_later_batch_gets_the_first_answer(ask, champion, key):
    first, second = ask(key=key), ask(key=key)
    before, after = take(first)[first.token], take(second)[second.token]
    assert before == after
    assert Event.objects.filter(verb="transactions.score").count() == 1


@pytest.mark.parametrize("apart", [True, False])
def test_the_same_key_with_another_body_is_refused_and_the_rest_goes_on(ask, champion, apart):
    first, other, innocent = ask("t-1", key="k"), ask("t-2", key="k"), ask("t-3")
    if apart:
        take(first)
        outcomes = take(other, innocent)
    else:
        outcomes = take(first, other, innocent)
    assert outcomes[other.token] == Refusal(
        code="idempotency_key_reused", status=422, message="this Idempotency-Key was used before with another body"
    )
    assert outcomes[innocent.token].state == "done"
    assert not Transaction.objects.filter(external_id="t-2").exists()


@pytest.mark.parametrize("apart", [True, False])
def test_the_same_transaction_with_another_content_is_a_conflict(ask, champion, apart):
    first, other = ask(cents=500), ask(cents=501)
    outcomes = take(first) | take(other) if apart else take(first, other)
    assert (outcomes[other.token].code, outcomes[other.token].status) == ("conflict", 409)
    assert Transaction.objects.get().amount_cents == 500


def test_owners_do_not_meet(ask, champion):
    mine, theirs = ask(key="k", cents=500), ask(key="k", cents=700, owner="other")
    outcomes = take(mine, theirs)
    assert outcomes[mine.token].id != outcomes[theirs.token].id
    assert {row.source for row in Transaction.objects.all()} == {mine.source, theirs.source}


def test_a_key_that_comes_back_under_another_transaction_id_answers_for_the_first(ask, champion):
    first = ask("t-1", key="k", sha="same")
    again = replace(ask("t-1", key="k", sha="same"), token="again")
    assert take(first)[first.token] == take(again)["again"]


def test_what_another_process_stored_meanwhile_is_looked_up_again(ask, champion, monkeypatch):
    asked = ask()
    real, looks = arrivals._look_up, []

    def late(rows):
        found = real(rows)
        if not looks:
            Transaction.objects.create(
                source=asked.source, external_id="t-1", at=AT, amount_cents=500, currency="EUR", received_at=AT,
                card=Card.objects.create(token="c" * 64, display="x"),
                terminal=arrivals.bulk.Terminal.objects.create(key="T-9", name="T-9"),
            )  # fmt: skip
        looks.append(found)
        return found

    monkeypatch.setattr(arrivals, "_look_up", late)
    assert take(asked)[asked.token].state == "done"
    assert len(looks) == 2
    assert Transaction.objects.count() == 1


def test_the_web_process_stores_what_no_worker_answered_and_a_late_worker_finds_it(ask, champion):
    asked = ask(key="k")
    kept = requests.request_accept(asked=asked, at=AT)
    assert kept.state == "queued"
    assert Transaction.objects.get().received_at == AT
    assert take(asked)[asked.token].id == kept.id


def test_the_web_process_refuses_as_the_worker_does(ask, champion):
    take(ask(cents=500))
    with pytest.raises(requests.RequestRefusedError) as caught:
        requests.request_accept(asked=ask(cents=501), at=AT)
    assert (caught.value.code, caught.value.status) == ("conflict", 409)
