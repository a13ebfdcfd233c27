"""Money, card numbers, priorities, what makes a rule hit: pure functions on plain data."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from apps.fraud.contracts import RuleHit

LABEL_DELAY = timedelta(days=7)
DEFAULT_THRESHOLD = 0.3
DEFAULT_AGE_CAP_H = 24
CLAIM_MINUTES = 15
UNDO_MINUTES = 15
MAX_AMOUNT_CENTS = 10**12
REASON_CODES: dict[str, tuple[tuple[str, str], ...]] = {
    "fraud": (
        ("confirmed", "cardholder denies it"),
        ("stolen", "card reported stolen"),
        ("terminal", "terminal compromised"),
        ("pattern", "known pattern"),
    ),
    "genuine": (
        ("confirmed", "cardholder confirms it"),
        ("habit", "fits the card's habit"),
        ("travel", "travel"),
        ("merchant", "merchant explains it"),
    ),
    "unsure": (("no_contact", "cardholder not reached"), ("thin", "too little to tell")),
    "escalate": (("amount", "amount above my limit"), ("ring", "part of something larger"), ("advice", "want advice")),
}

_PAN = re.compile(r"(?<!\d)(?:\d[ -]?){11,18}\d(?!\d)")
_ALERT = re.compile(r"(?P<word>#|alert\s+#?)?(?P<number>[0-9]{1,17})", re.IGNORECASE)
_CVV_NAMES = {"cvv", "cvv2", "cvc", "cvc2", "cid", "cav2", "cardsecuritycode", "securitycode", "pin", "pinblock"}
_NIGHT_HOURS = range(7)


def money_cents(value: object) -> int:
    """Whole cents of an amount in units; half a cent goes up, away from zero.

    A float is read by its shortest decimal form, so 1108.8500000000001 and 1108.85 are the same 110885 cents.
    Raises ValueError with a sentence.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError(f"amount is not a number: {value!r}")
    try:
        amount = Decimal(str(value).strip())
    except InvalidOperation as error:
        raise ValueError(f"amount is not a number: {str(value)[:40]!r}") from error
    if not amount.is_finite():
        raise ValueError(f"amount is not finite: {value}")
    if amount < 0:
        raise ValueError(f"amount is negative: {amount}")
    if amount * 100 > MAX_AMOUNT_CENTS:
        raise ValueError(f"amount is above {MAX_AMOUNT_CENTS // 100}: {amount}")
    return int((amount * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def card_token(card_id: str, *, key: str) -> str:
    """The token that stands for a card: HMAC-SHA256 of its id without spaces and dashes, 64 hex digits."""
    plain = card_id.strip()
    if _PAN.fullmatch(plain):
        plain = plain.replace(" ", "").replace("-", "")
    return hmac.new(key.encode(), plain.encode(), hashlib.sha256).hexdigest()


def card_display(card_id: str) -> str:
    """How a card is shown: first six and last four of a card number, `C-0123` for a short number, else the id."""
    plain = card_id.strip()
    if _PAN.search(plain):
        return _PAN.sub(lambda found: _masked(found.group()), plain)[:40]
    if plain.isascii() and plain.isdigit():
        return f"C-{int(plain):04d}"
    return plain[:40]


def terminal_name(terminal_id: str) -> str:
    """How a terminal is shown: `T-0042` for a number, else the id with any card number in it masked."""
    plain = terminal_id.strip()
    if _PAN.search(plain):
        return _PAN.sub(lambda found: _masked(found.group()), plain)[:40]
    return f"T-{int(plain):04d}" if plain.isascii() and plain.isdigit() else plain[:40]


def is_card_number(text: str) -> bool:
    """Whether a text has the form of a card number: 12 to 19 digits, spaces and dashes allowed."""
    return _PAN.search(text) is not None


def is_card_secret(field_name: str) -> bool:
    """Whether a field is named like something that must never be stored, as a CVV or a PIN."""
    return re.sub(r"[^a-z0-9]", "", field_name.lower()) in _CVV_NAMES


def has_card_number(text: str) -> bool:
    """Whether a text holds something with the form of a card number that passes the Luhn check (ISO/IEC 7812-1)."""
    return card_number_in(text) != ""


def card_numbers_masked(text: str) -> str:
    """A text with the first six and last four digits of whatever has the form of a card number in it."""
    return _PAN.sub(lambda found: _masked(found.group()), text)


def card_number_in(text: str) -> str:
    """The first card number in a text that passes the Luhn check, empty when there is none."""
    return next((found.group() for found in _PAN.finditer(text) if _luhn(re.sub(r"\D", "", found.group()))), "")


def card_digits(text: str) -> str:
    """The digits of a text that holds nothing but digits, spaces and dashes, else nothing."""
    digits = re.sub(r"[ -]", "", text)
    return digits if digits.isascii() and digits.isdigit() else ""


def alert_number(text: str) -> tuple[int | None, bool]:
    """The number of an alert in `12`, `#12` or `alert 12`, and whether the words can mean nothing but an alert."""
    found = _ALERT.fullmatch(text.strip())
    return (int(found["number"]), bool(found["word"])) if found else (None, False)


def priority_of(*, probability: float, amount_cents: int) -> int:
    """Risk times amount: the loss to be expected, in cents."""
    return round(probability * amount_cents)


def rules_hit(
    *, at_local: datetime, amount_cents: int, since_previous_s: Sequence[int], usual_cents: float | None
) -> list[RuleHit]:
    """Which rules of the book a transaction meets.

    `since_previous_s` holds the ages in seconds of the card's recent transactions, this one left out;
    `usual_cents` is the card's mean amount over 30 days, None when it is not known.
    """
    hits = []
    hour = at_local.hour
    if hour in _NIGHT_HOURS and amount_cents >= 15_000:
        hits.append(RuleHit(code="R1", version=1, text=f"at night ({at_local:%H:%M}) and 150 or more"))
    in_ten_minutes = sum(1 for age in since_previous_s if 0 <= age <= 600) + 1
    if in_ten_minutes >= 4:
        hits.append(RuleHit(code="R2", version=1, text=f"{in_ten_minutes} transactions of the card in 10 minutes"))
    if usual_cents and amount_cents >= 5_000 and amount_cents >= 5 * usual_cents:
        times = amount_cents / usual_cents
        hits.append(RuleHit(code="R3", version=1, text=f"amount is {times:.1f} times the card's 30-day mean"))
    if amount_cents >= 100_000:
        hits.append(RuleHit(code="R4", version=1, text="1,000 or more in one transaction"))
    return hits


def _masked(number: str) -> str:
    digits = re.sub(r"\D", "", number)
    hidden = digits[:6] + "•" * (len(digits) - 10) + digits[-4:]
    return " ".join(hidden[i : i + 4] for i in range(0, len(hidden), 4))


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
