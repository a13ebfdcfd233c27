"""Notes in the audit trail that somebody looked at a study, once for each opening."""

from django.http import HttpRequest

from apps.accounts.api import actor_of
from apps.audit.api import AuditEvent, record
from apps.core import clock
from apps.radiology.models import Study

_KEY = "radiology_opened"
_REMEMBERED = 200


def opened(request: HttpRequest, study: Study, *, again: bool, verb: str = "study.read") -> None:
    """Record the reading of a study; with `again` False only if this session has not opened it before."""
    before = request.session.get(_KEY, [])
    if not again and study.pk in before:
        return
    if study.pk not in before:
        request.session[_KEY] = [*before, study.pk][-_REMEMBERED:]
    record(AuditEvent(actor=actor_of(request), verb=verb, object_type="study", object_id=study.uid, at=clock.now()))
