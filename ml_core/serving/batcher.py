"""Dynamic batching: requests by length, packed by a dynamic program over measured costs, the urgent ones first.

Packing after Fang et al. 2021 (TurboTransformers, algorithm 3): with requests sorted by length, the cheapest way to
serve all of them is a partition into runs. Of its batches the one is run next that serves the most requests a
millisecond, weighted by how long its oldest has waited; a request near its deadline or beyond the age bound goes first.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

from ml_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Milliseconds of a batch by padded length and rows, as measured.

    lengths, rows: ascending; ms[i][j] is what rows[j] texts of lengths[i] tokens take. Between measured numbers of rows
    a batch takes the next larger one's time where `padded` (a graph's buckets), else what lies on the line between.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    padded: bool = False

    def __post_init__(self) -> None:
        for name, values in (("lengths", self.lengths), ("rows", self.rows)):
            if not values or values[0] < 1 or list(values) != sorted(set(values)):
                raise InputError(f"{name}: {values} do not rise from 1 on")
        if len(self.ms) != len(self.lengths) or any(len(each) != len(self.rows) for each in self.ms):
            raise InputError(f"ms: expected {len(self.lengths)} times {len(self.rows)} figures")
        if any(value <= 0 for each in self.ms for value in each):
            raise InputError("ms: a batch takes some time")

    def bucket(self, length: int) -> int:
        """The index of the smallest padded length that holds `length` tokens. Raises InputError where none does."""
        at = bisect_left(self.lengths, length)
        if length < 1 or at == len(self.lengths):
            raise InputError(f"length: {length} is not between 1 and {self.lengths[-1]} tokens")
        return at

    def dense(self) -> NDArray[np.float32]:
        """ms for every number of rows from 0 (which no batch has) to the largest: (lengths, rows + 1)."""
        wanted, known = np.arange(1, self.rows[-1] + 1), np.asarray(self.rows, dtype=np.float64)
        if self.padded:
            found = np.asarray(self.ms)[:, np.searchsorted(known, wanted)]
        else:
            found = np.stack([np.interp(wanted, known, each) for each in self.ms])
        return np.concatenate([np.full((len(self.lengths), 1), np.inf), found], axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What to run next: the requests' keys, the length that they are padded to, and what it should take."""

    keys: tuple[Hashable, ...]
    length: int
    ms: float


@dataclass(kw_only=True, slots=True)
class _Request:
    key: Hashable
    bucket: int
    arrived: float
    deadline: float
    number: int


@dataclass(kw_only=True)
class _Queue:
    """The waiting requests of one priority, in the order of (bucket, number); `counts` by bucket."""

    counts: NDArray[np.int64]
    oldest: NDArray[np.float64]
    order: list[tuple[int, int]] = field(default_factory=list)
    urgent: list[tuple[float, int, int]] = field(default_factory=list)


