"""The real demo and a real Chromium, once for all journeys; every page is watched for errors."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from testkit import services
from testkit.demo_stack import PASSWORD, DemoStack

FIRST_START_LIMIT_S = 900
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(FIRST_START_LIMIT_S + 60))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[DemoStack]:
    """A running demo with little data; its logs are shown when a journey failed."""
    stack = DemoStack(home=tmp_path_factory.mktemp("demo"))
    try:
        stack.start(limit_s=FIRST_START_LIMIT_S)
        yield stack
    finally:
        stack.stop()
        if request.session.testsfailed:
            print(stack.log_tails())


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = services.chromium_path()
    if path is None:
        pytest.skip("no browser: neither the machine nor Playwright has a Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def sign_in(demo: DemoStack, browser: Browser) -> Iterator[Callable[[str], Page]]:
    """`sign_in("analyst-1")` gives a page on that person's list. At the end no page may have logged an error."""
    faults: list[str] = []
    contexts = []

    def open_as(name: str) -> Page:
        context = browser.new_context(base_url=demo.url, viewport={"width": 1440, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
        page.on("console", lambda message: _note(faults, page, message.type, message.text))
        page.goto("/sign-in/")
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".bar .user")).to_contain_text(name)
        page.wait_for_load_state()  # the keys are heard once the scripts have run
        return page

    yield open_as
    for context in contexts:
        context.close()
    assert faults == []


def _note(faults: list[str], page: Page, kind: str, text: str) -> None:
    if kind == "error" or "Content Security Policy" in text:
        faults.append(f"{page.url}: {text}")
