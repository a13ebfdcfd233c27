"""Scores an alert again from what was stored with it, by the model that scored it, and compares."""

import math
from dataclasses import asdict, replace
from datetime import datetime

from django.db import transaction

from apps.accounts.api import Actor, system_actor
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError
from apps.engine.port import get_engine
from apps.fraud import jobs
from apps.fraud.models import Alert, AlertSnapshot, Transaction
from apps.fraud.services import scoring
from apps.fraud.services.scoring import engine_transaction
from apps.registry import api as registry
from ml_core.contracts import Score, ScoreRequest
from ml_core.errors import EngineError

_BEFORE_ENGINES = "torch int8"
TOLERANCE = 1e-6  # of a probability; batches of another size may differ in the last bits of a float32


@transaction.atomic
def recompute_ask(*, alert_id: int, by: Actor, at: datetime) -> Alert:
    """Have the gpu lane score an alert again."""
    alert = Alert.objects.get(pk=alert_id)
    AlertSnapshot.objects.filter(alert=alert).update(asked_at=at, outcome="", outcome_at=None, difference=None)
    jobs.enqueue_recompute(alert_id=alert.pk)
    record(AuditEvent(actor=by, verb="alert.recompute", object_type="alert", object_id=str(alert.pk), at=at))
    return alert


def alert_recompute(*, alert_id: int, at: datetime) -> AlertSnapshot:
    """Score again and write `identical`, `different` or why it could not be done into the alert's snapshot."""
    snapshot = AlertSnapshot.objects.select_related("alert__transaction__card", "alert__transaction__terminal").get(
        pk=alert_id
    )
    try:
        score = _score(snapshot)
    except (EngineError, AppError) as error:
        snapshot.outcome, snapshot.difference = error.code, None
    else:
        alert = snapshot.alert
        snapshot.difference = abs(score.probability - alert.probability)
        same = snapshot.difference <= TOLERANCE and _reasons_same(score, alert)
        snapshot.outcome = "identical" if same else "different"
    snapshot.outcome_at = at
    with transaction.atomic():
        snapshot.save(update_fields=["outcome", "outcome_at", "difference"])
        record(
            AuditEvent(
                actor=system_actor(name="recompute"),
                verb="alert.recomputed",
                object_type="alert",
                object_id=str(alert_id),
                at=at,
                detail={"outcome": snapshot.outcome, "difference": snapshot.difference},
            )
        )
    return snapshot


def _score(snapshot: AlertSnapshot) -> Score:
    alert = snapshot.alert
    rows = [
        *Transaction.objects.select_related("card", "terminal").filter(pk__in=snapshot.preceding),
        alert.transaction,
    ]
    rows.sort(key=lambda row: (row.at, row.pk))
    asked = []
    for row in rows:  # the truth as it stood then: verdicts that came later are no part of what the model saw
        label, known_at = snapshot.labels.get(str(row.pk), (None, None))
        given = engine_transaction(row, card=row.card.token, terminal=row.terminal.key)
        asked.append(replace(given, label=label, label_known_at=known_at))
    stored = scoring.states_unpack(bytes(snapshot.states))
    states = scoring.states_given(
        cards=sorted({row.card.token for row in rows}),
        terminals=sorted({row.terminal.key for row in rows}),
        before={key: (data, 0) for key, data in stored.items()},
    )
    model = registry.model_get(alert.model_digest).key
    result = get_engine().score(
        ScoreRequest(
            model=model,
            transactions=tuple(asked),
            states=states,
            explain_from=alert.threshold,
            engine=snapshot.engine or _BEFORE_ENGINES,
        )
    )
    return next(score for score in result.scores if score.transaction_id == scoring.engine_id(alert.transaction_id))


def _reasons_same(score: Score, alert: Alert) -> bool:
    now = [asdict(reason) for reason in score.reasons]
    if [(each["feature"], each["text"]) for each in now] != [(r["feature"], r["text"]) for r in alert.reasons]:
        return False
    pairs = zip(now, alert.reasons, strict=True)
    return all(math.isclose(a["points"], b["points"], abs_tol=100 * TOLERANCE) for a, b in pairs)
