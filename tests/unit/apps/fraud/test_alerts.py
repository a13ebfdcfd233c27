"""What people do with alerts: claims never collide, verdicts need the version they saw, undo puts everything back."""

from datetime import timedelta

import pytest
from testkit.fraud import AT, actor

from apps.audit.models import Event
from apps.core.errors import ConflictError, NotAllowedError
from apps.fraud.contracts import QueueFilter
from apps.fraud.models import Alert, Disposition, EntityState, Transaction
from apps.fraud.selectors import queue
from apps.fraud.services import alerts as services
from apps.fraud.services import labels

pytestmark = pytest.mark.django_db


def _dispose(alert, by, *, verdict="fraud", version=None, at=AT, note=""):
    codes = {"fraud": "confirmed", "genuine": "habit", "unsure": "thin", "escalate": "ring"}
    return services.alert_dispose(
        alert_id=alert.pk,
        version=alert.version if version is None else version,
        verdict=verdict,
        reason_code=codes[verdict],
        note=note,
        by=actor(by),
        at=at,
    )


def test_two_people_never_get_the_same_alert(alerts, person):
    alerts(4)
    people = [actor(person(f"a{i}")) for i in range(5)]
    got = [services.alert_claim_next(by=by, at=AT) for by in people]
    assert len({alert.pk for alert in got if alert}) == 4
    assert got[4] is None


def test_a_claim_ends_after_its_minutes(alerts, person):
    (alert,) = alerts(1)
    first, second = person("a1"), person("a2")
    services.alert_claim(alert_id=alert.pk, by=actor(first), at=AT)
    with pytest.raises(ConflictError, match="a1 works on this alert; the claim ends in 15 min"):
        services.alert_claim(alert_id=alert.pk, by=actor(second), at=AT + timedelta(minutes=1))
    services.alert_claim(alert_id=alert.pk, by=actor(second), at=AT + timedelta(minutes=15))
    assert Alert.objects.get().claimed_by == second


def test_the_second_of_two_verdicts_gets_a_conflict_and_the_first_stays(alerts, person):
    (alert,) = alerts(1)
    first, second = person("a1"), person("a2")
    _dispose(alert, first)
    with pytest.raises(ConflictError):
        _dispose(alert, second, verdict="genuine")
    assert Disposition.objects.get().by == first
    assert Alert.objects.get().verdict == "fraud"


def test_a_verdict_labels_the_transaction_and_undo_takes_the_label_back(alerts, person):
    (alert,) = alerts(1)
    by = person("a1")
    _dispose(alert, by)
    assert Transaction.objects.get().label is True
    closed = Alert.objects.get()
    assert closed.state == "closed"
    services.alert_undo(alert_id=alert.pk, version=closed.version, by=actor(by), at=AT + timedelta(minutes=14))
    assert Transaction.objects.get().label is None
    assert Alert.objects.get().state == "claimed"
    assert Disposition.objects.get().undone_at is not None


def test_nobody_undoes_for_another_nor_after_the_time(alerts, person):
    (alert,) = alerts(1)
    by, other = person("a1"), person("a2")
    _dispose(alert, by)
    version = Alert.objects.get().version
    with pytest.raises(NotAllowedError):
        services.alert_undo(alert_id=alert.pk, version=version, by=actor(other), at=AT)
    with pytest.raises(NotAllowedError, match="reopen"):
        services.alert_undo(alert_id=alert.pk, version=version, by=actor(by), at=AT + timedelta(minutes=16))


def test_escalating_keeps_the_alert_open_for_a_senior_analyst_only(alerts, person):
    (alert,) = alerts(1)
    _dispose(alert, person("a1"), verdict="escalate")
    assert services.alert_claim_next(by=actor(person("a2")), at=AT) is None
    assert services.alert_claim_next(by=actor(person("s1", "senior_analyst")), at=AT).pk == alert.pk


def test_reopening_keeps_the_history_and_a_new_verdict_corrects_the_label(alerts, person):
    (alert,) = alerts(1)
    by = person("a1")
    _dispose(alert, by)
    reopened = services.alert_reopen(
        alert_id=alert.pk, version=Alert.objects.get().version, by=actor(by), at=AT + timedelta(days=2)
    )
    _dispose(reopened, by, verdict="genuine", at=AT + timedelta(days=2))
    assert Transaction.objects.get().label is False
    assert Disposition.objects.count() == 2


def test_a_note_with_a_card_number_is_refused(alerts, person):
    (alert,) = alerts(1)
    with pytest.raises(services.AlertInputError, match="card number"):
        _dispose(alert, person("a1"), note="card 4539 5787 6362 1486 is stolen")


def test_a_verdict_teaches_the_states_once_when_it_can_no_longer_be_undone(alerts, person):
    (alert,) = alerts(1)
    _dispose(alert, person("a1"))
    before = dict(EntityState.objects.values_list("pk", "version"))
    assert labels.dispositions_learn(at=AT + timedelta(minutes=14)) == 0
    assert labels.dispositions_learn(at=AT + timedelta(minutes=15)) == 1
    assert labels.dispositions_learn(at=AT + timedelta(minutes=16)) == 0
    after = dict(EntityState.objects.values_list("pk", "version"))
    assert all(after[pk] <= version + 1 for pk, version in before.items())
    assert Event.objects.filter(verb="labels.learn").count() == 1


def test_alerts_past_the_cap_come_first_oldest_first_then_by_risk_times_amount(alerts):
    made = alerts(6)
    Alert.objects.filter(pk=made[0].pk).update(opened_at=AT - timedelta(hours=25))
    Alert.objects.filter(pk=made[1].pk).update(opened_at=AT - timedelta(hours=30))
    page = queue.page(wanted=QueueFilter(), user_id=None, at=AT, age_cap_h=24, offset=0)
    assert [alert.pk for alert in page.alerts[:2]] == [made[1].pk, made[0].pk]
    rest = [alert.priority for alert in page.alerts[2:]]
    assert rest == sorted(rest, reverse=True)
    assert (page.total, page.lifted) == (6, 2)


def test_no_alert_waits_past_the_cap_while_people_work(alerts, person):
    """Simulation: new, larger alerts keep coming; one that is old is taken before any of them."""
    (small,) = alerts(1)
    Alert.objects.filter(pk=small.pk).update(opened_at=AT - timedelta(hours=24), priority=0)
    alerts(5, at=AT)
    assert services.alert_claim_next(by=actor(person("a1")), at=AT).pk == small.pk


def test_pages_follow_each_other_without_gap_or_repeat(alerts, monkeypatch):
    monkeypatch.setattr(queue, "PAGE_ROWS", 3)
    made = alerts(8)
    Alert.objects.filter(pk__in=[a.pk for a in made[:4]]).update(opened_at=AT - timedelta(hours=30))
    seen, offset = [], 0
    while offset is not None:
        page = queue.page(wanted=QueueFilter(), user_id=None, at=AT, age_cap_h=24, offset=offset)
        seen += [alert.pk for alert in page.alerts]
        offset = page.next_offset
    assert sorted(seen) == sorted(alert.pk for alert in made)
    assert len(seen) == len(set(seen))
