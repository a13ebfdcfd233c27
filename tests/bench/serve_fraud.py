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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import psutil
from testkit.databases import VENDORS, database
from testkit.scoring_stack import ROOT, ScoringStack
from testkit.services import redis_running

Payment = tuple[str, str, int]  # card, terminal, cents
# One genuine payment of each of the bank's cards: what is sent is one of these again, about the same amount. Cards take
# turns, and there are so many that none pays twice within minutes: that alone would look like fraud.
_CARDS, _DAYS = 20_000, 9  # as many transactions as the demo's 2,000 cards have in 90 days
_HABITS = """
import json
from apps.fraud.models import Transaction
rows = Transaction.objects.filter(label=False).order_by("card__token", "-id")
found = {row[0]: row for row in rows.values_list("card__display", "terminal__key", "amount_cents")}
print(json.dumps(list(found.values())))
"""


def main() -> int:
    """Prints one JSON object; `--out` keeps it in tests/bench/results/serve-fraud.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="1,10,50,100,200", help="requests per second")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--databases", default=",".join(VENDORS))
    parser.add_argument("--engine", choices=("local", "fake", "auto"), default="auto")
    parser.add_argument("--out", action="store_true")
    options = parser.parse_args()
    shipped = (ROOT / "ml_core" / "pretrained" / "fraud-student" / "manifest.json").is_file()
    engine = ("local" if shipped else "fake") if options.engine == "auto" else options.engine
    rates = [float(rate) for rate in options.rates.split(",")]
    rows: list[dict[str, object]] = []
    tables = Path(tempfile.mkdtemp(prefix="assay-engines-"))
    if engine == "local":
        student = ROOT / "ml_core" / "pretrained" / "fraud-student"
        subprocess.run([sys.executable, "-m", "ml_core", "measure", student, "--tables", tables], cwd=ROOT, check=True,
                       stdout=sys.stderr)  # fmt: skip
    for vendor in options.databases.split(","):
        with (
            tempfile.TemporaryDirectory(prefix="assay-bench-") as home,
            database(vendor, folder=Path(home)) as env,
            redis_running() as broker,
            ScoringStack(
                home=Path(home),
                broker_url=broker,
                engine=engine,
                database_url=env.get("DATABASE_URL", ""),
                tables=tables,
            ) as stack,
        ):
            stack.manage("fraud_demo", "--score", "queue", "--cards", str(_CARDS), "--days", str(_DAYS))
            system = ", ".join(["assay", *([] if engine == "local" else ["fake engine"]), vendor])
            habits = [tuple(row) for row in json.loads(stack.manage("shell", "--verbosity=0", "-c", _HABITS))]
            rows += asyncio.run(_measure(stack, habits=habits, rates=rates, seconds=options.seconds, system=system))
    body = {"meta": _meta(engine), "rows": rows}
    if options.out:
        path = ROOT / "tests" / "bench" / "results" / "serve-fraud.json"
        path.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body))
    return 0


async def _measure(
    stack: ScoringStack, *, habits: list[Payment], rates: list[float], seconds: float, system: str
) -> list[dict[str, object]]:
    client = _Client(port=stack.port, key=stack.key, habits=habits)
    await client.warm_up()
    rows: list[dict[str, object]] = []
    for rate in rates:
        before = stack.cpu_seconds()
        done = await _load(client, rate=rate, seconds=max(seconds, 20 / rate))
        ms = sorted(1000 * each.seconds for each in done if each.status == 200)
        if not ms:
            raise RuntimeError(f"no request was answered at {rate}/s; the stack says:\n{stack.log()[-2000:]}")
        used = {name: 1000 * (after - before[name]) / len(done) for name, after in stack.cpu_seconds().items()}
        values = {
            "p50_ms": _at(ms, 0.5), "p95_ms": _at(ms, 0.95), "p99_ms": _at(ms, 0.99), "max_ms": ms[-1],
            "not_200": float(sum(each.status != 200 for each in done)),
            "alerts_pct": 100 * sum(each.alert for each in done) / len(done),
            **_by_stage(done),
            **{f"cpu_{name}_ms": value for name, value in used.items()},
        }  # fmt: skip
        rows += [
            {
                "case": f"serve-fraud/{rate:g}rps", "system": system, "metric": metric, "value": round(value, 2),
                "unit": metric.rsplit("_", 1)[-1], "low": round(ms[0], 2), "high": round(ms[-1], 2), "n": len(done),
            }
            for metric, value in values.items()
        ]  # fmt: skip
        print(f"{rate:g}/s: {', '.join(f'{k} {v:.1f}' for k, v in values.items())}", file=sys.stderr)
    await client.close()
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class _Done:
    """One answered request: its status, the seconds since it was due, whether it opened an alert, ms by stage.

    Stages are the answer's own (Server-Timing); what of the whole they leave is the web process's, `web`, and what of
    the measured time the web process did not see is the connection's and the generator's, `wire`.
    """

    status: int
    seconds: float
    alert: bool
    stages: dict[str, float]


async def _load(client: "_Client", *, rate: float, seconds: float) -> list[_Done]:
    """Poisson arrivals; the time of a request runs from the moment at which it was due."""
    chance = random.Random(round(rate))
    start, due, tasks = perf_counter(), 0.0, []
    while due < seconds:
        delay = start + due - perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(client.score(due_at=start + due)))
        due += chance.expovariate(rate)
    return await asyncio.gather(*tasks)


class _Client:
    """Keep-alive connections and as little work as possible: the generator shares the cores with what it measures."""

    def __init__(self, *, port: int, key: str, habits: list[Payment]) -> None:
        self._port, self._key, self._habits = port, key, habits
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._sent = 0
        self._run = random.randrange(10**9)
        self._chance = random.Random(1)

    async def warm_up(self) -> None:
        """Until the worker answers within the request."""
        for _ in range(60):
            if (await self.score(due_at=perf_counter())).status == 200:
                break
        await asyncio.gather(*(self.score(due_at=perf_counter()) for _ in range(40)))

    async def score(self, *, due_at: float) -> _Done:
        """One request on a connection of its own."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
        body = await reader.readexactly(length)
        took = perf_counter() - due_at
        self._idle.append((reader, writer))
        stages = _stages(head)
        total = stages.pop("total")
        stages |= {"web": total - sum(stages.values()), "wire": 1e3 * took - total}
        alert = b'"alert_id": null' not in body
        return _Done(status=int(head.split(" ", 2)[1]), seconds=took, alert=alert, stages=stages)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()

    def _request(self) -> bytes:
        self._sent += 1
        card, terminal, cents = self._habits[self._sent % len(self._habits)]
        body = json.dumps(
            {
                "transaction_id": f"{self._run}-{self._sent}",
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "card": card,
                "terminal": terminal,
                "amount_cents": max(50, round(cents * self._chance.lognormvariate(0, 0.25))),
            }
        ).encode()
        head = (
            "POST /api/v1/transactions/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"X-API-Key: {self._key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _stages(head: str) -> dict[str, float]:
    """Milliseconds by stage, of the head of an answer."""
    line = next(line for line in head.split("\r\n") if line.lower().startswith("server-timing:"))
    parts = (part.strip().split(";dur=") for part in line.partition(":")[2].split(","))
    return {name: float(value) for name, value in parts}


def _by_stage(done: list[_Done]) -> dict[str, float]:
    """Three percentiles of every stage, over the requests that were answered with a score."""
    names = dict.fromkeys(name for each in done for name in each.stages)
    found = {name: sorted(each.stages.get(name, 0.0) for each in done if each.status == 200) for name in names}
    return {
        f"{name}_p{round(100 * share)}_ms": _at(ms, share) for name, ms in found.items() for share in (0.5, 0.95, 0.99)
    }


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
        "note": f"{_CARDS:,} cards, one web process, one worker, generator on the same cores; alerts with reasons",
    }


if __name__ == "__main__":
    sys.exit(main())
