"""A caller sees and moves only its own orders: every call of the OpenAPI document, tried by those who must stay out."""

import json
import time
from typing import Any, NamedTuple

import pytest

from core.tickets import Ticket, Tickets
from gateway.openapi import document
from tests.e2e.support import ADMIN, APP_KEY, TICKET_SECRET, WEB_KEY, Client, Reply, Up, bearer, until
from tests.support import fresh

SHIP_TO = {"name": "Anna", "phone": "+86 1", "address": "Nanjing Road 1"}
ONE = "/v1/orders/{order_id}"

# Calls about one order that are a channel's or a buyer's, with a body that is right.
OWN: dict[tuple[str, str], Any] = {
    ("GET", ONE): None,
    ("PATCH", ONE): {"ship_to": SHIP_TO},
    ("GET", ONE + "/events"): None,
    ("GET", ONE + "/trace"): None,
    ("POST", ONE + "/cancel"): None,
    ("POST", ONE + "/confirm-receipt"): None,
    ("POST", ONE + "/returns"): None,
    ("POST", ONE + "/urge"): None,
    ("GET", ONE + "/refunds"): None,
    ("POST", ONE + "/refunds"): {"amount": 1},
}
# Calls that operators alone may make.
OPERATORS = {
    ("POST", ONE + "/suspend"),
    ("POST", ONE + "/resume"),
    ("POST", ONE + "/actions/{action}"),
    ("POST", ONE + "/refunds/{refund_no}/approve"),
    ("POST", ONE + "/refunds/{refund_no}/reject"),
    ("POST", ONE + "/refunds/{refund_no}/confirm"),
}
# Calls that name no order; what keeps callers apart there has tests of its own.
OTHERS = {
    ("POST", "/v1/campaigns/{campaign}/orders"): "test_access, test_tickets: a ticket orders for its buyer alone",
    ("POST", "/v1/campaigns/{campaign}/orders:batch"): "below: not with a ticket",
    ("GET", "/v1/campaigns/{campaign}"): "the same for all callers",
    ("GET", "/v1/orders"): "below: own orders only",
    ("POST", "/v1/payments/callback"): "signed by the payment centre",
    ("POST", "/v1/partners/{partner}/callback"): "signed by the partner",
    ("POST", "/v1/campaigns/{campaign}/tickets"): "below: not with a ticket",
    ("POST", "/v1/campaigns/{campaign}/line"): "no order yet",
    ("GET", "/v1/campaigns/{campaign}/line"): "by the signed place alone",
    ("POST", "/v1/campaigns/{campaign}/line/challenge"): "no order yet",
}
OPEN = {"/livez", "/readyz", "/openapi.json", "/problems/{code}"}
ADMINS = {
    (method.upper(), path)
    for path, item in document()["paths"].items()
    for method, call in item.items()
    if call["security"] == [{"adminToken": []}] and not path.startswith(ONE)
}


class Side(NamedTuple):
    """Two orders of one buyer at one channel in two campaigns, and who knocks."""

    client: Client
    campaign: str
    order: str
    elsewhere: str  # the same buyer's order in another campaign
    buyer: str
    tickets: Tickets

    def ticket(self, channel: str = "app", campaign: str = "", buyer: str = "", seconds: float = 60) -> str:
        ends_ms = int((time.time() + seconds) * 1000)
        return self.tickets.issue(Ticket(channel, campaign or self.campaign, buyer or self.buyer, "", ends_ms))

    def strangers(self) -> dict[str, str]:
        """Who must not know the order."""
        return {
            "another channel": WEB_KEY,
            "another buyer": self.ticket(buyer="mallory"),
            "the buyer's ticket of another campaign": self.ticket(campaign="another"),
            "the buyer's namesake at another channel": self.ticket(channel="web"),
        }

    def ask(self, method: str, path: str, key: str, body: Any = None) -> Reply:
        data = None if method == "GET" else json.dumps(body).encode() if body is not None else b""
        return self.client.call(method, path, data, bearer(key))


@pytest.fixture(scope="module")
def side(stack: Up) -> Side:
    client = stack.client
    buyer, campaigns = fresh("anna"), [client.sale({"red": 5}) for _ in range(2)]
    orders = [client.order(c, buyer).json["order_id"] for c in campaigns]
    until(lambda: all(client.get(f"/v1/orders/{order}/trace").status == 200 for order in orders))
    return Side(client, campaigns[0], orders[0], orders[1], buyer, Tickets([TICKET_SECRET]))


def test_every_call_of_the_document_is_in_one_of_these_tables() -> None:
    """A new route is thought about here, or this fails."""
    calls = {(m.upper(), path) for path, item in document()["paths"].items() for m in item if path not in OPEN}
    known = set(OWN) | OPERATORS | set(OTHERS) | ADMINS
    assert calls - known == set()
    assert set(OWN) | OPERATORS <= calls
    assert {("POST", "/v1/admin/channels"), ("GET", "/v1/admin/campaigns/{campaign}/audit")} <= ADMINS


