"""Dynamic batching on a trace: lengths log-normal from 8 to 512, arrivals Poisson, nobody waits for an answer to ask.

The server's times are a table that is measured first, with a 6 × 384 encoder on this machine (or read from a file); the
queues then run in virtual time, so that thousands of requests cost a second. Peers: first come first served in padded
batches, batches of a fixed number, batches up to a token budget, and an oracle whose batches need no padding.
"""

import argparse
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ml_core.evals.bench import meta, row, timed
from ml_core.layers.blocks import Block
from ml_core.seed import numpy_generator
from ml_core.serving.batcher import Batcher, CostTable, cost_table

ROWS, LENGTHS = (1, 2, 4, 8, 16, 32), (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LOAD = 0.7  # of capacity
FIXED, TIMEOUT, BUDGET = 16, 50.0, 2_048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --requests, --seeds, --table, --save-table."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", type=Path, help="a cost table of --save-table in the place of measuring")
    parser.add_argument("--save-table", type=Path)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the table, then replay the trace of each seed by each policy."""
    table = _read(args.table) if args.table else _measured(torch.device(args.device))
    if args.save_table:
        args.save_table.write_text(
            json.dumps({"lengths": table.lengths, "rows": table.rows, "ms": table.ms, "padded": table.padded}) + "\n"
        )
    figures = [_of_trace(table, requests=args.requests, seed=seed) for seed in range(args.seeds)]
    rows = [
        row(case, system=system, metric=metric, unit=unit, values=[each[case, system][2] for each in figures])
        for (case, system), (metric, unit, _) in figures[0].items()
    ]
    rows.append(row("batching/decision", system="assay", metric="us", unit="µs", values=_decisions(table)))
    return {
        "meta": meta("batching") | {"costs": {"lengths": table.lengths, "rows": table.rows, "ms": table.ms}},
        "rows": rows,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """When it came (ms), and how many tokens it has."""

    at: float
    length: int


class Policy(Protocol):
    """A queue under test."""

    def add(self, number: int, request: Request) -> None:
        """Let it wait."""
        ...

    def next(self, now: float) -> tuple[list[int], float, int] | None:
        """Requests to run now, the milliseconds they take, the tokens computed; None: nothing, or not yet."""
        ...

    def ready(self) -> float:
        """When it would run something without another arrival."""
        ...


class Queue:
    """First come, first served; `taken` says how many of the waiting make the next batch, 0 for none yet."""

    def __init__(
        self,
        table: CostTable,
        taken: Callable[[Sequence[Request], float], int],
        *,
        padded: bool = True,
        wait: float = 0.0,
    ) -> None:
        self.table, self.taken, self.padded, self.wait = table, taken, padded, wait
        self._dense = table.dense()
        self._waiting: deque[tuple[int, Request]] = deque()

    def add(self, number: int, request: Request) -> None:
        """Behind the others."""
        self._waiting.append((number, request))

    def next(self, now: float) -> tuple[list[int], float, int] | None:
        """The first of them."""
        size = self.taken([request for _, request in self._waiting], now) if self._waiting else 0
        if size == 0:
            return None
        some = [self._waiting.popleft() for _ in range(size)]
        lengths = [request.length for _, request in some]
        if self.padded:
            bucket = self.table.bucket(max(lengths))
            return [number for number, _ in some], float(self._dense[bucket, size]), size * self.table.lengths[bucket]
        # without padding a batch costs what so many texts of the mean length would
        ms = float(np.interp(sum(lengths) / size, self.table.lengths, self._dense[:, size]))
        return [number for number, _ in some], ms, sum(lengths)

    def ready(self) -> float:
        """The oldest's arrival and the time that it may be kept waiting."""
        return self._waiting[0][1].at + self.wait if self._waiting else np.inf


class Dynamic:
    """ml_core.serving.batcher."""

    def __init__(self, table: CostTable) -> None:
        self.batcher = Batcher(table, budget=8 * BUDGET)

    def add(self, number: int, request: Request) -> None:
        """By its length."""
        self.batcher.add(number, length=request.length, now=request.at)

    def next(self, now: float) -> tuple[list[int], float, int] | None:
        """What the batcher says."""
        batch = self.batcher.next(now)
        if batch is None:
            return None
        return [key for key in batch.keys if isinstance(key, int)], batch.ms, len(batch.keys) * batch.length

    def ready(self) -> float:
        """Whenever something waits."""
        return 0.0 if len(self.batcher) else np.inf


