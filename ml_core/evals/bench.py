"""What every benchmark of the engine shares: timing with its spread, and the one form of result."""

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ml_core.errors import EngineError

_LOG = logging.getLogger(__name__)


class BenchError(EngineError):
    """A benchmark's systems disagree, so there is nothing to time."""

    code = "bench_red"


def meta(name: str, *, packages: tuple[str, ...] = ("torch", "numpy")) -> dict[str, Any]:
    """Name, date, git revision, machine, versions and command of this run."""
    import torch

    return {
        "name": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "git": _git(),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "load_1min": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in packages},
        "command": _command(),
    }


def timed(call: Callable[[], object], *, seconds: float = 0.3, least: int = 5, most: int = 2000) -> list[float]:
    """Wall times of `call` in milliseconds, after two warm-up calls."""
    call()
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) < most):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def row(case: str, *, system: str, metric: str, unit: str, values: list[float]) -> dict[str, Any]:
    """One row: the median, with the 5th and 95th percentile as low and high. Logged too: a run may not end well."""
    ordered = sorted(values)
    edge = max(0, round(0.05 * (len(ordered) - 1)))
    made = {
        "case": case,
        "system": system,
        "metric": metric,
        "value": statistics.median(ordered),
        "unit": unit,
        "low": ordered[edge],
        "high": ordered[-1 - edge],
        "n": len(ordered),
    }
    _LOG.info("%s", json.dumps(made))
    return made


def _command() -> str:
    """What repeats this run; scripts of the folder of benchmarks set argv[0] to their name."""
    own = Path(sys.argv[0]).name in ("__main__.py", "ml_core", "pytest")
    return " ".join(["python -m ml_core" if own else f"make bench NAME={Path(sys.argv[0]).stem}", *sys.argv[1:]])


def _git() -> str:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
