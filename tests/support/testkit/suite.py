"""What `make test` runs: every test, then those that touch the database again on PostgreSQL, then what was skipped.

The browser's tests come first and alone, since some measure times. The engine's, which need no database and no service,
then run beside all others, at a lower priority.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ENGINE, BROWSER = "tests/unit/ml_core", "tests/e2e"
sys.path.insert(0, str(ROOT / "tests" / "support"))

from testkit import services  # noqa: E402 - the line above makes it importable when run by `make`


def main(paths: list[str]) -> int:
    """Run the suite on `paths` (all tests by default); the exit status is that of the worst run."""
    if services.chromium_path() is None:
        _install_browser()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="assay-test-") as folder, services.redis_running() as redis_url:
        env = os.environ | {"REDIS_URL": redis_url, "ASSAY_HOME": str(Path(folder) / "home")}
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
    beside = _Beside(folder, env=sqlite)
    runs.append(_pytest([f"--ignore={ENGINE}", f"--ignore={BROWSER}"], env=sqlite, report=folder / "main.xml"))
    if postgres:
        print("\nOnce more on PostgreSQL: the tests that touch the database", flush=True)
        words = ["--database-only", f"--ignore={ENGINE}"]
        again = _pytest(words, env=env | {"DATABASE_URL": postgres}, report=folder / "postgres.xml")
        runs.append(replace(again, counts=False))
    return [*runs, beside.wait()]


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


class _Beside:
    """The engine's tests, running beside the others; their output is kept until it is waited for."""

    def __init__(self, folder: Path, *, env: dict[str, str]) -> None:
        self.report = folder / "engine.xml"
        self._log = (folder / "engine.log").open("w+")
        self._process = subprocess.Popen(
            _command([ENGINE], report=self.report), cwd=ROOT, env=env, stdout=self._log, stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.nice(10),
        )  # fmt: skip

    def wait(self) -> Run:
        """Show what they printed, and how they ended."""
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().splitlines()
        self._log.close()
        print("\nBeside them: the engine's tests", *lines, sep="\n", flush=True)
        closing = next((line for line in reversed(lines) if line.strip()), "")
        return Run(status=status, closing=closing, report=self.report)


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
