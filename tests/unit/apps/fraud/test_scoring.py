"""Scoring: one transaction of the database, exactly one effect, frozen alerts, states that move on."""

import pytest
from testkit.fraud import AT

from apps.audit.models import Event
from apps.engine.port import get_engine
from apps.fraud.models import Alert, AlertSnapshot, EntityState, ScoreBatch, Transaction
from apps.fraud.services import bulk, recompute, requests, scoring
from ml_core.errors import InputError

pytestmark = pytest.mark.django_db
ROWS = [f"{i},2026-05-0{1 + i % 3} 10:00:00,{i % 4},{i % 2},{10 + i}.00,0" for i in range(12)]


def _everything():
    return [
        list(model.objects.order_by("pk").values())
        for model in (Transaction, Alert, AlertSnapshot, EntityState, ScoreBatch, Event)
    ]


def test_a_batch_delivered_twice_leaves_the_same_database(import_rows, every_score_alerts):
    import_rows(*ROWS)
    before = _everything()
    batch = ScoreBatch.objects.get()
    assert scoring.batch_score_next(batch_id=batch.pk, attempt=1, at=AT) is None
    scoring.transactions_score(ids=list(Transaction.objects.values_list("pk", flat=True)), at=AT)
    assert _everything() == before


def test_every_row_has_a_score_of_the_champion_and_the_batch_one_audit_event(import_rows, champion):
    import_rows(*ROWS)
    assert Transaction.objects.filter(state="done", model_digest=champion.digest).count() == 12
    assert Event.objects.filter(verb="transactions.score").count() == 1
    assert EntityState.objects.filter(kind="card").count() == 4
    assert EntityState.objects.filter(kind="terminal").count() == 2


def test_a_message_of_an_earlier_attempt_scores_nothing(import_rows, champion):
    import_rows(ROWS[0])
    row = Transaction.objects.get()
    Transaction.objects.update(state="queued", probability=None, attempt=2)
    requests.requests_score(wanted=[(row.pk, 1)], at=AT)
    assert Transaction.objects.get().state == "queued"
    requests.requests_score(wanted=[(row.pk, 2), (row.pk, 2)], at=AT)
    assert Transaction.objects.get().state == "done"


def test_one_transaction_that_the_engine_refuses_fails_alone(import_rows, champion, monkeypatch):
    import_rows(*ROWS[:3])
    Transaction.objects.update(state="queued", probability=None)
    bad, *good = list(Transaction.objects.order_by("pk").values_list("pk", flat=True))
    real = get_engine()

    class Picky:
        def score(self, request):
            if any(int(row.id) == bad for row in request.transactions):
                raise InputError("amount_cents: no")
            return real.score(request)

    monkeypatch.setattr(scoring, "get_engine", Picky)
    answers = {each.id: each for each in requests.requests_score(wanted=[(pk, 1) for pk in (bad, *good)], at=AT)}
    assert answers[bad].state == "failed"
    assert answers[bad].error == "input_invalid"
    assert {answers[pk].state for pk in good} == {"done"}


def test_a_state_that_moves_while_the_model_runs_makes_it_run_again(import_rows, champion, monkeypatch):
    import_rows(ROWS[0])
    Transaction.objects.update(state="queued", probability=None)
    real, calls = get_engine(), []

    class Meddled:
        def score(self, request):
            calls.append(request.states)
            if len(calls) == 1:
                token = request.transactions[0].card
                bulk.states_write([("card", token, request.states[0].data)])
            return real.score(request)

    monkeypatch.setattr(scoring, "get_engine", Meddled)
    scoring.transactions_score(ids=[Transaction.objects.get().pk], at=AT)
    assert len(calls) == 2
    assert Transaction.objects.get().state == "done"


def test_an_alert_keeps_what_was_known_when_another_model_is_promoted(alerts, champion):
    (alert,) = alerts(1)
    frozen = Alert.objects.values("reasons", "features", "counterfactuals", "model_digest", "probability").get()
    champion.state = "retired"
    champion.save()
    type(champion).objects.create(
        kind="fraud", digest="b" * 64, folder="/nowhere", name="next", state="champion", created_at=AT, created_by="t"
    )
    assert Alert.objects.values(*frozen).get(pk=alert.pk) == frozen


def test_recomputing_an_alert_from_its_snapshot_is_identical(import_rows, every_score_alerts):
    import_rows(*ROWS)
    for alert in Alert.objects.all():
        assert recompute.alert_recompute(alert_id=alert.pk, at=AT).outcome == "identical"


def test_recomputing_says_so_when_the_stored_score_was_changed(alerts):
    (alert,) = alerts(1)
    Alert.objects.update(probability=alert.probability / 2)
    assert recompute.alert_recompute(alert_id=alert.pk, at=AT).outcome == "different"


def test_an_alert_is_recomputed_by_the_engine_that_scored_it_or_not_at_all(alerts):
    (alert,) = alerts(1)
    assert alert.snapshot.engine == "fake"
    AlertSnapshot.objects.update(engine="onnxruntime int8")
    assert recompute.alert_recompute(alert_id=alert.pk, at=AT).outcome == "engine_missing"
    # alerts of before engines were kept are torch's
    AlertSnapshot.objects.update(engine="")
    assert recompute.alert_recompute(alert_id=alert.pk, at=AT).outcome == "engine_missing"
