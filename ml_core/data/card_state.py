"""The memory of one card or terminal: a pure state machine over packed integers, stored as versioned bytes.

One entity is a header of counters and pointers (`head`) and its live events, oldest first. Money is whole cents and
every window is a difference of integers, so the incremental result equals the batch result to the last bit.

Windows are the Fraud Detection Handbook's (Le Borgne et al., 2022): a card's count and mean over (t - n, t], the
event itself included; a terminal's count and risk over (t - 7 d - n, t - 7 d], n = 1, 7, 30 days.

Rules that are ours:
- Order. Events are taken in the order given (time, ties by id). An event older than the entity's newest is late: it is
  kept, and takes part in windows, as if it had happened at the newest event's time. Its own hour is used for the clock.
- Labels. A label counts from the first event at or after `known_at`; until then the event counts as not fraud.
  It finds its event by transaction id; a label whose event has left the memory is dropped.
- Overflow. An entity holds at most MAX_EVENTS events; beyond that the oldest are forgotten, windows shrink with them
  and `head[DROPPED]` counts them.
- Cost. Each pointer only moves forward: O(1) amortised. A terminal's risk is recounted only when a label came late.
"""

import zlib
from typing import NamedTuple

import numpy as np
from numba import njit

from ml_core.contracts import EntityKind
from ml_core.errors import StateError

DAY_S = 86_400
DELAY_S = 7 * DAY_S
WINDOW_DAYS = (1, 7, 30)
MAX_EVENTS = 2_048
SCAN = 64  # features look at this many newest events at most, on each side of the label delay
UNKNOWN, GENUINE, FRAUD = 0, 1, 2

# columns of an event
AT, AMOUNT, KEYS, LABEL = 0, 1, 2, 3
# columns of a head; P0.. are window starts (places in the arena), S0.. their sums of cents (card) or frauds (terminal)
COUNT, SUM, SUM_SQUARES, MAX_CENTS, LAST_AT, P0, S0 = 0, 1, 2, 3, 4, 5, 8
DELAYED, DIRTY, DROPPED, FIRST_AT, TERMINAL, HEAD = 11, 12, 13, 14, 15, 16  # head[TERMINAL] is 1 for a terminal

_MAGIC = b"ACS1"
_PREFIX = 16
_RATIO_ONE = 2_048
_EMPTY_EVENTS = np.zeros((0, 4), np.int64)


class Pool(NamedTuple):
    """Many entities of one kind in one arena: entity e owns events[live[e]:end[e]] and has room up to limit[e]."""

    live: np.ndarray
    end: np.ndarray
    limit: np.ndarray
    head: np.ndarray
    events: np.ndarray


def empty_pool(capacities: np.ndarray, *, kind: EntityKind) -> Pool:
    """A pool of new entities; `capacities[e]` is how many events entity e will be given."""
    limit = np.cumsum(capacities, dtype=np.int64)
    start = limit - capacities
    head = np.zeros((len(limit), HEAD), np.int64)
    head[:, P0 : P0 + 3] = start[:, None]
    head[:, DELAYED] = start
    head[:, TERMINAL] = kind is EntityKind.TERMINAL
    return Pool(start.copy(), start.copy(), limit, head, np.zeros((int(limit[-1]) if len(limit) else 0, 4), np.int64))


def decode_pool(blobs: list[bytes], *, kind: EntityKind, room: np.ndarray) -> Pool:
    """Unpack states into one pool with `room[e]` free places each. Raises StateError for damage or another version."""
    parts = [_decode(blob, kind=kind) for blob in blobs]
    lengths = np.array([len(events) for _, events in parts], np.int64)
    pool = empty_pool(lengths + room, kind=kind)
    for e, (head, events) in enumerate(parts):
        start = pool.live[e]
        if head is None:
            continue
        pool.events[start : start + len(events)] = events
        pool.end[e] = start + len(events)
        pool.head[e] = head
        pool.head[e, P0 : P0 + 3] += start
        pool.head[e, DELAYED] += start
    return pool


def encode_entity(pool: Pool, entity: int, *, kind: EntityKind) -> bytes:
    """Pack one entity: magic and kind, checksum, head, then the events that anything can still ask for."""
    head = pool.head[entity].copy()
    keep = _first_needed(pool, entity)
    events = pool.events[keep : pool.end[entity]]
    head[P0 : P0 + 3] -= keep
    head[DELAYED] -= keep
    body = head.tobytes() + events.tobytes()
    code = b"C" if kind is EntityKind.CARD else b"T"
    return _MAGIC + code + b"\0\0\0" + zlib.crc32(body).to_bytes(4, "little") + len(events).to_bytes(4, "little") + body


