"""The sample waiting page in a real browser: from the proof of work through the line to an order."""

import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.e2e.conftest import own_gateway
from tests.e2e.line_support import join, room_sale, set_rate
from tests.e2e.support import ROOT, Client, Part, Up

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.browser


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Not into the tests' output."""


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """A web server of the samples: the shop's, of another origin than the gateway."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(ROOT / "deploy/sample")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def shop(stack: Up, pages: str, tmp_path: Path) -> Iterator[Client]:
    """A gateway that pages of the web server may call."""
    part = Part(tmp_path / "log", ["gateway"], own_gateway(stack) | {"RUSHGATE_CORS_ORIGINS": pages})
    try:
        yield part.gateway()
    finally:
        part.end()


@pytest.fixture
def page() -> Iterator[Page]:
    assert CHROMIUM, "there is no chromium on PATH: apt-get install chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = browser.new_page()
        found.set_default_timeout(20_000)
        try:
            yield found
        finally:
            browser.close()


def test_guest_waits_in_the_line_and_buys_once(shop: Client, pages: str, page: Page) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda exc: errors.append(str(exc)))
    campaign = room_sale(shop, {"red": 5}, room={"rate": 0, "channel": "web", "pow_bits": 8})
    for n in range(3):
        join(shop, campaign, f"b{n}")
    page.goto(f"{pages}/waiting.html?gateway={shop.url}&campaign={campaign}&sku=red")
    page.get_by_role("heading", name="You are in the line").wait_for()
    page.get_by_text("3", exact=True).wait_for()
    set_rate(shop, campaign, mode="fixed", rate=1_000)
    page.get_by_role("button", name="Buy now").click()
    page.get_by_role("heading", name="It is yours").wait_for()
    order = page.get_by_role("status").inner_text().split()[1]
    # Again, as after a reload: the same place, the same order.
    page.reload()
    page.get_by_role("button", name="Buy now").click()
    page.get_by_text(order).wait_for()
    assert shop.audit(campaign)["accepted"] == 1
    assert errors == []
