"""Runs transactions in time order through the states: the one loop behind serving, evaluation and training."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numba import njit

from ml_core.contracts import EntityKind
from ml_core.data.card_state import (
    DELAY_S,
    FRAUD,
    GENUINE,
    LAST_AT,
    Pool,
    add_to_card_sums,
    append,
    compact_pool,
    empty_pool,
    key_hash,
    pack_amount,
)
from ml_core.data.fraud_features import (
    CARD_TOKENS,
    CHANNELS,
    FEATURES,
    TERMINAL_TOKENS,
    card_features,
    context_features,
    history_tokens,
    terminal_features,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """Transactions as columns, sorted by (at, id): card and terminal are row numbers in their pools.

    label_word is 0 for an unknown label, else known_at << 2 | GENUINE or FRAUD; keys hashes are 32 bits wide.
    """

    at: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    cents: npt.NDArray[np.int64]
    card: npt.NDArray[np.int64]
    terminal: npt.NDArray[np.int64]
    card_key: npt.NDArray[np.int64]
    terminal_key: npt.NDArray[np.int64]
    id_key: npt.NDArray[np.int64]
    label_word: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.at)

    def part(self, begin: int, end: int) -> "Events":
        """Rows begin..end."""
        return Events(**{name: getattr(self, name)[begin:end] for name in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a model reads: features (n, F), tokens of card and terminal (n, k, C), all float32.

    A model of a schema with further inputs reads those behind the F features (data/extra_inputs.py).
    """

    features: npt.NDArray[np.float32]
    card: npt.NDArray[np.float32]
    terminal: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features)

    def with_extras(self, extras: npt.NDArray[np.float32]) -> "Inputs":
        """The same with further inputs (n, e) behind the features."""
        return Inputs(features=np.hstack([self.features, extras]), card=self.card, terminal=self.terminal)


def advance(cards: Pool, terminals: Pool, events: Events, *, tokens: bool = True) -> Inputs:
    """Compute the inputs of every event and put the events into the states (in place)."""
    n = len(events)
    k = n if tokens else 0
    features = np.zeros((n, len(FEATURES)), np.float32)
    card = np.zeros((k, CARD_TOKENS, len(CHANNELS)), np.float32)
    terminal = np.zeros((k, TERMINAL_TOKENS, len(CHANNELS)), np.float32)
    columns = tuple(getattr(events, name) for name in Events.__slots__)
    _run(cards, terminals, columns, features, card, terminal)
    return Inputs(features=features, card=card, terminal=terminal)


def label_words(fraud: np.ndarray, *, known_at: np.ndarray) -> npt.NDArray[np.int64]:
    """Labels as the states keep them."""
    return (known_at.astype(np.int64) << 2) | np.where(fraud.astype(bool), FRAUD, GENUINE)


def delayed_labels(fraud: np.ndarray, *, at: np.ndarray, delay_s: int = DELAY_S) -> npt.NDArray[np.int64]:
    """Labels that become known `delay_s` after the event, by default as the Handbook supposes."""
    return label_words(fraud, known_at=np.asarray(at, np.int64) + delay_s)


@dataclass(kw_only=True, slots=True)
class Replay:
    """A bank in memory, fed chunk after chunk; entities are numbered as they appear."""

    cards: Pool = field(default_factory=lambda: empty_pool(np.zeros(0, np.int64), kind=EntityKind.CARD))
    terminals: Pool = field(default_factory=lambda: empty_pool(np.zeros(0, np.int64), kind=EntityKind.TERMINAL))

    def feed(self, events: Events, *, tokens: bool = True) -> Inputs:
        """Inputs of a chunk that follows the chunks before it in time; memory stays that of the live events."""
        self.cards = _with_room(self.cards, EntityKind.CARD, events.card)
        self.terminals = _with_room(self.terminals, EntityKind.TERMINAL, events.terminal)
        return advance(self.cards, self.terminals, events, tokens=tokens)


def hash_keys(keys: list[str]) -> npt.NDArray[np.int64]:
    """32-bit hashes of keys."""
    return np.fromiter((key_hash(key) for key in keys), np.int64, len(keys))


def _with_room(pool: Pool, kind: EntityKind, rows: np.ndarray) -> Pool:
    entities = max(len(pool.live), int(rows.max()) + 1 if len(rows) else 0)
    return compact_pool(pool, kind=kind, room=np.bincount(rows, minlength=entities).astype(np.int64))


@njit(cache=True)
def _run(
    cards: Pool,
    terminals: Pool,
    columns: tuple[np.ndarray, ...],
    features: np.ndarray,
    card_tokens: np.ndarray,
    terminal_tokens: np.ndarray,
) -> None:
    at, offset, cents, card, terminal, card_key, terminal_key, id_key, label_word = columns
    scratch = np.zeros(64)
    f = np.zeros(features.shape[1])
    for i in range(len(at)):
        c, t = card[i], terminal[i]
        card_now = max(at[i], cards.head[c, LAST_AT])
        terminal_now = max(at[i], terminals.head[t, LAST_AT])
        context_features(at[i], offset[i], cents[i], f)
        ratio = card_features(cards, c, card_now, cents[i], terminal_key[i], f, scratch)
        terminal_features(terminals, t, terminal_now, f, scratch)
        for k in range(len(f)):
            features[i, k] = f[k]
        if len(card_tokens):
            history_tokens(cards, c, card_now, cents[i], terminal_key[i], card_tokens[i])
            history_tokens(terminals, t, terminal_now, cents[i], card_key[i], terminal_tokens[i])
        word = pack_amount(cents[i], ratio)
        append(cards, c, card_now, word, (terminal_key[i] << 32) | id_key[i], label_word[i])
        add_to_card_sums(cards, c, cents[i])
        append(terminals, t, terminal_now, word, (card_key[i] << 32) | id_key[i], label_word[i])
