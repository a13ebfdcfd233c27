"""Verdicts become labels: in the rows at once, in the engine's states when they can no longer be undone."""

from collections import defaultdict
from datetime import datetime, timedelta

from django.db import transaction

from apps.accounts.api import system_actor
from apps.audit.api import AuditEvent, record
from apps.engine.port import get_engine
from apps.fraud import rules, selectors
from apps.fraud.models import Disposition
from apps.fraud.services import bulk
from apps.fraud.services.scoring import engine_id, states_given
from apps.registry import api as registry
from ml_core.contracts import Label, ModelKind

_BATCH = 500


def dispositions_learn(*, at: datetime) -> int:
    """Teach the states every verdict older than the time for undo; each is taught once. Returns how many."""
    learned = 0
    while count := _learn_some(at=at):
        learned += count
    return learned


@transaction.atomic
def _learn_some(*, at: datetime) -> int:
    due = list(selectors.dispositions_due(before=at - timedelta(minutes=rules.UNDO_MINUTES))[:_BATCH])
    if not due:
        return 0
    labels = []
    keys: dict[str, set[str]] = defaultdict(set)
    for disposition in due:
        scored = disposition.alert.transaction
        keys["card"].add(scored.card.token)
        keys["terminal"].add(scored.terminal.key)
        labels.append(
            Label(
                transaction_id=engine_id(scored.pk),
                at=int(scored.at.timestamp()),
                card=scored.card.token,
                terminal=scored.terminal.key,
                fraud=disposition.verdict == "fraud",
                known_at=int(disposition.at.timestamp()),
            )
        )
    cards, terminals = sorted(keys["card"]), sorted(keys["terminal"])
    bulk.states_lock(cards=cards, terminals=terminals)
    states = states_given(cards=cards, terminals=terminals, before=bulk.states_read(cards=cards, terminals=terminals))
    model = registry.champion(ModelKind.FRAUD).key
    changed = get_engine().learn_labels(model, states, tuple(labels))
    bulk.states_write([(state.kind.value, state.key, state.data) for state in changed])
    Disposition.objects.filter(pk__in=[each.pk for each in due]).update(learned_at=at)
    record(
        AuditEvent(
            actor=system_actor(name="labels"),
            verb="labels.learn",
            object_type="disposition",
            object_id=str(due[0].pk),
            at=at,
            detail={"count": len(due), "states": len(changed)},
        )
    )
    return len(due)
