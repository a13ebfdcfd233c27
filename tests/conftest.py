"""Fixtures of all tests, and the rule that CI skips nothing for want of a service or a browser."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit import flush, services

if not Path("/dev/nvidiactl").exists():
    # without a GPU Triton's kernels run in its interpreter; Triton heeds that when it is imported, by whomever
    os.environ["TRITON_INTERPRET"] = "1"

_SERVICE = re.compile(r"redis|valkey|broker|postgres|chromium|browser|playwright", re.IGNORECASE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database-only", action="store_true", help="run only the tests that touch the database")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--database-only"):
        return
    kept = [item for item in items if _touches_database(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _touches_database(item)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if os.environ.get("CI") == "1" and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if _SERVICE.search(reason):
            report.outcome = "failed"
            report.longrepr = f"CI skips nothing for want of a service: {reason}"
    return report


@pytest.fixture(scope="session", autouse=True)
def emptying_passes_the_triggers() -> Iterator[None]:
    """Tables that refuse DELETE (audit events, signed reports) can still be emptied between transactional tests."""
    with pytest.MonkeyPatch.context() as patch:
        flush.install(patch)
        yield


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A real Redis: the machine's, or an embedded one."""
    with services.redis_running() as url:
        yield url


def _touches_database(item: pytest.Item) -> bool:
    if item.get_closest_marker("e2e"):
        return False
    fixtures = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("django_db") is not None or bool(fixtures & {"db", "transactional_db"})
