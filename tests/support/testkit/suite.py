"""What `make test` runs: every test, then those that touch the database again on PostgreSQL, then what was skipped.

The browser's tests come first and alone, since some measure times. The engine's, which need no database and no service,
then run beside all others, at a lower priority, and on both cores when the others are done.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, deque
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ENGINE, BROWSER = "tests/unit/ml_core", "tests/e2e"
HEAVY = ("serving", "train", "kernels", "distill", "evals", "layers", "data", "quant")
sys.path.insert(0, str(ROOT / "tests" / "support"))

from testkit import services  # noqa: E402 - the line above makes it importable when run by `make`


def main(paths: list[str]) -> int:
    """Run the suite on `paths` (all tests by default); the exit status is that of the worst run."""
    if services.chromium_path() is None:
        _install_browser()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="assay-test-") as folder, services.redis_running() as redis_url:
        env = os.environ | {"REDIS_URL": redis_url, "ASSAY_HOME": str(Path(folder) / "home")}
        # each of the many interpreters that tests start would compile every source anew: a third of its start
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        postgres = services.postgres_url()
        runs = (
            _some(paths, env=env, folder=Path(folder)) if paths else _all(env, folder=Path(folder), postgres=postgres)
        )
        status = max(run.status for run in runs)
        closing = joined([run.closing for run in runs if run.counts], seconds=time.monotonic() - started)
        _print_skips([run.report for run in runs], postgres=postgres or "")
    if not paths and not postgres and os.environ.get("CI") == "1":
        print("CI needs PostgreSQL: set DATABASE_URL or start a server on 127.0.0.1:5432")
        status = max(status, 1)
    print(closing)
    return status


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a run of pytest ended; counts: whether its tests count in the closing line, which names each test once."""

    status: int
    closing: str
    report: Path
    counts: bool = True


def _some(paths: list[str], *, env: dict[str, str], folder: Path) -> list[Run]:
    return [_pytest(paths, env=_without_database(env), report=folder / "main.xml")]


def _all(env: dict[str, str], *, folder: Path, postgres: str | None) -> list[Run]:
    """Browser tests, some of which measure times, alone; then the engine's beside all others."""
    sqlite = _without_database(env)
    runs = [_pytest([BROWSER], env=sqlite, report=folder / "browser.xml")]
    engine = _Engine(folder, env=sqlite)
    engine.start()
    runs.append(_pytest([f"--ignore={ENGINE}", f"--ignore={BROWSER}"], env=sqlite, report=folder / "main.xml"))
    if postgres:
        print("\nOnce more on PostgreSQL: the tests that touch the database", flush=True)
        words = ["--database-only", f"--ignore={ENGINE}"]
        again = _pytest(words, env=env | {"DATABASE_URL": postgres}, report=folder / "postgres.xml")
        runs.append(replace(again, counts=False))
    engine.start()
    return [*runs, *engine.wait()]


def joined(closings: list[str], *, seconds: float) -> str:
    """Closing lines of several runs of pytest as one: 'N failed, N passed, N skipped in Ns'."""
    counts: Counter[str] = Counter()
    for line in closings:
        for number, word in re.findall(
            r"(\d+) (failed|passed|skipped|deselected|xfailed|xpassed|warning|error)s?", line
        ):
            counts[word] += int(number)
    order = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")
    parts = [f"{counts[word]} {word}{'s' * (word in ('warning', 'error') and counts[word] > 1)}" for word in order]
    said = ", ".join(part for part, word in zip(parts, order, strict=True) if counts[word])
    return f"{said or 'no tests ran'} in {seconds:.2f}s"


class _Engine:
    """The engine's tests, folder by folder, each a pytest of its own; their output is kept until it is waited for."""

    def __init__(self, folder: Path, *, env: dict[str, str]) -> None:
        # the interpreters that tests start would each take both cores, and wait for one
        self._folder, self._env = folder, env | {"OMP_NUM_THREADS": "1"}
        parts = sorted(path for path in (ROOT / ENGINE).iterdir() if path.is_dir() and any(path.rglob("test_*.py")))
        # the longest first, so that none of them begins when the other core has nothing left
        parts.sort(key=lambda part: HEAVY.index(part.name) if part.name in HEAVY else len(HEAVY))
        self._left: deque[tuple[str, list[str]]] = deque((part.name, [str(part)]) for part in parts)
        self._left.append(("engine", [str(path) for path in sorted((ROOT / ENGINE).glob("test_*.py"))]))
        self._threads: list[threading.Thread] = []
        self._done: list[tuple[Run, list[str]]] = []

    def start(self) -> None:
        """Take up part after part, beside what has been started before."""
        self._threads.append(threading.Thread(target=self._work))
        self._threads[-1].start()

    def wait(self) -> list[Run]:
        """Show what they printed, and how they ended."""
        for thread in self._threads:
            thread.join()
        print("\nBeside them: the engine's tests", flush=True)
        for _, lines in self._done:
            print(*lines, sep="\n", flush=True)
        return [run for run, _ in self._done]

    def _work(self) -> None:
        while True:
            try:
                name, paths = self._left.popleft()
            except IndexError:
                return
            report = self._folder / f"engine-{name}.xml"
            done = subprocess.run(
                ["nice", "-n", "10", *_command(paths, report=report)], cwd=ROOT, env=self._env, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            lines = done.stdout.splitlines()
            closing = next((line for line in reversed(lines) if line.strip()), "")
            self._done.append((Run(status=done.returncode, closing=closing, report=report), [f"{name}:", *lines]))


def _pytest(words: list[str], *, env: dict[str, str], report: Path) -> Run:
    """Run pytest and show its output as it comes."""
    closing = ""
    with subprocess.Popen(
        _command(words, report=report), cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line.strip() or closing
    return Run(status=process.returncode, closing=closing, report=report)


def _command(words: list[str], *, report: Path) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *words]


def _print_skips(reports: list[Path], *, postgres: str) -> None:
    skips: Counter[str] = Counter()
    for report in reports:
        if report.exists():
            skips.update(node.get("message", "") for node in ElementTree.parse(report).iter("skipped"))
    print("\nSkipped:" if skips or not postgres else "\nNothing was skipped.")
    for reason, count in sorted(skips.items()):
        print(f"  {count} × {reason}")
    if not postgres:
        print("  the whole run on PostgreSQL: no DATABASE_URL, and nothing answers on 127.0.0.1:5432")


def _install_browser() -> None:
    """Chromium by apt where that is allowed, else by Playwright."""
    if os.geteuid() == 0 and subprocess.run(["which", "apt-get"], capture_output=True, check=False).returncode == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        if subprocess.run(words, check=False).returncode == 0:
            return
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


def _without_database(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name != "DATABASE_URL"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
