"""What an operator does in a sale, in a real browser: from its definition to the replay of a dead letter."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, go
from tests.e2e.support import until
from tests.e2e.test_lifecycle import accepted, paid
from tests.support import fresh


def confirm(page: Page, verb: str, *says: str) -> None:
    """The dialog says what will happen; it is confirmed, and is gone when it is done."""
    dialog = page.get_by_role("dialog")
    for words in says:
        expect(dialog).to_contain_text(words)
    dialog.get_by_role("button", name=verb, exact=True).click()
    expect(dialog).to_have_count(0)


@pytest.fixture(scope="module")
def sale(site: Site) -> Iterator[str]:
    """A campaign of ten units; its orders are paid."""
    return (yield site.client.sale({"red": 10, "blue": 3}))


def test_operator_defines_opens_pauses_restocks_and_closes_a_campaign(operator: Page, site: Site) -> None:
    page, client, name = operator, site.client, fresh("by-hand")
    page.get_by_role("link", name="Campaigns").click()
    page.get_by_role("button", name="New campaign").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").first.fill(name)
    dialog.get_by_label("Opens").fill("2026-01-01T00:00")
    dialog.get_by_label("Closes").fill("2099-01-01T00:00")
    dialog.get_by_label("Per buyer", exact=True).fill("2")
    dialog.get_by_label("SKU", exact=True).fill("red")
    dialog.get_by_label("Units", exact=True).fill("20")
    dialog.get_by_label("Price").fill("-5")
    dialog.get_by_role("button", name="Define as a draft").click()
    expect(dialog).to_be_visible()  # the browser itself refuses such a price
    dialog.get_by_label("Price").fill("100")
    dialog.get_by_role("button", name="Define as a draft").click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    main = page.get_by_role("main")
    expect(main).to_contain_text("draft")
    assert client.order(name).code == "not_open"

    page.get_by_role("button", name=f"open {name}").click()
    confirm(page, "Open", "20 units of 1 SKU", "cannot change")
    expect(main.locator(".head .pill")).to_have_text("open")
    expect(page.get_by_role("status").last).to_contain_text(f"{name} is open")
    for _ in range(3):
        assert client.order(name).status == 202
    expect(main.locator("tr", has_text="red").first).to_contain_text("17")  # left, without a click

    page.get_by_role("button", name=f"pause {name}").click()
    confirm(page, "Pause", "No order is taken", "Accepted orders go on")
    assert client.order(name).code == "paused"
    page.get_by_role("button", name=f"open {name}").click()
    confirm(page, "Open", "Orders are taken again")

    page.get_by_role("button", name=f"restock {name}").click()
    page.get_by_label("Units").fill("-100")
    page.get_by_role("button", name="Change the stock").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("fewer than 100 units of red are left")
    page.get_by_label("Units").fill("5")
    expect(page.get_by_role("dialog")).to_contain_text("5 units of red come on sale")
    confirm(page, "Change the stock")
    expect(main.locator("tr", has_text="red").first).to_contain_text("22")
    assert client.settled_audit(name)["skus"][0]["allocation"] == 25

    page.get_by_role("button", name="Judge the balance now").click()
    expect(main).to_contain_text("3 accepted, 3 in the ledger")
    page.get_by_role("button", name=f"close {name}").click()
    confirm(page, "Close for good", "No order is ever taken again", "22 units now")
    expect(main.locator(".head .pill")).to_have_text("closed")
    assert client.order(name).code == "closed"
    assert client.settled_audit(name)["unsold"] == 0


def test_overview_shows_orders_as_they_come(operator: Page, site: Site, sale: str) -> None:
    page = operator
    expect(page.locator("#charts .main-svg").first).to_be_visible()  # plotly has drawn
    tile = page.locator(".tile", has_text="Accepted")

    def orders_are_seen() -> bool:
        site.client.order(sale, buyer="somebody", key="one-and-the-same")  # accepted once, then replayed
        return "0 /s sent again" not in tile.inner_text()

    until(orders_are_seen)
    expect(page.locator(".tile", has_text="Latency p99")).to_contain_text("ms")
    expect(page.locator(".tile", has_text="Processes")).not_to_contain_text("Processes\n0")
    label = page.locator(".chart").first.get_attribute("aria-label") or ""
    assert label.startswith("Orders a second by outcome. ")


def test_order_is_found_by_each_of_its_names(operator: Page, site: Site, sale: str) -> None:
    page, buyer, key, number = operator, fresh("buyer"), fresh("key"), fresh("pay")
    order = site.client.order(sale, buyer=buyer, key=key).json["order_id"]
    assert paid(site.up, order, payment_no=number).status == 200
    page.get_by_role("link", name="Search").click()
    box = page.get_by_role("searchbox")
    for text, heading in ((buyer, "By buyer"), (key, "By request key"), (number, "By payment number")):
        box.fill(text)
        page.get_by_role("button", name="Search").click()
        found = page.locator(".card", has_text=heading)
        expect(found.get_by_role("link", name=order)).to_be_visible()
    box.fill(fresh("nobody"))
    box.press("Enter")
    expect(page.get_by_role("main")).to_contain_text("Nothing is called")
    box.fill(order.upper())
    box.press("Enter")
    expect(page.get_by_role("heading", name=f"Order {order}")).to_be_visible()
    main = page.get_by_role("main")
    expect(main).to_contain_text(number)
    expect(main.locator(".flow .now text")).to_have_text("paid")
    expect(main.locator(".flow .did")).to_have_count(1)  # accepted to paid; the rest of the flow is there to be had
    assert main.locator(".flow .may").count() > 10


def test_request_key_is_found_before_the_ledger_has_the_order(operator: Page, site: Site, sale: str) -> None:
    key, workers = fresh("key"), site.up.children("ledger")
    assert site.up.command("scale", "ledger=0").returncode == 0
    try:
        order = site.client.order(sale, key=key).json["order_id"]
        go(operator, f"search?q={key}")
        operator.get_by_role("link", name=order).click()
        expect(operator.get_by_role("main")).to_contain_text("on its way to the ledger")
    finally:
        assert site.up.command("scale", "ledger=1").returncode == 0
    assert workers
    expect(operator.locator(".steps li")).not_to_have_count(0)  # by itself, once a worker is back


def test_dead_letter_is_seen_and_put_back(operator: Page, site: Site, sale: str) -> None:
    page, partners = operator, site.partners
    order = accepted(site.client, sale)
    partners.refuse = {"warehouse"}
    assert paid(site.up, order).status == 200
    alert = page.get_by_role("list", name="Alerts").get_by_role("link", name="nobody could deliver")
    expect(alert).to_be_visible()
    expect(page.get_by_role("link", name="Messages")).to_contain_text("1")
    alert.click()
    row = page.get_by_role("row", name=order)
    expect(row).to_contain_text("warehouse")
    expect(row).to_contain_text("422")
    partners.refuse = set()
    row.get_by_role("button", name="put back warehouse").click()
    confirm(page, "Put back", f"warehouse of order {order}")
    expect(page.get_by_role("main")).to_contain_text("Nothing is dead")
    until(lambda: any(topic == "warehouse" and order.encode() in body for topic, body in partners.taken))
    go(page, f"orders/{order}")
    expect(page.locator(".steps")).to_contain_text("message warehouse delivered")


def test_order_is_suspended_refunded_and_cancelled(operator: Page, site: Site, sale: str) -> None:
    page, order = operator, accepted(site.client, sale)
    assert paid(site.up, order).status == 200
    go(page, f"orders/{order}")
    main = page.get_by_role("main")
    page.get_by_role("button", name="suspend").click()
    confirm(page, "suspend", "until it is resumed")
    expect(main.locator(".flow .now text")).to_have_text("suspended")
    page.get_by_role("button", name="resume").click()
    confirm(page, "resume")
    page.get_by_role("button", name="refund", exact=True).click()
    page.get_by_label("Amount").fill("500")
    page.get_by_role("dialog").get_by_role("button", name="Refund").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("100")  # no more than was paid
    page.get_by_label("Amount").fill("40")
    page.get_by_label("Reason").fill("scratched")
    confirm(page, "Refund")
    refund = main.get_by_role("row", name="scratched")
    expect(refund).to_contain_text("approved")
    refund.get_by_role("button", name="confirm").click()
    confirm(page, "Confirm", "at your word")
    expect(refund).to_contain_text("done")
    page.get_by_role("button", name="cancel", exact=True).click()
    confirm(page, "cancel", "What was paid goes back")
    expect(main.locator(".flow .now text")).to_have_text("refund pending")
    state = site.client.get(f"/v1/orders/{order}").json["state"]
    assert state == "refund_pending"


def test_workers_are_shown_and_scaled(operator: Page, site: Site) -> None:
    page = operator
    page.get_by_role("link", name="Workers").click()
    table = page.get_by_role("main").locator("table").last
    for kind in ("gateway", "ledger", "expiry", "relay", "reconcile", "console"):
        expect(table).to_contain_text(kind)
    page.get_by_role("button", name="one expiry more").click()
    confirm(page, "Scale", "Now 1 run on this machine")
    expect(page.get_by_role("group", name="expiry")).to_contain_text("2")
    expect(table.locator("tr", has_text="expiry")).to_have_count(2)
    page.get_by_role("button", name="one expiry less").click()
    confirm(page, "Scale", "finish what they have in hand")
    expect(page.get_by_role("group", name="expiry")).to_contain_text("1")
    assert len(site.up.children("expiry")) == 1


def test_waiting_room_is_shown_and_its_rate_set(operator: Page, site: Site) -> None:
    page, name = operator, site.client.sale({"red": 5}, admission="room")
    go(page, f"campaigns/{name}")
    card = page.locator(".card", has=page.get_by_role("heading", name="Waiting room"))
    expect(card).to_contain_text("finds its rate by itself")
    card.get_by_role("button", name="Change the rate").click()
    page.get_by_role("dialog").get_by_role("combobox").select_option("fixed")
    page.get_by_label("Buyers a second").fill("7")
    confirm(page, "Change the rate", "0 lets nobody in")
    expect(card).to_contain_text("7 /s; it admits at the rate that was set")


def test_buyer_is_blocked_and_let_in_again(operator: Page, site: Site, sale: str) -> None:
    page, buyer = operator, fresh("bot")
    page.get_by_role("link", name="Access").click()
    page.get_by_role("button", name="Block", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Who").fill(buyer)
    dialog.get_by_label("Why").fill("scalper")
    confirm(page, "Block", "within a second")
    row = page.get_by_role("row", name=buyer)
    expect(row).to_contain_text("scalper")
    until(lambda: site.client.order(sale, buyer=buyer).code == "blocked")
    row.get_by_role("button", name="Unblock").click()
    confirm(page, "Unblock")
    expect(page.get_by_role("main")).to_contain_text("Nobody is blocked.")
    until(lambda: site.client.order(sale, buyer=buyer, items=[{"sku": "blue", "quantity": 1}]).status == 202)
