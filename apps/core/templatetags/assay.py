"""Template tags of every page: times, money, risk, digests, points, spans."""

from datetime import UTC, datetime

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.core import clock, rules

register = template.Library()


@register.filter
def when(value: datetime | float | None) -> SafeString | str:
    """`<time>` with the relative time within a day and the exact moment in the user's zone on hover."""
    return _relative(value, behind="")


@register.filter
def ago(value: datetime | float | None) -> SafeString | str:
    """As `when`, for the middle of a sentence: `12 min ago`, but `12 May 14:05`."""
    return _relative(value, behind=" ago")


@register.filter
def moment(value: datetime | float | None) -> SafeString | str:
    """`<time>` with the exact moment in the user's zone."""
    if value is None or value == "":
        return "–"
    local = timezone.localtime(_moment(value))
    words = rules.moment_words(local)
    return format_html('<time datetime="{}" title="{}">{}</time>', local.isoformat(), words, words)


@register.filter
def money(cents: int | None, currency: str = "EUR") -> str:
    """`124000|money:"EUR"` → `1,240.00 €`."""
    return "–" if cents is None or cents == "" else rules.money_words(int(cents), currency=currency)


@register.simple_tag
def risk(probability: float | None) -> SafeString | str:
    """The risk of a probability: bars, the 0–100 score, and the band in words on hover and for screen readers."""
    if probability is None or probability == "":
        return "–"
    number, word = rules.band_of(float(probability))
    return format_html(
        '<span class="risk r{}" title="{}, probability {}"><i aria-hidden="true"><b></b><b></b><b></b><b></b></i>{}'
        '<span class="sr"> {}</span></span>',
        number,
        word,
        f"{float(probability):.3f}",
        round(float(probability) * 100),
        word,
    )


@register.filter
def short(digest: str | None) -> str:
    """The first eight characters of a digest."""
    return str(digest or "–")[:8]


@register.filter
def points(value: float | None) -> str:
    """Signed points of a score: `+41`, `−6`."""
    return "–" if value is None or value == "" else rules.points_words(float(value))


@register.filter
def percent(value: float | None, digits: int = 0) -> str:
    """A share as `62 %`."""
    return "–" if value is None or value == "" else f"{float(value) * 100:.{int(digits)}f} %"


@register.filter
def span(seconds: float | None) -> str:
    """A number of seconds in one unit: `48 s`, `12 min`."""
    return "–" if seconds is None or seconds == "" else rules.span_words(float(seconds))


def _relative(value: datetime | float | None, *, behind: str) -> SafeString | str:
    if value is None or value == "":
        return "–"
    local = timezone.localtime(_moment(value))
    now = clock.now()
    seconds = (now - local).total_seconds()
    behind = behind if -1 <= seconds < rules.DAY_S else ""
    return format_html(
        '<time datetime="{}" title="{}"{}>{}{}</time>',
        local.isoformat(timespec="seconds"),
        rules.moment_words(local),
        format_html(' data-live="{}"', behind) if abs(seconds) < rules.DAY_S else "",
        rules.when_words(local, now=now),
        behind,
    )


def _moment(value: datetime | float) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
