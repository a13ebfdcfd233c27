"""The entity states: windows against a naive batch computation, labels, late events, overflow, bytes."""

import numpy as np
import pytest

from ml_core.contracts import EntityKind
from ml_core.data.bank import simulate
from ml_core.data.card_state import (
    COUNT,
    DAY_S,
    DROPPED,
    MAX_EVENTS,
    decode_pool,
    empty_pool,
    encode_entity,
    key_hash,
    learn_label,
)
from ml_core.data.fraud_features import FEATURES, LARGE_CENTS
from ml_core.data.handbook import Table, events_of, table_from_columns
from ml_core.data.replay import Events, Replay, advance, label_words
from ml_core.errors import StateError


def small_bank(days: int = 60) -> Table:
    return table_from_columns(simulate(seed=7, cards=40, terminals=25, days=days))


def one_card(*, at: list[int], cents: list[int], label_word: list[int] | None = None) -> Events:
    n = len(at)
    zeros = np.zeros(n, np.int64)
    return Events(
        at=np.array(at),
        offset=zeros,
        cents=np.array(cents),
        card=zeros,
        terminal=zeros,
        card_key=zeros + 1,
        terminal_key=zeros + 2,
        id_key=np.arange(n),
        label_word=zeros if label_word is None else np.array(label_word),
    )


def column(inputs, name: str) -> np.ndarray:
    return inputs.features[:, FEATURES.index(name)]


def test_windows_equal_the_batch_computation_to_the_last_bit() -> None:
    table = small_bank()
    inputs = Replay().feed(events_of(table), tokens=False)
    for i in range(0, len(table), 17):
        now = table.at[i]
        own = np.flatnonzero((table.card == table.card[i]) & (np.arange(len(table)) <= i))
        there = np.flatnonzero((table.terminal == table.terminal[i]) & (np.arange(len(table)) < i))
        for days in (1, 7, 30):
            window = own[table.at[own] > now - days * DAY_S]
            assert column(inputs, f"card_count_{days}d")[i] == len(window)
            mean = np.float32(int(table.cents[window].sum()) / (100.0 * len(window)))
            assert column(inputs, f"card_mean_{days}d")[i] == mean
            age = now - table.at[there]
            known = there[(age >= 7 * DAY_S) & (age < (7 + days) * DAY_S)]
            assert column(inputs, f"terminal_count_{days}d")[i] == len(known)
            risk = np.float32(table.fraud[known].sum() / len(known)) if len(known) else 0
            assert column(inputs, f"terminal_risk_{days}d")[i] == risk


@pytest.mark.parametrize("chunk", [1, 7, 501])
def test_any_chunking_through_stored_bytes_gives_the_same_bits(chunk: int) -> None:
    table = small_bank(days=25)
    events = events_of(table)
    whole = Replay().feed(events)
    blobs = {kind: [b""] * 60 for kind in EntityKind}
    for begin in range(0, min(len(events), 200 * chunk), chunk):
        part = events.part(begin, min(begin + chunk, len(events)))
        pools = {}
        for kind, rows in ((EntityKind.CARD, part.card), (EntityKind.TERMINAL, part.terminal)):
            room = np.bincount(rows, minlength=60).astype(np.int64)
            pools[kind] = decode_pool(blobs[kind], kind=kind, room=room)
        inputs = advance(pools[EntityKind.CARD], pools[EntityKind.TERMINAL], part)
        for kind, pool in pools.items():
            blobs[kind] = [encode_entity(pool, e, kind=kind) for e in range(60)]
        assert (inputs.features == whole.features[begin : begin + len(part)]).all()
        assert (inputs.card == whole.card[begin : begin + len(part)]).all()
        assert (inputs.terminal == whole.terminal[begin : begin + len(part)]).all()


def test_noise_below_a_cent_never_reaches_a_feature() -> None:
    clean = simulate(seed=3, cards=5, terminals=5, days=10)
    noisy = {**clean, "TX_AMOUNT": clean["TX_AMOUNT"] + np.where(clean["TX_FRAUD"] == 1, 2e-13, 0.0)}
    noisy["TX_AMOUNT"][0] = 1108.8500000000001
    clean["TX_AMOUNT"][0] = 1108.85
    results = [Replay().feed(events_of(table_from_columns(c))).features for c in (clean, noisy)]
    assert (results[0] == results[1]).all()


def test_a_label_counts_from_the_moment_it_is_known() -> None:
    fraud = np.ones(1)
    known_at = 9 * DAY_S
    word = int(label_words(fraud, known_at=np.array([known_at]))[0])
    at = [0, 8 * DAY_S, known_at - 1, known_at]
    risk = column(Replay().feed(one_card(at=at, cents=[1_000] * 4, label_word=[word, 0, 0, 0])), "terminal_risk_7d")
    assert risk.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_a_label_that_arrives_late_is_counted_and_a_strange_one_is_not() -> None:
    replay = Replay()
    replay.feed(one_card(at=[0, 8 * DAY_S], cents=[1_000, 1_000]))
    word = (8 * DAY_S << 2) | 2
    assert learn_label(replay.terminals, 0, 0, word)
    assert not learn_label(replay.terminals, 0, 77, word)
    assert not learn_label(replay.terminals, 0, 0, word), "the same label twice changes nothing"
    after = replay.feed(one_card(at=[8 * DAY_S + 5], cents=[1_000]))
    assert column(after, "terminal_risk_7d")[0] == 1.0


def test_a_late_event_counts_at_the_newest_time_but_keeps_its_own_clock() -> None:
    inputs = Replay().feed(one_card(at=[40 * DAY_S, 2 * DAY_S + 3 * 3_600, 40 * DAY_S], cents=[100, 200, 300]))
    assert column(inputs, "card_count_1d").tolist() == [1, 2, 3]
    assert column(inputs, "hour")[1] == 3.0


def test_beyond_its_capacity_an_entity_forgets_the_oldest_and_says_so() -> None:
    n = MAX_EVENTS + 10
    replay = Replay()
    inputs = replay.feed(one_card(at=list(range(n)), cents=[100] * n), tokens=False)
    assert column(inputs, "card_count_1d")[-1] == MAX_EVENTS + 1
    assert column(inputs, "card_mean_30d")[-1] == 1.0
    assert replay.cards.head[0, DROPPED] == 10
    assert replay.cards.head[0, COUNT] == n


def test_damaged_or_foreign_bytes_are_refused() -> None:
    pool = empty_pool(np.array([1]), kind=EntityKind.CARD)
    blob = encode_entity(pool, 0, kind=EntityKind.CARD)
    room = np.zeros(1, np.int64)
    for bad in (blob[:-1], blob[:-1] + b"\x01", b"ZZZZ" + blob[4:]):
        with pytest.raises(StateError):
            decode_pool([bad], kind=EntityKind.CARD, room=room)
    with pytest.raises(StateError):
        decode_pool([blob], kind=EntityKind.TERMINAL, room=room)


def test_large_amounts_and_keys_survive_packing() -> None:
    inputs = Replay().feed(one_card(at=[0, 60], cents=[LARGE_CENTS * 1_000, 100]))
    assert column(inputs, "card_mean_1d")[1] == np.float32((LARGE_CENTS * 1_000 + 100) / 200)
    assert key_hash("card-1") != key_hash("card-2")