class Batcher:
    """A queue that says what to run next. Times are milliseconds on the caller's own clock; not thread-safe.

    budget: tokens of a batch, padding included. age: a request that has waited so long goes first. patience: the wait
    that doubles a batch's weight. A request's answer never depends on its batch: that is the model's to hold.
    """

    def __init__(
        self, costs: CostTable, *, budget: int | None = None, age: float = 200.0, patience: float = 20.0
    ) -> None:
        self.costs, self.age, self.patience = costs, age, patience
        self._dense = costs.dense()
        most = self._dense.shape[1] - 1
        limits = [most if budget is None else min(most, budget // length) for length in costs.lengths]
        if limits[0] < 1:
            raise InputError(f"budget: {budget} tokens hold no batch of {costs.lengths[0]}")
        # a request that alone exceeds the budget is still served, alone
        self._limits = np.maximum(np.asarray(limits, dtype=np.int64), 1)
        self._queues: dict[int, _Queue] = {}
        self._requests: dict[int, _Request] = {}
        self._numbers: dict[Hashable, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, key: Hashable, *, length: int, now: float, deadline: float = np.inf, priority: int = 0) -> None:
        """Let a request wait. priority: 0 is served before 1, and so on, but for the age bound.

        Raises InputError for a key that waits already, or a length that no batch has.
        """
        if key in self._numbers:
            raise InputError(f"key: {key!r} waits already")
        bucket, number = self.costs.bucket(length), self._next
        self._next += 1
        self._numbers[key] = number
        self._requests[number] = _Request(key=key, bucket=bucket, arrived=now, deadline=deadline, number=number)
        queue = self._queue(priority)
        insort(queue.order, (bucket, number))
        queue.counts[bucket] += 1
        if queue.counts[bucket] == 1:
            queue.oldest[bucket] = now
        # the last moment to begin, or that at which it has waited long enough
        latest = min(deadline - float(self._dense[bucket, 1]), now + self.age)
        heapq.heappush(queue.urgent, (latest, bucket, number))

    def cancel(self, key: Hashable) -> bool:
        """Forget a request; whether it was still waiting."""
        number = self._numbers.get(key)
        if number is None:
            return False
        bucket = self._requests[number].bucket
        for queue in self._queues.values():
            at = bisect_left(queue.order, (bucket, number))
            if at < len(queue.order) and queue.order[at] == (bucket, number):
                self._take(queue, at, at + 1)
                return True
        raise AssertionError(f"{key!r} is in no queue")

    def expire(self, now: float) -> list[Hashable]:
        """Forget the requests whose deadline has passed, and say which: nobody waits for their answers."""
        late = [each.key for each in self._requests.values() if each.deadline <= now]
        for key in late:
            self.cancel(key)
        return late

    def next(self, now: float) -> Batch | None:
        """The batch to run now, which leaves the queue; None where nothing waits."""
        waiting = [(priority, queue) for priority, queue in sorted(self._queues.items()) if queue.order]
        if not waiting:
            return None
        queue, forced = waiting[0][1], -1
        for _, each in waiting:
            at = self._overdue(each, now)
            if at >= 0:
                queue, forced = each, at
                break
        start, stop = _choose(
            queue.counts, queue.oldest, self._dense, self._limits, forced, now, self.patience, len(queue.order)
        )
        bucket = queue.order[stop - 1][0]
        taken = self._take(queue, start, stop)
        return Batch(
            keys=tuple(each.key for each in taken),
            length=self.costs.lengths[bucket],
            ms=float(self._dense[bucket, stop - start]),
        )

    def _overdue(self, queue: _Queue, now: float) -> int:
        """The place of the most urgent request that cannot wait, or -1."""
        while queue.urgent:
            latest, bucket, number = queue.urgent[0]
            if number in self._requests:
                return bisect_left(queue.order, (bucket, number)) if latest <= now else -1
            heapq.heappop(queue.urgent)  # it was served or cancelled
        return -1

    def _take(self, queue: _Queue, start: int, stop: int) -> list[_Request]:
        places = queue.order[start:stop]
        del queue.order[start:stop]
        taken = []
        for bucket, number in places:
            request = self._requests.pop(number)
            del self._numbers[request.key]
            queue.counts[bucket] -= 1
            taken.append(request)
        for bucket in {bucket for bucket, _ in places}:
            at = bisect_left(queue.order, (bucket, -1))
            if at < len(queue.order) and queue.order[at][0] == bucket:
                queue.oldest[bucket] = self._requests[queue.order[at][1]].arrived
        return taken

    def _queue(self, priority: int) -> _Queue:
        if priority not in self._queues:
            size = len(self.costs.lengths)
            self._queues[priority] = _Queue(counts=np.zeros(size, np.int64), oldest=np.zeros(size, np.float64))
        return self._queues[priority]


def partition(counts: Sequence[int], costs: CostTable, *, budget: int | None = None) -> list[tuple[int, int]]:
    """The cheapest partition of so many requests by bucket: (padded length, rows) of each batch, shortest first."""
    batcher = Batcher(costs, budget=budget)
    ends = _partition(np.asarray(counts, np.int64), batcher._dense, batcher._limits, int(sum(counts)))
    buckets = np.repeat(np.arange(len(counts)), counts)
    found, stop = [], len(buckets)
    while stop:
        found.append((costs.lengths[buckets[stop - 1]], int(ends[stop])))
        stop -= int(ends[stop])
    return found[::-1]


@numba.njit(cache=True)
def _partition(
    counts: NDArray[np.int64], dense: NDArray[np.float32], limits: NDArray[np.int64], waiting: int
) -> NDArray[np.int64]:
    """The rows of the batch that ends with each of the waiting requests, in the cheapest partition up to there."""
    best = np.empty(waiting + 1, np.float32)
    rows = np.zeros(waiting + 1, np.int64)
    best[0] = 0.0
    at = 0
    for bucket in range(len(counts)):
        line = dense[bucket]
        for _ in range(counts[bucket]):
            at += 1
            most = min(limits[bucket], at)
            least, taken = np.float32(np.inf), 0
            for size in range(1, most + 1):
                total = best[at - size] + line[size]
                if total < least:
                    least, taken = total, size
            best[at] = least
            rows[at] = taken
    return rows


@numba.njit(cache=True)
def _choose(
    counts: NDArray[np.int64],
    oldest: NDArray[np.float64],
    dense: NDArray[np.float32],
    limits: NDArray[np.int64],
    forced: int,
    now: float,
    patience: float,
    waiting: int,
) -> tuple[int, int]:
    """Start and end, in the sorted order, of the batch to run: the one that holds place `forced`, or the best one."""
    rows = _partition(counts, dense, limits, waiting)
    bucket, left = len(counts) - 1, 0
    while counts[bucket] == 0:
        bucket -= 1
    left = counts[bucket]
    best, found, stop = -1.0, (0, 0), waiting
    while stop > 0:
        size = rows[stop]
        start = stop - size
        if start <= forced < stop:
            return start, stop
        # the oldest of the buckets that the batch reaches into: those in front of each bucket came first
        cost, wait, need = dense[bucket, size], 0.0, size
        while need > 0:
            wait = max(wait, now - oldest[bucket])
            step = min(need, left)
            need -= step
            left -= step
            while left == 0 and bucket > 0:
                bucket -= 1
                left = counts[bucket]
        score = size / cost * (1.0 + wait / patience)
        if score > best:
            best, found = score, (start, stop)
        stop = start
    return found


def cost_table(measured: Mapping[tuple[int, int], float], *, padded: bool = False) -> CostTable:
    """A table from milliseconds by (rows, length). Raises InputError where a pair is missing."""
    lengths, rows = (tuple(sorted({key[at] for key in measured})) for at in (1, 0))
    try:
        ms = tuple(tuple(measured[many, length] for many in rows) for length in lengths)
    except KeyError as error:
        raise InputError(f"measured: {error.args[0]} (rows, length) is missing") from error
    return CostTable(lengths=lengths, rows=rows, ms=ms, padded=padded)
