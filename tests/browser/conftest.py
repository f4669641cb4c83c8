"""A whole stack with a console, and Debian's Chromium before it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.partners import Partners
from tests.e2e.support import ADMIN, Client, Up

CHROMIUM = shutil.which("chromium")
WIDE = {"width": 1280, "height": 800}
PATIENCE_MS = 15_000
# plotly tries to put a style of its own into the page, which the page's policy refuses; nothing is missing without it.
EXPECTED = ("Applying inline style violates",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is marked `browser`: not collected where there is none (tests/tools.sh), never skipped."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


class Site(NamedTuple):
    """What the tests of a session share."""

    up: Up
    partners: Partners
    console: str  # URL

    @property
    def client(self) -> Client:
        return self.up.client


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack with its console, and partners of ours."""
    partners = Partners()
    data: Path = tmp_path_factory.mktemp("console")
    env = {"RUSHGATE_CONSOLE": "on", "RUSHGATE_CONSOLE_PORT": "0", "RUSHGATE_PARTNERS_URL": partners.url}
    up = Up(data / "d", "--port", "0", env=env)
    try:
        up.wait_ready()
        yield Site(up, partners, up.ready["console"])
    finally:
        up.end()
        partners.close()


# Of a module, not of the session: while Playwright runs, asyncio believes that a loop runs in this thread.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    assert CHROMIUM, "there is no chromium on PATH: apt-get install chromium"
    with sync_playwright() as playwright:
        # No sandbox: the tests may run as root. The pages are our own.
        args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


def watched(context: BrowserContext, faults: list[str]) -> Page:
    """A new page; what goes wrong in its scripts, and what its policy refuses, is noted."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)

    def said(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text and not message.text.startswith(EXPECTED):
            faults.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: faults.append(str(error)))
    return page


@pytest.fixture
def page(site: Site, chromium: Browser) -> Iterator[Page]:
    """The console's page, nobody logged in; no script of it may fail."""
    expect.set_options(timeout=PATIENCE_MS)
    context = chromium.new_context(viewport=WIDE)  # type: ignore[arg-type]
    faults: list[str] = []
    found = watched(context, faults)
    found.goto(site.console)
    yield found
    context.close()
    assert faults == []


def log_in(page: Page, token: str = ADMIN) -> None:
    """As an operator does."""
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#state")).to_have_text("live")


@pytest.fixture
def operator(page: Page) -> Page:
    """A page of somebody who is logged in."""
    log_in(page)
    return page


def go(page: Page, place: str) -> None:
    """To a view, by its address."""
    page.evaluate("place => { location.hash = place }", f"#/{place}")
