"""`fraud_import` of the Handbook's 1.5 M raw rows, with features and scores, on the real stack: rows/s, flat memory."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from testkit.databases import VENDORS, database
from testkit.scoring_stack import ROOT, ScoringStack
from testkit.services import redis_running
from testkit.shared import SHARED

FILE = SHARED / "data" / "fraud" / "handbook_raw_2018-04-01_2018-09-04.parquet"
RESULT = Path(__file__).parent / "results" / "fraud-import.json"
_SAMPLE_S = 1.0


def main() -> int:
    """Import once, write the result file (of the whole only), print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=None, help="rows to read, for a quick look")
    parser.add_argument("--databases", default=",".join(VENDORS))
    options = parser.parse_args()
    if not FILE.is_file():
        print(json.dumps({"skipped": f"the shared development data is not at {SHARED}"}))
        return 0
    rows: list[dict[str, Any]] = []
    for vendor in options.databases.split(","):
        with (
            tempfile.TemporaryDirectory(prefix="assay-bench-") as home,
            database(vendor, folder=Path(home)) as env,
            redis_running() as broker,
            ScoringStack(
                home=Path(home), broker_url=broker, engine="local", database_url=env.get("DATABASE_URL", "")
            ) as stack,
        ):
            rows += _import(stack, system=f"assay, {vendor}", limit=options.limit)
    from ml_core.evals.bench import meta

    about = meta("fraud-import", packages=("Django", "pyarrow", "torch", "numba"))
    result = {"meta": about | {"command": "make bench NAME=fraud-import"}, "rows": rows}
    if options.limit is None and options.databases == ",".join(VENDORS):
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _import(stack: ScoringStack, *, system: str, limit: int | None) -> list[dict[str, Any]]:
    words = [sys.executable, "manage.py", "fraud_import", str(FILE), "--json", "--score", "queue"]
    words += ["--limit", str(limit)] if limit else []
    began = time.monotonic()
    memory: dict[str, list[float]] = {"importer": [], "worker": []}
    with subprocess.Popen(words, cwd=ROOT, env=stack.env, stdout=subprocess.PIPE, text=True) as importer:
        while importer.poll() is None:
            memory["importer"].append(_resident_mib(importer.pid))
            memory["worker"].append(_resident_mib(stack.worker_pid))
            time.sleep(_SAMPLE_S)
        assert importer.stdout is not None
        body = json.loads(importer.stdout.read().splitlines()[-1])
    seconds = time.monotonic() - began
    if body["scored"] != body["stored"]:
        raise RuntimeError(f"{body['stored'] - body['scored']} rows have no score:\n{stack.log()[-2000:]}")
    values = [("rows_s", body["read"] / seconds, "rows/s"), ("alerts", body["alerts"], "alerts")]
    for name, samples in memory.items():
        quarter = samples[len(samples) // 4 :]
        values += [(f"{name}_mib_max", max(samples), "MiB"), (f"{name}_mib_growth", quarter[-1] - quarter[0], "MiB")]
    return [
        {
            "case": "fraud-import", "system": system, "metric": metric, "value": round(value, 1), "unit": unit,
            "low": None, "high": None, "n": body["read"],
        }
        for metric, value, unit in values
    ]  # fmt: skip


def _resident_mib(pid: int) -> float:
    try:
        top = psutil.Process(pid)
        return sum(each.memory_full_info().uss for each in (top, *top.children(recursive=True))) / 2**20
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
