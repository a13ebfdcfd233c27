"""Pure rules of the audit trail: canonical form, hash of a link, and events told as sentences."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime

GENESIS = "0" * 64  # the "previous hash" of the first event

_PAST = {
    "read": "read",
    "write": "wrote",
    "sign_in": "signed in",
    "sign_out": "signed out",
    "sign_in_failed": "failed to sign in",
    "begin": "began",
    "undo": "undid",
    "submit": "submitted",
    "cut": "cut",
    "run": "ran",
    "put": "put",
    "set": "set",
    "send": "sent",
    "list": "listed",
    "claim_next": "claimed next",
    "stop": "stopped",
    "lose": "lost",
    "roll_back": "rolled back",
    "rollback": "rolled back",
}


def canonical(value: Mapping[str, object]) -> str:
    """One text per value: keys sorted, no spaces, ASCII only, so that every database gives back the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=str)


def link_hash(*, previous_hash: str, body: Mapping[str, object]) -> str:
    """SHA-256 over the canonical JSON of an event, its predecessor's hash included; 64 hex digits."""
    return hashlib.sha256(canonical({**body, "previous_hash": previous_hash}).encode("ascii")).hexdigest()


def moment(at: datetime) -> str:
    """An aware time as text in UTC with microseconds, the form that is hashed."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def storable(text: str, *, limit: int) -> str:
    """A text that every database can hold: no NUL, no lone surrogates, at most `limit` characters."""
    clean = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def sentence(
    *, name: str, verb: str, object_type: str, object_id: str, allowed: bool, detail: Mapping[str, object]
) -> str:
    """An event as a sentence: `analyst-2 read alert 8812`; a refusal says so; a batch says how many."""
    action = verb.rpartition(".")[2]
    thing = object_type.replace("_", " ")
    count = detail.get("count")
    if isinstance(count, int) and count != 1:
        target = f"{count:,} {_plural(thing)}"
    elif thing and object_id not in {"", thing, "-"}:
        target = f"{thing} {_shown(object_id)}"
    else:
        target = f"the {thing}" if thing else ""
    if object_type in {"session", "user"} and action.startswith("sign_"):
        target = ""
    said = past(action) if allowed else f"was refused to {action.replace('_', ' ')}"
    return f"{name} {said} {target}".rstrip()


def past(action: str) -> str:
    """The past tense of a verb's last part: `close` → `closed`, `sign_in` → `signed in`."""
    if action in _PAST:
        return _PAST[action]
    first, _, rest = action.partition("_")
    if first in _PAST:
        done = _PAST[first]
    elif first.endswith("e"):
        done = first + "d"
    elif first.endswith("y") and first[-2:-1] not in "aeiou":
        done = first[:-1] + "ied"
    else:
        done = first + "ed"
    return f"{done} {rest.replace('_', ' ')}".strip()


def csv_safe(value: object) -> str:
    """A cell that no spreadsheet takes for a formula (OWASP, CSV Injection): a leading = + - @ tab CR gets a quote."""
    text = str(value)
    return "'" + text if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _shown(object_id: str) -> str:
    """A digest by its beginning, as everywhere else; other ids whole."""
    is_digest = len(object_id) == 64 and all(letter in "0123456789abcdef" for letter in object_id)
    return object_id[:8] if is_digest else object_id


def _plural(thing: str) -> str:
    if thing.endswith("y") and thing[-2:-1] not in "aeiou":
        return thing[:-1] + "ies"
    return thing + ("es" if thing.endswith(("s", "x", "ch", "sh")) else "s")
