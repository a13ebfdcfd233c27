"""What people do with alerts: claim, release, judge, undo, reopen, note. Every change asks for the version it saw."""

from datetime import datetime, timedelta

from django.db import transaction

from apps.accounts.api import Actor, Role, person_id
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError, ConflictError, NotAllowedError
from apps.fraud import rules, selectors
from apps.fraud.models import Alert, AlertNote, AlertState, Disposition, Transaction, Verdict
from apps.fraud.selectors import alerts as alert_selectors
from apps.fraud.selectors import queue as queue_selectors


class AlertInputError(AppError):
    """Something in the form is missing or must not be stored."""

    code = "input_invalid"
    status = 422


@transaction.atomic
def alert_claim(*, alert_id: int, by: Actor, at: datetime) -> Alert:
    """Take an alert for some minutes; claiming one's own again begins the minutes anew."""
    alert = _locked(alert_id)
    _refuse_closed(alert)
    _refuse_foreign(alert, by=by, at=at)
    return _claim(alert, by=by, at=at)


@transaction.atomic
def alert_claim_next(*, by: Actor, at: datetime) -> Alert | None:
    """Take the first free alert of the queue's order; two people never get the same one. None when nothing is free."""
    senior = by.role == Role.SENIOR_ANALYST
    alert = queue_selectors.next_free(at=at, age_cap_h=selectors.policy_now().age_cap_h, escalated=senior)
    return None if alert is None else _claim(alert, by=by, at=at)


@transaction.atomic
def alert_release(*, alert_id: int, by: Actor, at: datetime) -> Alert:
    """Give a claimed alert back to the queue."""
    alert = _locked(alert_id)
    if alert.state != AlertState.CLAIMED or alert.claimed_by_id != by.user_id:
        raise NotAllowedError("this alert is not claimed by you")
    alert.state, alert.claimed_by, alert.claim_expires_at = AlertState.NEW, None, None
    return _changed(alert, verb="alert.release", by=by, at=at)


@transaction.atomic
def alert_dispose(
    *, alert_id: int, version: int, verdict: str, reason_code: str, note: str, by: Actor, at: datetime
) -> Disposition:
    """Judge an alert: fraud, genuine and unsure close it, escalate hands it to a senior analyst.

    Raises ConflictError when the alert moved since `version`, NotAllowedError when another person holds it.
    """
    _check_verdict(verdict, reason_code)
    note = _checked_note(note)
    alert = _locked(alert_id)
    _refuse_version(alert, version)
    _refuse_closed(alert)
    _refuse_foreign(alert, by=by, at=at)
    scored = Transaction.objects.select_for_update().get(pk=alert.transaction_id)
    disposition = Disposition(
        alert=alert,
        verdict=verdict,
        reason_code=reason_code,
        note=note,
        by_id=person_id(by),
        at=at,
        prior_label=scored.label,
        prior_label_known_at=scored.label_known_at,
    )
    disposition.full_clean()
    disposition.save()
    if verdict in (Verdict.FRAUD, Verdict.GENUINE):
        scored.label, scored.label_known_at = verdict == Verdict.FRAUD, at
        scored.save(update_fields=["label", "label_known_at"])
    alert.claimed_by_id, alert.claim_expires_at = None, None
    if verdict == Verdict.ESCALATE:
        alert.state, alert.escalated = AlertState.NEW, True
    else:
        alert.state, alert.closed_at, alert.verdict = AlertState.CLOSED, at, verdict
    _changed(alert, verb=f"alert.{verdict}", by=by, at=at, detail={"reason": reason_code, "note": bool(note)})
    return disposition


