"""The search of radiology, which leaves a trace in the audit trail as every read does."""

from datetime import datetime

from django.db import transaction

from apps.accounts.api import Actor
from apps.audit.api import AuditEvent, record
from apps.radiology import selectors


@transaction.atomic
def studies_search(*, text: str, by: Actor, at: datetime) -> selectors.Found:
    """Patients, studies and texts that hold the words; the search is recorded."""
    found = selectors.find(text=text, at=at)
    detail: dict[str, object] = {"query": text[:200], "rows": found.total}
    record(AuditEvent(actor=by, verb="radiology.search", object_type="studies", object_id="", at=at, detail=detail))
    return found