@pytest.mark.parametrize(("method", "path"), OWN, ids=[" ".join(call) for call in OWN])
def test_order_of_somebody_else_is_unknown_to_every_call(side: Side, method: str, path: str) -> None:
    before = side.client.get(f"/v1/orders/{side.order}").json
    for who, key in side.strangers().items():
        reply = side.ask(method, path.replace("{order_id}", side.order), key, OWN[method, path])
        assert (reply.status, reply.code) == (404, "unknown_order"), who
        nobody = side.ask(method, path.replace("{order_id}", side.order[:-4] + "0000"), key, OWN[method, path])
        assert nobody.body == reply.body, who  # that there is such an order does not show
    assert side.client.get(f"/v1/orders/{side.order}").json == before


@pytest.mark.parametrize(("method", "path"), sorted(OPERATORS), ids=[" ".join(call) for call in sorted(OPERATORS)])
def test_calls_of_operators_are_shut_to_channels_and_tickets(side: Side, method: str, path: str) -> None:
    filled = path.replace("{order_id}", side.order).replace("{action}", "suspend").replace("{refund_no}", "ref_2")
    for key in (APP_KEY, side.ticket(), *side.strangers().values()):
        assert side.ask(method, filled, key).code == "operators_only"
    assert side.ask(method, filled, "wrong-key-0000000000").code == "unauthorized"
    assert side.ask(method, filled, side.ticket(seconds=-1)).code == "unauthorized"


@pytest.mark.parametrize(("method", "path"), sorted(ADMINS), ids=[" ".join(call) for call in sorted(ADMINS)])
def test_admin_calls_are_shut_to_channels_and_tickets(side: Side, method: str, path: str) -> None:
    filled = path.replace("{campaign}", side.campaign).replace("{channel}", "app")
    for key in (APP_KEY, side.ticket()):
        assert side.ask(method, filled, key, {}).code == "operators_only"
    assert side.ask(method, filled, side.ticket(seconds=-1), {}).code == "unauthorized"


def test_list_shows_a_ticket_the_buyers_orders_of_its_campaign_and_nothing_else(side: Side) -> None:
    def listed(query: str, key: str) -> Reply:
        return side.ask("GET", f"/v1/orders{query}", key)

    mine = [o["order_id"] for o in listed("", side.ticket()).json["orders"]]
    assert mine == [side.order]
    assert [o["order_id"] for o in listed(f"?buyer_id={side.buyer}", side.ticket()).json["orders"]] == mine
    assert listed("", side.ticket(buyer="mallory")).json["orders"] == []
    for query in ("?buyer_id=mallory", "?campaign=another", "?channel=web"):
        refused = listed(query, side.ticket())
        assert (refused.code, refused.json["field"]) == ("invalid", query[1:].partition("=")[0])
    both = [o["order_id"] for o in listed(f"?buyer_id={side.buyer}", APP_KEY).json["orders"]]
    assert sorted(both) == sorted([side.order, side.elsewhere])
    assert listed(f"?buyer_id={side.buyer}", WEB_KEY).json["orders"] == []
    assert sorted(o["order_id"] for o in listed(f"?buyer_id={side.buyer}", ADMIN).json["orders"]) == sorted(both)


def test_ticket_opens_neither_batches_nor_further_tickets(side: Side) -> None:
    line = {"request_key": "k", "buyer_id": side.buyer, "items": [{"sku": "red", "quantity": 1}]}
    refused = side.ask("POST", f"/v1/campaigns/{side.campaign}/orders:batch", side.ticket(), line)
    assert (refused.status, refused.code) == (403, "ticket_wrong")
    more = side.ask("POST", f"/v1/campaigns/{side.campaign}/tickets", side.ticket(), {"buyer_id": side.buyer})
    assert more.status in (401, 403)


def test_own_order_is_known_to_the_buyer_by_ticket_and_moved_by_it(side: Side) -> None:
    """Control: the tables above name calls that a caller who may does get through."""
    key = side.ticket()
    for method, path in OWN:
        if method == "GET" and not path.endswith("/events"):
            assert side.ask(method, path.replace("{order_id}", side.order), key).status == 200, path
    urged = side.ask("POST", f"/v1/orders/{side.order}/confirm-receipt", key)
    assert urged.code == "not_allowed"  # known, and its flow has no such step yet
    moved = side.ask("POST", f"/v1/orders/{side.order}/cancel", key)
    assert (moved.status, moved.json["state"]) == (200, "cancelled")
    trace = side.ask("GET", f"/v1/orders/{side.order}/trace", APP_KEY).json["steps"]
    assert [s["actor"] for s in trace if s["what"] == "cancel"] == ["ticket:app"]