def compact_pool(pool: Pool, *, kind: EntityKind, room: np.ndarray) -> Pool:
    """The same entities with what nothing needs dropped and `room[e]` places made; a longer `room` adds entities."""
    entities = len(pool.live)
    first = _first_needed_all(pool)
    kept = np.concatenate([pool.end - first, np.zeros(len(room) - entities, np.int64)])
    out = empty_pool(kept + room, kind=kind)
    _copy(pool, first, out)
    return out


def key_hash(key: str) -> int:
    """The 32-bit stand-in for a key inside events (equality within one entity is all that it serves)."""
    return zlib.crc32(key.encode())


@njit(cache=True)
def pack_amount(cents: int, ratio: float) -> int:
    """Amount and its ratio to the card's usual amount (12 bits, steps of 1/256 octave) in one word."""
    code = _RATIO_ONE + int(round(256.0 * np.log2(max(ratio, 1e-3))))
    return (cents << 12) | max(0, min(4095, code))


@njit(cache=True)
def cents_of(event: np.ndarray) -> int:
    """Amount of an event in cents."""
    return event[AMOUNT] >> 12


@njit(cache=True)
def log_ratio_of(event: np.ndarray) -> float:
    """log2 of the event's amount over the card's usual amount at that time."""
    return ((event[AMOUNT] & 4095) - 2_048) / 256.0


@njit(cache=True)
def label_of(event: np.ndarray, now: int) -> int:
    """UNKNOWN, GENUINE or FRAUD as it is known at `now`."""
    word = event[LABEL]
    return word & 3 if (word >> 2) <= now else 0


@njit(cache=True)
def card_windows(pool: Pool, e: int, now: int, cents: int, out: np.ndarray) -> None:
    """Move the card's pointers to `now`; out = counts over 1/7/30 days, then means in units, this one included."""
    head = pool.head[e]
    end = pool.end[e]
    for k in range(3):
        edge = now - (1 if k == 0 else 7 if k == 1 else 30) * 86_400
        p, s = head[P0 + k], head[S0 + k]
        while p < end and pool.events[p, AT] <= edge:
            s -= cents_of(pool.events[p])
            p += 1
        head[P0 + k], head[S0 + k] = p, s
        n = end - p + 1
        out[k] = n
        out[3 + k] = (s + cents) / (100.0 * n)


@njit(cache=True)
def terminal_windows(pool: Pool, e: int, now: int, out: np.ndarray) -> None:
    """Move the terminal's pointers to `now`; out = counts over (t-7d-n, t-7d], then the share known as fraud by now."""
    head = pool.head[e]
    end = pool.end[e]
    u = head[DELAYED]
    while u < end and pool.events[u, AT] <= now - 604_800:
        word = pool.events[u, LABEL]
        if word & 3 == 2 and (word >> 2) <= now:
            for k in range(3):
                head[S0 + k] += 1
        elif word & 3 == 2:
            head[DIRTY] = 1
        u += 1
    head[DELAYED] = u
    for k in range(3):
        edge = now - 604_800 - (1 if k == 0 else 7 if k == 1 else 30) * 86_400
        p = head[P0 + k]
        while p < u and pool.events[p, AT] <= edge:
            if pool.events[p, LABEL] & 3 == 2:
                head[S0 + k] -= 1
            p += 1
        head[P0 + k] = p
    if head[DIRTY]:
        _recount(pool, e, now)
    for k in range(3):
        n = u - head[P0 + k]
        out[k] = n
        out[3 + k] = head[S0 + k] / n if n else 0.0


@njit(cache=True)
def append(pool: Pool, e: int, at: int, amount_word: int, keys: int, label_word: int) -> None:
    """Remember one event (its time already clamped to the newest); forgets the oldest beyond MAX_EVENTS."""
    head = pool.head[e]
    cents = amount_word >> 12
    if pool.end[e] - pool.live[e] >= MAX_EVENTS:
        _forget_oldest(pool, e)
    i = pool.end[e]
    pool.events[i, AT], pool.events[i, AMOUNT] = at, amount_word
    pool.events[i, KEYS], pool.events[i, LABEL] = keys, label_word
    pool.end[e] = i + 1
    if head[COUNT] == 0:
        head[FIRST_AT] = at
    head[COUNT] += 1
    head[SUM] += cents
    capped = min(cents, 20_000_000)
    head[SUM_SQUARES] += capped * capped
    head[MAX_CENTS] = max(head[MAX_CENTS], cents)
    head[LAST_AT] = at


