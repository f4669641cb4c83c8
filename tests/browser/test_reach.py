"""The console for everybody: by keyboard alone, on a phone, in light and dark, and while something is away."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Site, go, log_in, watched
from tests.browser.test_access import console_process
from tests.e2e.support import until
from tests.e2e.test_lifecycle import accepted, paid
from tests.faults.proxy import Proxy

PHONE = {"width": 390, "height": 844}
# Text against what is behind it, by WCAG 2.2; what is greyed because it is old, or disabled, is exempt.
CONTRAST = """() => {
  const value = (c) => { const v = c / 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * value(r) + 0.7152 * value(g) + 0.0722 * value(b);
  const parse = (text) => { const m = text.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const c = parse(getComputedStyle(at).backgroundColor);
      if (c[3] > 0.99) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest("svg, .hidden, .skip, [disabled], .stale, option")) continue;
    const style = getComputedStyle(node), a = light(parse(style.color)), b = light(ground(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${node.tagName}.${node.className}: ${walk.currentNode.data.trim().slice(0, 40)}`);
  }
  return [seen, found];
}"""  # noqa: E501 - a program of its own


@pytest.fixture(scope="module")
def places(site: Site) -> list[str]:
    """Every view, with something to show."""
    sale = site.client.sale({f"sku-with-a-rather-long-name-{n}": 5 for n in range(4)} | {"red": 5}, spread=2)
    order = accepted(site.client, sale)
    assert paid(site.up, order).status == 200
    buyer = site.client.get(f"/v1/orders/{order}").json["buyer_id"]
    return [
        "overview", "campaigns", f"campaigns/{sale}", "workers", "outbox", "dead", f"search?q={buyer}",
        f"orders/{order}", "access",
    ]  # fmt: skip


def shown(page: Page, place: str) -> None:
    """The view is there, and has its data."""
    go(page, place)
    expect(page.get_by_role("main").locator("h1")).to_be_visible()
    expect(page.get_by_role("main")).not_to_contain_text("Loading …")


def test_phone_shows_every_view_without_scrolling_sideways(
    operator: Page, places: list[str], chromium: Browser
) -> None:
    operator.set_viewport_size(PHONE)  # type: ignore[arg-type]
    for place in places:
        shown(operator, place)
        widths = operator.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert max(widths) == PHONE["width"], f"{place}: {widths}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(operator: Page, places: list[str], scheme: str) -> None:
    operator.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for place in places:
        shown(operator, place)
        seen, poor = operator.evaluate(CONTRAST)
        assert seen > 10
        assert poor == [], place
    grounds = {operator.evaluate("getComputedStyle(document.body).backgroundColor")}
    operator.get_by_label("Colours").select_option("dark" if scheme == "light" else "light")
    grounds.add(operator.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2  # the switch wins over the system
    _, poor = operator.evaluate(CONTRAST)
    assert poor == []


def test_contrast_is_measured(operator: Page) -> None:
    """Control: shows that the measurement finds what is hard to read."""
    operator.evaluate("document.documentElement.style.setProperty('--dim', '#c8ccd2')")
    _, poor = operator.evaluate(CONTRAST)
    assert poor


def test_keyboard_alone_is_enough(page: Page, site: Site) -> None:
    sale = site.client.sale({"red": 5})
    page.keyboard.type("e2e-admin-token-000")  # the field has the focus
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("live")
    go(page, f"campaigns/{sale}")
    button = page.get_by_role("button", name=f"pause {sale}")
    expect(button).to_be_visible()
    page.reload()
    expect(button).to_be_visible()
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    assert skip.evaluate("n => n.getBoundingClientRect().top") >= 0  # it comes into sight
    page.keyboard.press("Enter")
    for _ in range(8):
        page.keyboard.press("Tab")
        if button.evaluate("n => n === document.activeElement"):
            break
    expect(button).to_be_focused()
    assert button.evaluate("n => getComputedStyle(n).outlineStyle") == "solid"  # and it is seen

    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()  # Enter again pauses nothing
    inside = "n => document.activeElement === document.body || n.contains(document.activeElement)"
    for _ in range(4):
        page.keyboard.press("Tab")
        assert dialog.evaluate(inside)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    assert site.client.order(sale).status == 202

    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    assert site.client.order(sale).code == "paused"
    expect(page.locator("#told")).to_contain_text(f"{sale} is paused")


@pytest.fixture
def apart(site: Site, tmp_path: Path) -> Iterator[tuple[str, Proxy]]:
    """A console that reaches the store by a way that can be cut."""
    url = urlsplit(site.up.ready["store"])
    proxy = Proxy(url.port or 0)
    away = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}")))
    part, console = console_process(site, tmp_path / "log", RUSHGATE_STORE_URL=away, RUSHGATE_STORE_TIMEOUT_S="1")
    try:
        yield console, proxy
    finally:
        part.end()
        proxy.close()


def test_store_away_is_told_and_what_was_seen_stays(site: Site, apart: tuple[str, Proxy], chromium: Browser) -> None:
    console, proxy = apart
    sale = site.client.sale({"red": 7})
    faults: list[str] = []
    context = chromium.new_context()
    try:
        page = watched(context, faults)
        page.goto(console)
        log_in(page)
        go(page, "campaigns")
        card = page.get_by_role("region", name=sale)
        expect(card).to_contain_text("7 left")
        proxy.set("cut")
        note = page.get_by_text("The store cannot be read")
        expect(note).to_contain_text("old")
        expect(card).to_contain_text("7 left")
        expect(page.locator(".stack.stale")).to_have_count(1)
        page.get_by_role("button", name=f"pause {sale}").click()
        page.get_by_role("dialog").get_by_role("button", name="Pause", exact=True).click()
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("store")
        page.keyboard.press("Escape")
        go(page, "overview")
        expect(page.get_by_role("list", name="Alerts")).to_contain_text("The store cannot be reached")
        proxy.set("none")
        expect(page.get_by_role("list", name="Alerts")).not_to_contain_text("The store cannot be reached")
        go(page, "campaigns")
        expect(page.locator(".stack.stale")).to_have_count(0)
        assert faults == []
    finally:
        context.close()


def test_console_away_is_told_and_the_page_comes_back(site: Site, chromium: Browser, tmp_path: Path) -> None:
    part, console = console_process(site, tmp_path / "log")
    port = str(urlsplit(console).port)
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.goto(console)
        log_in(page)
        assert part.end() == 0  # with a page open, and at once
        expect(page.locator("#state")).to_contain_text("no connection")
        expect(page.locator("#charts.stale")).to_have_count(1)
        part, _ = console_process(site, tmp_path / "log2", RUSHGATE_CONSOLE_PORT=port)
        expect(page.locator("#state")).to_have_text("live", timeout=20_000)  # the session survives the restart
        until(lambda: page.locator("#charts.stale").count() == 0)
    finally:
        context.close()
        part.end()
