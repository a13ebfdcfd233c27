"""The batcher: the cheapest partition, nobody lost, nobody late who need not be, nobody waiting for ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_core.errors import InputError
from ml_core.serving.batcher import Batcher, CostTable, cost_table, partition

# a launch of 1 ms, then tokens: long texts gain little from company
TABLE = cost_table({(rows, length): 1.0 + rows * length / 100 for rows in (1, 2, 4, 8) for length in (16, 32, 64, 128)})
MOST = 8


def cheapest(buckets, costs, *, budget):
    """By trying every partition of the sorted requests."""
    dense, count = costs.dense(), len(buckets)
    best = np.inf
    for cuts in itertools.product([False, True], repeat=count - 1):
        ends = [at + 1 for at, cut in enumerate(cuts) if cut] + [count]
        total, start = 0.0, 0
        for end in ends:
            size, bucket = end - start, buckets[end - 1]
            if size > MOST or (size > 1 and size * costs.lengths[bucket] > budget):
                total = np.inf
                break
            total += float(dense[bucket, size])
            start = end
        best = min(best, total)
    return best


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.sampled_from([16, 100, 200, 4096]))
@settings(max_examples=60, deadline=None)
def test_the_partition_is_the_cheapest_of_all(buckets, budget):
    counts = [buckets.count(bucket) for bucket in range(4)]
    found = partition(counts, TABLE, budget=budget)
    dense = TABLE.dense()
    total = sum(float(dense[TABLE.lengths.index(length), rows]) for length, rows in found)
    assert total == pytest.approx(cheapest(sorted(buckets), TABLE, budget=budget), rel=1e-5)
    assert sum(rows for _, rows in found) == len(buckets)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_request_is_served_once_in_a_batch_that_holds_it(data):
    batcher, lengths, served, gone = Batcher(TABLE, budget=256), {}, [], set()
    for key in range(data.draw(st.integers(1, 30))):
        lengths[key] = data.draw(st.integers(1, 128))
        batcher.add(key, length=lengths[key], now=float(key), priority=data.draw(st.integers(0, 1)))
        if data.draw(st.booleans()):
            gone |= {key} if batcher.cancel(key) else set()
        if data.draw(st.booleans()):
            batch = batcher.next(float(key))
            served += [] if batch is None else [batch]
    while (batch := batcher.next(100.0)) is not None:
        served.append(batch)
    keys = [key for batch in served for key in batch.keys]
    assert sorted(keys) == sorted(set(lengths) - gone)
    assert len(batcher) == 0
    for batch in served:
        assert batch.length == TABLE.lengths[TABLE.bucket(max(lengths[key] for key in batch.keys))]
        assert len(batch.keys) == 1 or len(batch.keys) * batch.length <= 256
        assert batch.ms == pytest.approx(float(TABLE.dense()[TABLE.bucket(batch.length), len(batch.keys)]))


def add_all(batcher, lengths, *, now=0.0, **given):
    for key, length in lengths.items():
        batcher.add(key, length=length, now=now, **given)


def test_a_batch_that_serves_more_a_millisecond_goes_first():
    batcher = Batcher(TABLE)
    add_all(batcher, {"long": 128, **{f"short{at}": 16 for at in range(4)}})
    assert set(batcher.next(1.0).keys) == {f"short{at}" for at in range(4)}
    assert batcher.next(1.0).keys == ("long",)


def test_the_wait_of_the_oldest_weighs():
    batcher = Batcher(TABLE, age=1e9, patience=1.0)
    batcher.add("long", length=128, now=0.0)
    add_all(batcher, {f"short{at}": 16 for at in range(4)}, now=99.0)
    assert batcher.next(100.0).keys == ("long",)


def test_a_request_at_its_last_moment_goes_first():
    batcher = Batcher(TABLE)
    add_all(batcher, {f"short{at}": 16 for at in range(8)})
    batcher.add("long", length=128, now=0.0, deadline=10.0)  # takes 2.28 ms
    assert "long" not in batcher.next(7.0).keys
    add_all(batcher, {f"more{at}": 16 for at in range(8)})
    assert "long" in batcher.next(8.0).keys


def test_nobody_waits_beyond_the_age_bound_and_the_priority_yields_to_it():
    batcher = Batcher(TABLE, age=50.0, patience=1e9)
    batcher.add("bulk", length=128, now=0.0, priority=1)
    for step in range(4):
        add_all(batcher, {f"{step}.{at}": 16 for at in range(8)}, now=10.0 * step)
        assert "bulk" not in batcher.next(10.0 * step).keys
    add_all(batcher, {f"last{at}": 16 for at in range(8)}, now=50.0)
    assert batcher.next(50.0).keys == ("bulk",)


def test_priorities_are_not_mixed_in_a_batch():
    batcher = Batcher(TABLE)
    add_all(batcher, {"a": 16, "b": 16}, priority=1)
    add_all(batcher, {"c": 16}, priority=0)
    assert batcher.next(0.0).keys == ("c",)
    assert set(batcher.next(0.0).keys) == {"a", "b"}


def test_whoever_waits_no_more_is_forgotten():
    batcher = Batcher(TABLE)
    add_all(batcher, {"a": 16, "b": 32})
    batcher.add("late", length=64, now=0.0, deadline=5.0)
    assert batcher.cancel("a")
    assert not batcher.cancel("a")
    assert batcher.expire(4.9) == []
    assert batcher.expire(5.0) == ["late"]
    assert batcher.next(6.0).keys == ("b",)
    assert batcher.next(6.0) is None


def test_of_like_requests_the_first_come_are_served_first():
    batcher = Batcher(TABLE)
    for key in range(12):
        batcher.add(key, length=16, now=float(key))
    first = batcher.next(12.0)
    assert sorted(first.keys) == list(range(len(first.keys)))


def test_between_measured_rows_a_graph_takes_the_next_and_a_cpu_what_lies_between():
    measured = {(rows, 16): ms for rows, ms in ((1, 1.0), (2, 2.0), (4, 3.0))}
    assert cost_table(measured).dense()[0].tolist() == [np.inf, 1.0, 2.0, 2.5, 3.0]
    assert cost_table(measured, padded=True).dense()[0].tolist() == [np.inf, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda: CostTable(lengths=(32, 16), rows=(1,), ms=((1.0,), (1.0,))), "lengths:"),
        (lambda: CostTable(lengths=(16,), rows=(0, 1), ms=((1.0, 1.0),)), "rows:"),
        (lambda: CostTable(lengths=(16,), rows=(1, 2), ms=((1.0,),)), "ms:"),
        (lambda: CostTable(lengths=(16,), rows=(1,), ms=((0.0,),)), "ms:"),
        (lambda: cost_table({(1, 16): 1.0, (2, 32): 1.0}), "measured:"),
        (lambda: Batcher(TABLE, budget=15), "budget:"),
        (lambda: Batcher(TABLE).add("a", length=129, now=0.0), "length:"),
        (lambda: Batcher(TABLE).add("a", length=0, now=0.0), "length:"),
    ],
)
def test_what_makes_no_sense_is_named(wrong, name):
    with pytest.raises(InputError, match=name):
        wrong()


def test_a_key_waits_once():
    batcher = Batcher(TABLE)
    batcher.add("a", length=16, now=0.0)
    with pytest.raises(InputError, match="waits already"):
        batcher.add("a", length=16, now=1.0)