@njit(cache=True)
def learn_label(pool: Pool, e: int, id_hash: int, label_word: int) -> bool:
    """Write a label into the event with this transaction id; False if the event is not remembered."""
    for i in range(pool.end[e] - 1, pool.live[e] - 1, -1):
        if pool.events[i, KEYS] & 0xFFFFFFFF == id_hash:
            if pool.events[i, LABEL] == label_word:
                return False
            pool.events[i, LABEL] = label_word
            pool.head[e, DIRTY] = 1
            return True
    return False


@njit(cache=True)
def add_to_card_sums(pool: Pool, e: int, cents: int) -> None:
    """The event just scored now counts in the card's three running sums."""
    for k in range(3):
        pool.head[e, S0 + k] += cents


@njit(cache=True)
def _recount(pool: Pool, e: int, now: int) -> None:
    head = pool.head[e]
    pending = 0
    for k in range(3):
        head[S0 + k] = 0
        for i in range(head[P0 + k], head[DELAYED]):
            word = pool.events[i, LABEL]
            if word & 3 == 2:
                if (word >> 2) <= now:
                    head[S0 + k] += 1
                else:
                    pending = 1
    head[DIRTY] = pending


@njit(cache=True)
def _forget_oldest(pool: Pool, e: int) -> None:
    """Works for both kinds: a card's sums lose the cents a terminal is recounted."""
    head = pool.head[e]
    oldest = pool.live[e]
    card = head[TERMINAL] == 0
    for k in range(3):
        if head[P0 + k] == oldest:
            head[P0 + k] += 1
            if card:
                head[S0 + k] -= pool.events[oldest, AMOUNT] >> 12
    if not card:
        head[DELAYED] = max(head[DELAYED], oldest + 1)
        head[DIRTY] = 1
    pool.live[e] = oldest + 1
    head[DROPPED] += 1


@njit(cache=True)
def _first_needed(pool: Pool, e: int) -> int:
    head = pool.head[e]
    first = min(head[P0], head[P0 + 1], head[P0 + 2], pool.end[e] - SCAN)
    if head[TERMINAL]:
        first = min(first, head[DELAYED] - SCAN)
    return max(pool.live[e], first)


@njit(cache=True)
def _first_needed_all(pool: Pool) -> np.ndarray:
    out = np.zeros(len(pool.live), np.int64)
    for e in range(len(out)):
        out[e] = _first_needed(pool, e)
    return out


@njit(cache=True)
def _copy(pool: Pool, first: np.ndarray, out: Pool) -> None:
    for e in range(len(pool.live)):
        shift = out.live[e] - first[e]
        n = pool.end[e] - first[e]
        for i in range(n):
            for column in range(4):
                out.events[out.live[e] + i, column] = pool.events[first[e] + i, column]
        out.end[e] = out.live[e] + n
        out.head[e, :] = pool.head[e, :]
        for k in range(3):
            out.head[e, P0 + k] += shift
        out.head[e, DELAYED] += shift


def _decode(blob: bytes, *, kind: EntityKind) -> tuple[np.ndarray | None, np.ndarray]:
    if not blob:
        return None, _EMPTY_EVENTS
    code = b"C" if kind is EntityKind.CARD else b"T"
    if blob[:4] != _MAGIC or blob[4:5] != code:
        raise StateError(f"not a {kind} state of version {_MAGIC.decode()}: it begins with {bytes(blob[:5])!r}")
    body = bytes(blob[_PREFIX:])
    n = int.from_bytes(blob[12:16], "little")
    if len(body) != 8 * HEAD + 32 * n or zlib.crc32(body) != int.from_bytes(blob[8:12], "little"):
        raise StateError(f"{kind} state is damaged: {len(blob)} bytes, checksum or length do not match")
    numbers = np.frombuffer(body, np.int64)
    return numbers[:HEAD], numbers[HEAD:].reshape(n, 4)
