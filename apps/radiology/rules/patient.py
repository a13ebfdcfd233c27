"""Pseudonyms: a keyed hash of who the file says the patient is, and a short word made from it."""

import hashlib
import hmac
from datetime import date

_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # no 0 O 1 I, which people confuse


def patient_key(*, name: str, identifier: str, birth_date: str, sop_uid: str, secret: str) -> str:
    """The same person gives the same key. A file that names nobody is a person of its own."""
    who = identifier or name
    parts = ["id", who, name, birth_date] if who else ["object", sop_uid]
    return hmac.new(secret.encode(), "\x1f".join(parts).encode(), hashlib.sha256).hexdigest()


def pseudonym(key: str, *, length: int = 4) -> str:
    """`P-7Q2M`: `length` letters of 5 bits each, read off the key."""
    number = int(key, 16)
    return "P-" + "".join(_LETTERS[(number >> (5 * place)) & 31] for place in range(length))


def date_of(value: str) -> date | None:
    """A DICOM date (YYYYMMDD), None where it is none."""
    try:
        return date(int(value[:4]), int(value[4:6]), int(value[6:8])) if len(value) == 8 else None
    except ValueError:
        return None
