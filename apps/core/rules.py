"""How times, money, scores and spans are put into words; pure functions on plain data."""

from datetime import datetime

DAY_S = 86_400
_SIGNS = {"EUR": "€", "GBP": "£", "USD": "$", "JPY": "¥"}
_WHOLE = {"JPY", "KRW", "VND", "CLP", "ISK"}  # ISO 4217 currencies without minor units
_BANDS = ((0.9, 4, "critical"), (0.7, 3, "high"), (0.4, 2, "medium"), (0.0, 1, "low"))


def span_words(seconds: float) -> str:
    """A span as one unit: `48 s`, `12 min`, `5 h`, `3 d`."""
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min"
    if seconds < DAY_S:
        return f"{int(seconds // 3600)} h"
    return f"{int(seconds // DAY_S)} d"


def when_words(value: datetime, *, now: datetime) -> str:
    """A moment as it reads in a list: relative within a day, else day and month, with the year if it is another."""
    seconds = (now - value).total_seconds()
    if abs(seconds) < DAY_S:
        return f"in {span_words(-seconds)}" if seconds < -1 else span_words(abs(seconds))
    day = f"{value.day} {value:%b}"
    return f"{day} {value:%H:%M}" if value.year == now.astimezone(value.tzinfo).year else f"{day} {value.year}"


def moment_words(value: datetime) -> str:
    """A moment in full, to the second, with its zone."""
    return f"{value.day} {value:%b %Y, %H:%M:%S} {value.tzname() or ''}".rstrip()


def money_words(cents: int, *, currency: str) -> str:
    """Money with thousands separators and the currency behind it: `1,240.00 €`."""
    sign = _SIGNS.get(currency, currency)
    if currency in _WHOLE:
        return f"{cents:,} {sign}"
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100:,}.{abs(cents) % 100:02d} {sign}"


def band_of(probability: float) -> tuple[int, str]:
    """The risk band of a probability: its number 1..4 and its word."""
    for floor, number, word in _BANDS:
        if probability >= floor:
            return number, word
    raise ValueError(f"a probability lies in [0, 1], not {probability}")


def points_words(points: float) -> str:
    """Signed points with a real minus sign: `+41`, `−6`; less than one point keeps one digit, next to none is `0`."""
    if abs(points) < 0.05:
        return "0"
    shown = f"{abs(points):.1f}" if abs(points) < 0.95 else f"{abs(points):.0f}"
    return f"{'−' if points < 0 else '+'}{shown}"
