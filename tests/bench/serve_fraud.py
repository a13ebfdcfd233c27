"""Latency of the scoring API on the real stack, open loop: requests leave on time however slow the answers are."""

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import psutil
from testkit.scoring_stack import ROOT, ScoringStack
from testkit.services import redis_running

_CARDS, _TERMINALS = 2_000, 4_000


def main() -> int:
    """Prints one JSON object; `--out` keeps it in tests/bench/results/serve_fraud.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="1,10,50,100", help="requests per second")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--engine", choices=("local", "fake", "auto"), default="auto")
    parser.add_argument("--out", action="store_true")
    options = parser.parse_args()
    shipped = (ROOT / "ml_core" / "pretrained" / "fraud-student" / "manifest.json").is_file()
    engine = ("local" if shipped else "fake") if options.engine == "auto" else options.engine
    rates = [float(rate) for rate in options.rates.split(",")]
    with (
        tempfile.TemporaryDirectory(prefix="assay-bench-") as home,
        redis_running() as broker,
        ScoringStack(home=Path(home), broker_url=broker, engine=engine) as stack,
    ):
        rows = asyncio.run(_measure(stack, rates=rates, seconds=options.seconds, system=f"assay, {engine} engine"))
    body = {"meta": _meta(engine), "rows": rows}
    if options.out:
        path = ROOT / "tests" / "bench" / "results" / "serve_fraud.json"
        path.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body))
    return 0


async def _measure(stack: ScoringStack, *, rates: list[float], seconds: float, system: str) -> list[dict[str, object]]:
    client = _Client(port=stack.port, key=stack.key)
    await client.warm_up()
    rows: list[dict[str, object]] = []
    for rate in rates:
        took, late = await _load(client, rate=rate, seconds=max(seconds, 20 / rate))
        ms = sorted(1000 * each for each in took)
        if not ms:
            raise RuntimeError(f"no request was answered at {rate}/s; the stack says:\n{stack.log()[-2000:]}")
        for metric, value in (("p50", _at(ms, 0.5)), ("p95", _at(ms, 0.95)), ("p99", _at(ms, 0.99)), ("max", ms[-1])):
            rows.append({
                "case": f"{rate:g} requests/s", "system": system, "metric": metric, "value": round(value, 2),
                "unit": "ms", "low": round(ms[0], 2), "high": round(ms[-1], 2), "n": len(ms),
            })  # fmt: skip
        rows.append({
            "case": f"{rate:g} requests/s", "system": system, "metric": "not 200", "value": late,
            "unit": "requests", "low": late, "high": late, "n": len(ms) + late,
        })  # fmt: skip
        print(f"{rate:g}/s: p50 {_at(ms, 0.5):.1f} p99 {_at(ms, 0.99):.1f} ms, {late} not 200", file=sys.stderr)
    await client.close()
    return rows


async def _load(client: "_Client", *, rate: float, seconds: float) -> tuple[list[float], int]:
    """Poisson arrivals; the time of a request runs from the moment at which it was due."""
    chance = random.Random(round(rate))
    start, due, tasks = perf_counter(), 0.0, []
    while due < seconds:
        delay = start + due - perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(client.score(due_at=start + due)))
        due += chance.expovariate(rate)
    done = await asyncio.gather(*tasks)
    return [took for status, took in done if status == 200], sum(1 for status, _ in done if status != 200)


class _Client:
    """Keep-alive connections and as little work as possible: the generator shares the cores with what it measures."""

    def __init__(self, *, port: int, key: str) -> None:
        self._port, self._key = port, key
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._sent = 0
        self._run = random.randrange(10**9)
        self._chance = random.Random(1)

    async def warm_up(self) -> None:
        """Until the worker answers within the request."""
        for _ in range(60):
            status, _ = await self.score(due_at=perf_counter())
            if status == 200:
                break
        await asyncio.gather(*(self.score(due_at=perf_counter()) for _ in range(40)))

    async def score(self, *, due_at: float) -> tuple[int, float]:
        """One request on a connection of its own; (status, seconds since it was due)."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
        await reader.readexactly(length)
        took = perf_counter() - due_at
        self._idle.append((reader, writer))
        return int(head.split(" ", 2)[1]), took

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()

    def _request(self) -> bytes:
        self._sent += 1
        body = json.dumps(
            {
                "transaction_id": f"{self._run}-{self._sent}",
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "card": f"{self._chance.randrange(_CARDS)}",
                "terminal": f"{self._chance.randrange(_TERMINALS)}",
                "amount_cents": self._chance.randrange(100, 20_000),
            }
        ).encode()
        head = (
            "POST /api/v1/transactions/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"X-API-Key: {self._key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _meta(engine: str) -> dict[str, object]:
    memory, load = psutil.virtual_memory().total >> 30, os.getloadavg()[0]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "name": "serve-fraud",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {memory} GiB, load {load:.1f} at the end",
        "versions": {"python": platform.python_version()},
        "command": "make bench NAME=serve-fraud",
        "engine": engine,
        "note": "SQLite, one web process, one worker, generator on the same cores",
    }


if __name__ == "__main__":
    sys.exit(main())