def policies(table: CostTable) -> dict[str, Callable[[], Policy]]:
    """The systems, each made anew for a trace."""
    most = table.rows[-1]

    def fixed(waiting: Sequence[Request], now: float) -> int:
        full = len(waiting) >= FIXED
        return min(FIXED, len(waiting)) if full or now >= waiting[0].at + TIMEOUT else 0

    def within_budget(waiting: Sequence[Request], now: float) -> int:
        longest, size = 0, 0
        for each in waiting[:most]:
            longest = max(longest, table.lengths[table.bucket(each.length)])
            if size and (size + 1) * longest > BUDGET:
                break
            size += 1
        return size

    return {
        "assay": lambda: Dynamic(table),
        "fifo_padded": lambda: Queue(table, lambda waiting, _: min(most, len(waiting))),
        "fixed_batch": lambda: Queue(table, fixed, wait=TIMEOUT),
        "token_budget": lambda: Queue(table, within_budget),
        "packed_oracle": lambda: Queue(table, lambda waiting, _: min(most, len(waiting)), padded=False),
    }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Latencies of all requests (ms), the time from first to last, and what share of the tokens was padding (%)."""

    latencies: np.ndarray
    makespan: float
    padding: float


def replay(policy: Policy, trace: Sequence[Request]) -> Outcome:
    """One server in virtual time: it runs a batch, takes in who came meanwhile, and asks again."""
    now, arrived, computed = 0.0, 0, 0
    latencies = np.full(len(trace), np.nan)
    while np.isnan(latencies).any():
        while arrived < len(trace) and trace[arrived].at <= now:
            policy.add(arrived, trace[arrived])
            arrived += 1
        batch = policy.next(now)
        if batch is None:
            coming = trace[arrived].at if arrived < len(trace) else np.inf
            now = max(now, min(coming, policy.ready()))
            continue
        numbers, ms, tokens = batch
        now += ms
        computed += tokens
        latencies[numbers] = now - np.asarray([trace[number].at for number in numbers])
    real = sum(each.length for each in trace)
    return Outcome(latencies=latencies, makespan=now - trace[0].at, padding=100 * (1 - real / computed))


def trace_of(count: int, *, per_second: float, seed: int) -> list[Request]:
    """Lengths e^N(4.2, 0.9) between 8 and 512, Poisson arrivals; all at once where per_second is infinite."""
    generator = numpy_generator(seed, "bench", "batching")
    lengths = np.clip(np.exp(generator.normal(4.2, 0.9, count)), 8, 512).astype(int)
    gaps = generator.exponential(1.0, count)
    at = np.zeros(count) if np.isinf(per_second) else np.cumsum(gaps) * 1e3 / per_second
    return [Request(at=float(when), length=int(length)) for when, length in zip(at, lengths, strict=True)]


def _of_trace(table: CostTable, *, requests: int, seed: int) -> dict[tuple[str, str], tuple[str, str, float]]:
    """(case, system) → (metric, unit, value)."""
    made = policies(table)
    backlog = trace_of(min(requests, 4_000), per_second=np.inf, seed=seed)
    per_second = {name: len(backlog) / replay(make(), backlog).makespan * 1e3 for name, make in made.items()}
    found: dict[tuple[str, str], tuple[str, str, float]] = {}
    for name, value in per_second.items():
        found["batching/capacity", name] = ("per_second", "1/s", value)
    found["batching/throughput_over_fifo", "assay"] = ("ratio", "1", per_second["assay"] / per_second["fifo_padded"])
    # all systems at a load that each can bear, then ours at its own
    bearable = LOAD * min(per_second[name] for name in ("fifo_padded", "fixed_batch", "token_budget"))
    shared = trace_of(requests, per_second=bearable, seed=seed + 1_000)
    means = {}
    for name, make in made.items():
        outcome = replay(make(), shared)
        means[name] = float(outcome.latencies.mean())
        found["batching/shared_load/mean", name] = ("ms", "ms", means[name])
        found["batching/shared_load/p99", name] = ("ms", "ms", float(np.percentile(outcome.latencies, 99)))
        found["batching/padding", name] = ("pct", "%", outcome.padding)
    found["batching/mean_latency_saved", "assay"] = ("pct", "%", 100 * (1 - means["assay"] / means["fixed_batch"]))
    own = replay(made["assay"](), trace_of(requests, per_second=LOAD * per_second["assay"], seed=seed + 2_000))
    p50, p99 = np.percentile(own.latencies, [50, 99])
    found["batching/p99_over_p50", "assay"] = ("ratio", "1", float(p99 / p50))
    found["batching/own_load/padding", "assay"] = ("pct", "%", own.padding)
    found["batching/own_load/p50", "assay"] = ("ms", "ms", float(p50))
    return found


def _decisions(table: CostTable) -> list[float]:
    """Microseconds of each of 500 decisions with 1,000 waiting."""
    trace, batcher, found, added = trace_of(40_000, per_second=1e3, seed=7), Batcher(table), [], 0
    for step in range(500):
        while len(batcher) < 1_000:
            batcher.add(added, length=trace[added].length, now=float(step))
            added += 1
        start = time.perf_counter()
        batcher.next(float(step))
        found.append((time.perf_counter() - start) * 1e6)
    return found


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(384, 6, 1536, max_n=512) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@torch.no_grad()
def _measured(device: torch.device) -> CostTable:
    torch.manual_seed(0)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = _Encoder().to(device, dtype).eval()
    found = {}
    for rows in ROWS:
        for length in LENGTHS:
            x = torch.randn(rows, length, 384, device=device, dtype=dtype)
            if device.type == "cuda":
                from ml_core.evals.gpu import cuda_times

                times = cuda_times(partial(model, x), seconds=0.02)
            else:
                times = timed(partial(model, x), seconds=0.05, least=2)
            found[rows, length] = statistics.median(times)
    return cost_table(found)


def _read(path: Path) -> CostTable:
    held = json.loads(path.read_text())
    ms = tuple(tuple(each) for each in held["ms"])
    return CostTable(lengths=tuple(held["lengths"]), rows=tuple(held["rows"]), ms=ms, padded=held["padded"])
