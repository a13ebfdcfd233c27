"""What `make test` runs: every test, then those that touch the database again on PostgreSQL, then what was skipped."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from testkit import services  # noqa: E402 - the line above makes it importable when run by `make`


def main(paths: list[str]) -> int:
    """Run the suite on `paths` (all tests by default); the exit status is that of the worse run."""
    if services.chromium_path() is None:
        _install_browser()
    with tempfile.TemporaryDirectory(prefix="assay-test-") as folder:
        reports = [Path(folder) / "main.xml"]
        with services.redis_running() as redis_url:
            env = os.environ | {"REDIS_URL": redis_url, "ASSAY_HOME": str(Path(folder) / "home")}
            status, closing = _pytest([*paths], env=_without_database(env), report=reports[0])
            postgres = services.postgres_url()
            if not paths and postgres:
                print("\nOnce more on PostgreSQL: the tests that touch the database", flush=True)
                reports.append(Path(folder) / "postgres.xml")
                again, _line = _pytest(["--database-only"], env=env | {"DATABASE_URL": postgres}, report=reports[1])
                status = max(status, again)
        _print_skips(reports, postgres=postgres or "")
    if not paths and not postgres and os.environ.get("CI") == "1":
        print("CI needs PostgreSQL: set DATABASE_URL or start a server on 127.0.0.1:5432")
        status = max(status, 1)
    print(closing)
    return status


def _pytest(words: list[str], *, env: dict[str, str], report: Path) -> tuple[int, str]:
    """Run pytest, show its output as it comes, and return its exit status and closing line."""
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *words]
    closing = ""
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            closing = line.strip() or closing
    return process.returncode, closing


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
