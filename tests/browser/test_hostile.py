"""The console when things are odd: a session that ends in the middle, endless names, a feed that falls silent."""

import os
import signal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Site, go, log_in
from tests.browser.test_reach import PHONE
from tests.e2e.line_support import room, room_sale
from tests.e2e.support import until
from tests.faults.proxy import Proxy

SILENT_MS = 16_000


def test_session_that_ends_under_a_dialog_leads_to_the_login(operator: Page, site: Site) -> None:
    sale = site.client.sale({"red": 5})
    go(operator, f"campaigns/{sale}")
    operator.get_by_role("button", name=f"pause {sale}").click()
    operator.context.clear_cookies()
    operator.get_by_role("dialog").get_by_role("button", name="Pause", exact=True).click()
    token = operator.get_by_label("Admin token")
    expect(operator.get_by_role("dialog")).to_have_count(0)
    expect(token).to_be_focused()
    expect(operator.get_by_role("alert")).to_contain_text("Your session is over")
    log_in(operator)
    assert site.client.order(sale).status == 202  # nothing was done without a session


def test_empty_rate_does_not_stop_the_line(operator: Page, site: Site) -> None:
    sale = room_sale(site.client, room={"rate": 70})
    go(operator, f"campaigns/{sale}")
    operator.get_by_role("button", name="Change the rate").click()
    dialog = operator.get_by_role("dialog")
    dialog.get_by_label("Buyers a second").fill("")
    dialog.get_by_role("button", name="Change the rate").click()
    expect(dialog.get_by_role("alert")).to_contain_text("say how many")
    assert room(site.client, sale)["rate"] == 70
    dialog.get_by_label("Buyers a second").fill("0")  # control: a nought is one
    dialog.get_by_role("button", name="Change the rate").click()
    expect(dialog).to_have_count(0)
    assert room(site.client, sale)["rate"] == 0


def test_change_of_what_somebody_else_changed_meanwhile_is_refused(operator: Page, site: Site) -> None:
    """And a change of the limits alone leaves the window as it is, to the second."""
    sale = site.client.sale({"red": 5})
    before = site.client.admin("GET", sale).json["spec"]
    go(operator, f"campaigns/{sale}")
    dialog = operator.get_by_role("dialog")

    def change() -> None:
        operator.get_by_role("button", name="Window and limits").click()
        dialog.get_by_label("Per buyer", exact=True).fill("2")

    change()
    assert site.client.admin("PUT", sale, before | {"pay_within_s": 77}).status == 200
    dialog.get_by_role("button", name="Change", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("changed by somebody else meanwhile")
    assert site.client.admin("GET", sale).json["spec"] == before | {"pay_within_s": 77}
    operator.reload()
    change()
    dialog.get_by_role("button", name="Change", exact=True).click()
    expect(dialog).to_have_count(0)
    changed = site.client.admin("GET", sale).json["spec"]
    assert changed == before | {"pay_within_s": 77, "limits": before["limits"] | {"buyer": 2}}


def test_long_and_hostile_names_do_not_widen_the_page(operator: Page, site: Site) -> None:
    operator.set_viewport_size(PHONE)  # type: ignore[arg-type]
    names = ["W" * 180, "<img src=x onerror=alert(1)>", "\u202egnp.exe", "x"]
    skus = [{"sku": f"{'s' * 60}-{n}", "name": name, "stock": 3, "price": 1} for n, name in enumerate(names)]
    sale = site.client.sale({"red": 1}, skus=skus)
    for place in ("campaigns", f"campaigns/{sale}", "campaigns/%", "overview"):
        go(operator, place)
        expect(operator.get_by_role("main").locator("h1")).to_be_visible()
        if place == "campaigns":
            expect(operator.get_by_text(names[1]).first).to_be_visible()  # as text
        assert operator.evaluate("document.documentElement.scrollWidth") == PHONE["width"], place


def test_what_is_typed_into_a_filter_does_nothing_before_it_is_sent(operator: Page, site: Site) -> None:
    relays = site.up.children("relay")
    for relay in relays:
        os.kill(relay, signal.SIGSTOP)  # its messages stay where they are shown
    try:
        order = site.client.order(site.client.sale({"red": 1})).json["order_id"]
        go(operator, f"outbox?order={order}")
        shown = operator.get_by_role("main").get_by_role("table").get_by_role("link", name=order)
        expect(shown.first).to_be_visible()
        operator.get_by_label("Order id").fill("")
        with operator.expect_response("**/api/outbox?*") as asked:
            pass  # the view is kept fresh by itself
        assert order in asked.value.url  # nor would the buttons be about all there are
    finally:
        for relay in relays:
            os.kill(relay, signal.SIGCONT)


def test_campaigns_that_are_not_read_are_not_counted_as_sold(operator: Page, site: Site) -> None:
    small = site.client.sale({"red": 11})
    for _ in range(5):  # more shards than are read at once; these are newer
        site.client.sale({"red": 64}, spread=64)
    go(operator, "campaigns")
    expect(operator.get_by_role("region", name=small)).to_contain_text("11 left")
    expect(operator.get_by_text("what is left is not known here").first).to_be_visible()
    go(operator, "overview")
    expect(operator.locator(".tile", has_text="Units left")).to_contain_text("each one's page has its own")


def test_feed_that_falls_silent_is_begun_anew(site: Site, chromium: Browser) -> None:
    url = urlsplit(site.console)
    proxy = Proxy(url.port or 0)
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.clock.install()
        page.goto(f"http://127.0.0.1:{proxy.port}{url.path}")
        log_in(page)
        # The connections that there are stay dead, and nothing tells the browser so; new ones are sound.
        proxy.set("half_open")
        proxy.set("none")
        begun: list[float] = []
        page.on("request", lambda request: begun.append(0.0) if request.url.endswith("/api/live") else None)

        def silent_for_long() -> bool:
            page.clock.fast_forward(SILENT_MS)
            page.wait_for_timeout(300)
            return bool(begun) and page.locator("#state").text_content() == "live"

        until(silent_for_long)  # the browser may try other dead connections first, that it kept
    finally:
        context.close()
        proxy.close()
