"""Reads of the audit trail: lists, pages by sequence for exports, and the verifier."""

from collections.abc import Iterator

from django.db.models import QuerySet

from apps.audit import rules
from apps.audit.contracts import ChainReport
from apps.audit.models import ChainHead, Event

PAGE_ROWS = 50
_CHUNK_ROWS = 2_000


def event_list() -> QuerySet[Event]:
    """All events, the newest first."""
    return Event.objects.order_by("-sequence")


def event_get(*, sequence: int) -> Event | None:
    """One event, or None."""
    return Event.objects.filter(pk=sequence).first()


def event_page(events: QuerySet[Event], *, before: int | None = None, rows: int = PAGE_ROWS) -> tuple[list[Event], int]:
    """One page, newest first, of events older than `before`; and the sequence to go on from (0: no older ones).

    By sequence, not by offset and count: the hundredth page of a million events costs as much as the first.
    """
    ordered = events.order_by("-sequence")
    page = list((ordered if before is None else ordered.filter(sequence__lt=before))[: rows + 1])
    return page[:rows], page[rows - 1].sequence if len(page) > rows else 0


def chain_length() -> int:
    """How many events the chain holds."""
    return ChainHead.objects.filter(pk=1).values_list("sequence", flat=True).first() or 0


def event_chunks(events: QuerySet[Event], *, rows: int = _CHUNK_ROWS) -> Iterator[list[Event]]:
    """The queryset, newest first, in lists of `rows`; each list is its own query, so nothing is held open between."""
    ordered = events.order_by("-sequence")
    before: int | None = None
    while True:
        page = ordered if before is None else ordered.filter(sequence__lt=before)
        chunk = list(page[:rows])
        if chunk:
            yield chunk
        if len(chunk) < rows:
            return
        before = chunk[-1].sequence


def chain_verify(*, start: int = 1, limit: int | None = None) -> ChainReport:
    """Check links from `start` on (at most `limit`) and, at the end, that the head agrees; streams, constant memory.

    The report names the first broken event: its content was changed, it is missing, or it does not follow on.
    A check that starts later than 1 trusts the event before `start`, which the call before has checked.
    """
    head = ChainHead.objects.filter(pk=1).first()
    total = head.sequence if head else 0
    previous = _hash_before(start)
    if previous is None:
        return ChainReport(checked=0, total=total, broken_at=start - 1, reason=f"event {start - 1} is missing")
    expected = start
    stop = None if limit is None else start + limit
    events = Event.objects.filter(sequence__gte=start).order_by("sequence")
    for event in events.iterator(chunk_size=_CHUNK_ROWS):
        if stop is not None and event.sequence >= stop and expected == stop:
            return ChainReport(checked=expected - start, total=total, next_sequence=stop)
        reason = _fault(event, expected=expected, previous=previous)
        if reason:
            broken_at = min(expected, event.sequence)
            return ChainReport(checked=expected - start, total=total, broken_at=broken_at, reason=reason)
        previous, expected = event.hash, event.sequence + 1
    return _end(head, checked=expected - start, last=expected - 1, last_hash=previous)


def _hash_before(start: int) -> str | None:
    if start <= 1:
        return rules.GENESIS
    return Event.objects.filter(sequence=start - 1).values_list("hash", flat=True).first()


def _fault(event: Event, *, expected: int, previous: str) -> str:
    if event.sequence > expected:
        return f"event {expected} is missing"
    if event.sequence < expected:
        return f"event {event.sequence} stands out of order"
    if event.previous_hash != previous:
        return f"event {event.sequence} does not follow on from event {event.sequence - 1}"
    if event.hash != rules.link_hash(previous_hash=previous, body=event.body):
        return f"event {event.sequence} was changed after it was written"
    return ""


def _end(head: ChainHead | None, *, checked: int, last: int, last_hash: str) -> ChainReport:
    if head is None:
        reason = "the chain's head is missing" if last else ""
        return ChainReport(checked=checked, total=last, broken_at=last if last else None, reason=reason)
    if head.sequence > last:
        reason = f"event {last + 1} is missing: the chain was cut off at its end"
        return ChainReport(checked=checked, total=head.sequence, broken_at=last + 1, reason=reason)
    if head.sequence == last and head.hash != last_hash:
        reason = f"the chain's head does not agree with event {last}"
        return ChainReport(checked=checked, total=head.sequence, broken_at=last, reason=reason)
    return ChainReport(checked=checked, total=max(head.sequence, last))