@transaction.atomic
def alert_undo(*, alert_id: int, version: int, by: Actor, at: datetime) -> Alert:
    """Take back one's own last verdict within some minutes: the label is as it was, the alert is open and claimed."""
    alert = _locked(alert_id)
    _refuse_version(alert, version)
    last = alert_selectors.last_disposition(alert_id=alert.pk)
    if last is None or last.by_id != by.user_id:
        raise NotAllowedError("there is no verdict of yours to undo")
    if at - last.at > timedelta(minutes=rules.UNDO_MINUTES) or last.learned_at:
        raise NotAllowedError(f"a verdict can be undone for {rules.UNDO_MINUTES} minutes; reopen the alert instead")
    last.undone_at = at
    last.save(update_fields=["undone_at"])
    if last.verdict in (Verdict.FRAUD, Verdict.GENUINE):
        Transaction.objects.filter(pk=alert.transaction_id).update(
            label=last.prior_label, label_known_at=last.prior_label_known_at
        )
    if last.verdict == Verdict.ESCALATE:
        alert.escalated = False
    alert.closed_at, alert.verdict = None, ""
    return _claim(alert, by=by, at=at, verb="alert.undo")


@transaction.atomic
def alert_reopen(*, alert_id: int, version: int, by: Actor, at: datetime) -> Alert:
    """Open a closed alert again; its verdicts stay in the history, and a new one corrects the label."""
    alert = _locked(alert_id)
    _refuse_version(alert, version)
    if alert.state != AlertState.CLOSED:
        raise NotAllowedError("only a closed alert can be reopened")
    alert.closed_at, alert.verdict, alert.reopened = None, "", True
    return _claim(alert, by=by, at=at, verb="alert.reopen")


@transaction.atomic
def note_add(*, alert_id: int, text: str, by: Actor, at: datetime) -> AlertNote:
    """Leave a remark on an alert."""
    text = _checked_note(text)
    if not text:
        raise AlertInputError("the note is empty")
    note = AlertNote(alert=_locked(alert_id), text=text, by_id=person_id(by), at=at)
    note.full_clean()
    note.save()
    record(AuditEvent(actor=by, verb="alert.note", object_type="alert", object_id=str(alert_id), at=at))
    return note


def _claim(alert: Alert, *, by: Actor, at: datetime, verb: str = "alert.claim") -> Alert:
    alert.state, alert.claimed_by_id = AlertState.CLAIMED, by.user_id
    alert.claim_expires_at = at + timedelta(minutes=rules.CLAIM_MINUTES)
    return _changed(alert, verb=verb, by=by, at=at)


def _locked(alert_id: int) -> Alert:
    return Alert.objects.select_for_update(of=("self",)).select_related("claimed_by").get(pk=alert_id)


def _changed(alert: Alert, *, verb: str, by: Actor, at: datetime, detail: dict[str, object] | None = None) -> Alert:
    alert.version += 1
    alert.full_clean(validate_unique=False)
    alert.save(
        update_fields=[
            "state", "escalated", "reopened", "claimed_by", "claim_expires_at", "closed_at", "verdict", "version",
        ]
    )  # fmt: skip
    record(AuditEvent(actor=by, verb=verb, object_type="alert", object_id=str(alert.pk), at=at, detail=detail or {}))
    return alert


def _refuse_version(alert: Alert, version: int) -> None:
    if alert.version != version:
        raise ConflictError("somebody changed this alert while you were looking at it; this is how it stands now")


def _refuse_closed(alert: Alert) -> None:
    if alert.state == AlertState.CLOSED:
        raise ConflictError(f"this alert is closed already ({alert.verdict}); reopen it to judge it again")


def _refuse_foreign(alert: Alert, *, by: Actor, at: datetime) -> None:
    held = alert.state == AlertState.CLAIMED and alert.claim_expires_at is not None and alert.claim_expires_at > at
    if held and alert.claimed_by_id != by.user_id:
        minutes = int((alert.claim_expires_at - at).total_seconds() // 60) + 1  # type: ignore[operator]
        raise ConflictError(f"{alert.claimed_by} works on this alert; the claim ends in {minutes} min")


def _check_verdict(verdict: str, reason_code: str) -> None:
    codes = [code for code, _ in rules.REASON_CODES.get(verdict, ())]
    if not codes:
        raise AlertInputError("choose fraud, genuine, unsure or escalate")
    if reason_code not in codes:
        raise AlertInputError(f"choose a reason for {verdict}")


def _checked_note(note: str) -> str:
    note = note.strip()
    if len(note) > 2000:
        raise AlertInputError("a note has at most 2,000 characters")
    if rules.has_card_number(note):
        raise AlertInputError("the note holds a card number; write its last four digits instead")
    return note
