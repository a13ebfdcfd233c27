"""The scoring API on the real stack: web server, broker, worker; twenty at once are one row, a flood shares batches."""

import json
import sqlite3
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from testkit.scoring_stack import ROOT, ScoringStack

_SHIPPED = (ROOT / "ml_core" / "pretrained" / "fraud-student" / "manifest.json").is_file()


@pytest.fixture(scope="module")
def stack(tmp_path_factory, broker_url):
    home = tmp_path_factory.mktemp("stack")
    with ScoringStack(home=home, broker_url=broker_url, engine="local" if _SHIPPED else "fake") as running:
        for _ in range(30):  # the worker loads its model
            if send(running, "warm", key="warm")[0] == 200:
                break
        yield running


def send(stack, transaction_id, *, key="", card="1", amount=1_250):
    status, answer, _ = sent(stack, transaction_id, key=key, card=card, amount=amount)
    return status, answer


def sent(stack, transaction_id, *, key="", card="1", amount=1_250):
    """Status, answer, and the header that says where the time went."""
    body = {
        "transaction_id": transaction_id,
        "at": datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).isoformat(),
        "card": card,
        "terminal": "7",
        "amount_cents": amount,
    }
    headers = {"Authorization": f"Bearer {stack.key}", "Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = key
    request = urllib.request.Request(
        f"{stack.url}/api/v1/transactions/score", json.dumps(body).encode(), headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response), response.headers["Server-Timing"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers["Server-Timing"]


def rows(stack, query):
    with sqlite3.connect(next(stack.home.rglob("*.sqlite3"))) as database:
        return database.execute(query).fetchall()


def test_an_answer_comes_within_the_request(stack):
    status, answer = send(stack, "one")
    assert status == 200
    assert answer["state"] == "done"
    assert len(answer["model_digest"]) == 64


def test_an_answer_says_where_its_time_went(stack):
    status, _, timing = sent(stack, "timed")
    assert status == 200
    took = {name: float(ms) for name, ms in (part.split(";dur=") for part in timing.split(", "))}
    assert list(took) == ["queue", "store", "read", "features", "model", "reasons", "write", "reply", "total"]
    assert took["model"] > 0
    assert sum(took.values()) - took["total"] <= took["total"] + 1  # clocks of two processes
    status, _, timing = sent(stack, "timed", amount=1)
    assert (status, timing.partition(";")[0]) == (409, "total")


def test_twenty_at_once_with_one_key_are_one_row_and_one_answer(stack):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: send(stack, "twenty", key="k-20"), range(20)))
    bodies = {json.dumps(answer, sort_keys=True) for status, answer in answers if status == 200}
    assert len(bodies) == 1
    assert {status for status, _ in answers} <= {200, 202}
    assert rows(stack, "SELECT count(*) FROM fraud_transaction WHERE external_id = 'twenty'") == [(1,)]


def test_what_the_worker_refuses_comes_back_as_the_api_says_it(stack):
    send(stack, "refused", key="k-refused")
    status, answer = send(stack, "refused", amount=1)
    assert (status, answer["code"]) == (409, "conflict")
    status, answer = send(stack, "refused-2", key="k-refused")
    assert (status, answer["code"]) == (422, "idempotency_key_reused")
    assert rows(stack, "SELECT count(*) FROM fraud_transaction WHERE external_id LIKE 'refused%'") == [(1,)]


def test_while_the_worker_stands_still_the_row_is_stored_and_the_answer_is_202(stack):
    with stack.worker_suspended():
        status, answer = send(stack, "late", key="k-late")
        assert (status, answer["state"]) == (202, "queued")
        assert rows(stack, "SELECT state FROM fraud_transaction WHERE external_id = 'late'") == [("queued",)]
    status, again = send(stack, "late", key="k-late")
    assert (status, again["id"], again["state"]) == (200, answer["id"], "done")


def test_the_lean_handler_keeps_hosts_and_headers(stack):
    def refused(**headers):
        asked = urllib.request.Request(
            f"{stack.url}/api/v1/transactions/999999", headers={"X-API-Key": stack.key} | headers
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=20)
        return caught.value

    unknown = refused()
    assert unknown.code == 404
    assert unknown.headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in unknown.headers
    assert refused(Host="evil.example").code == 400


def test_requests_that_come_together_share_a_forward_pass(stack):
    with ThreadPoolExecutor(30) as pool:
        statuses = Counter(pool.map(lambda i: send(stack, f"flood-{i}", card=str(i))[0], range(120)))
    assert set(statuses) <= {200, 202}
    found = rows(stack, "SELECT detail_json FROM audit_event WHERE verb = 'transactions.score'")
    sizes = [json.loads(detail)["count"] for (detail,) in found]
    assert max(sizes) > 1, stack.log()[-2000:]


def test_the_importer_goes_through_the_worker_that_answers(stack, tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"{i},2026-05-01 10:{i % 60:02d}:00,{i % 9},{i % 5},{i}.50,0" for i in range(300)]
    header = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD"
    path.write_text("\n".join([header, *lines, "bad row"]))
    body = json.loads(stack.manage("fraud_import", str(path), "--json").splitlines()[-1])
    assert body["scored_by"] == "queue"
    assert (body["stored"], body["scored"], body["refused"]) == (300, 300, 1)
    assert body["rows"][0]["line"] == 302
