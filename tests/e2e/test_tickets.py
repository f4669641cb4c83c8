"""Admission tickets over HTTP, on both ways of an order: what a buyer's browser may do with one, and what not."""

import json
import time
from typing import Any

import pytest

from core.tickets import Ticket, Tickets
from tests.e2e.support import ADMIN, APP_KEY, TICKET_SECRET, WEB_KEY, Client, Reply, bearer, definition, until
from tests.support import fresh


def ticket(client: Client, campaign: str, buyer: str, key: str = APP_KEY, **fields: Any) -> str:
    """A ticket that the channel's server asked for."""
    body = json.dumps({"buyer_id": buyer, **fields}).encode()
    reply = client.call("POST", f"/v1/campaigns/{campaign}/tickets", body, bearer(key))
    assert reply.status == 200, reply
    return str(reply.json["ticket"])


def forged(campaign: str, buyer: str, secret: str = TICKET_SECRET, ends_in_s: float = 60.0, **fields: Any) -> str:
    """A ticket as this test wants it."""
    values: dict[str, Any] = {"channel": "app", "device_id": "", "room": False} | fields
    ends_ms = int((time.time() + ends_in_s) * 1000)
    return Tickets([secret]).issue(Ticket(campaign=campaign, buyer_id=buyer, expires_ms=ends_ms, **values))


@pytest.fixture(scope="module")
def gated(both_ways: Client) -> str:
    """A campaign that wants a ticket, known to the gateway, so that its short way is asked first."""
    campaign = both_ways.sale({"red": 1_000}, admission="ticket", trusted_channels=["web"])
    assert both_ways.order(campaign).code == "ticket_needed"
    return campaign


def test_ticket_orders_for_its_buyer_and_sees_the_order(both_ways: Client, gated: str) -> None:
    buyer = fresh("b")
    mine = ticket(both_ways, gated, buyer)
    reply = both_ways.order(gated, buyer, "k", mine)
    assert reply.status == 202
    again = both_ways.order(gated, buyer, "k", mine)
    assert (again.json, again.headers["idempotent-replayed"]) == (reply.json, "true")
    shown = both_ways.get(reply.json["status_url"], mine)
    assert (shown.status, shown.json["channel"], shown.json["buyer_id"]) == (200, "app", buyer)


def test_order_with_a_key_of_a_gated_campaign_needs_a_ticket_unless_its_channel_is_trusted(
    both_ways: Client, gated: str
) -> None:
    refused = both_ways.order(gated)
    assert (refused.status, refused.code) == (403, "ticket_needed")
    assert both_ways.order(gated, channel_key=WEB_KEY).status == 202


def test_batch_of_a_gated_campaign_is_refused_line_by_line_unless_its_channel_is_trusted(
    both_ways: Client, gated: str
) -> None:
    line = b'{"request_key":"%s","buyer_id":"x","items":[{"sku":"red","quantity":1}]}'
    lines = b"\n".join([line % fresh("k").encode(), b"nonsense"])
    refused = [json.loads(one) for one in both_ways.batch(gated, lines).body.splitlines()]
    assert [one["code"] for one in refused] == ["ticket_needed", "ticket_needed"]
    taken = [json.loads(one) for one in both_ways.batch(gated, lines, WEB_KEY).body.splitlines()]
    assert [one["http_status"] for one in taken] == [202, 400]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"buyer_id": "somebody-else"}, "buyer_id"),
        ({"device_id": "another"}, "device_id"),
        ({"device_id": None}, "device_id"),
    ],
)
def test_ticket_for_another_buyer_or_device_is_wrong(
    both_ways: Client, gated: str, change: dict[str, Any], field: str
) -> None:
    buyer = fresh("b")
    mine = ticket(both_ways, gated, buyer, device_id="phone-1")
    body = {"buyer_id": buyer, "device_id": "phone-1"} | change
    reply = both_ways.order(gated, buyer, "", mine, **body)
    assert (reply.status, reply.code, reply.json["field"]) == (403, "ticket_wrong", field)
    assert both_ways.order(gated, buyer, "", mine, device_id="phone-1").status == 202


def test_ticket_of_another_campaign_is_wrong(both_ways: Client, gated: str) -> None:
    other = both_ways.sale({"red": 1}, admission="ticket")
    reply = both_ways.order(gated, "b", "", ticket(both_ways, other, "b"))
    assert (reply.status, reply.code) == (403, "ticket_wrong")


@pytest.mark.parametrize(
    "fields", [{"secret": "another-secret-00"}, {"ends_in_s": -1.0}, {"channel": "app", "ends_in_s": -86_400.0}]
)
def test_ticket_that_is_forged_or_over_lets_nobody_in(both_ways: Client, gated: str, fields: dict[str, Any]) -> None:
    assert both_ways.order(gated, "b", "", forged(gated, "b")).status == 202  # control: the same, but well made
    reply = both_ways.order(gated, "b", "", forged(gated, "b", **fields))
    assert (reply.status, reply.code) == (401, "unauthorized")


def test_ticket_of_a_campaign_without_a_gate_is_good_too(both_ways: Client) -> None:
    campaign = both_ways.sale({"red": 3}, limits={"ip": 1})
    assert both_ways.order(campaign, "a", "", ticket(both_ways, campaign, "a")).status == 202
    assert both_ways.order(campaign, "b", channel_key=APP_KEY, client_ip="192.0.2.1").status == 202


def test_address_of_a_buyer_with_a_ticket_is_the_connection_s(both_ways: Client) -> None:
    campaign = both_ways.sale({"red": 3}, limits={"ip": 1})
    both_ways.order(campaign, "warm", client_ip="192.0.2.9")
    for n, status in ((1, 202), (2, 409)):  # whatever the body says
        buyer = f"b{n}"
        mine = ticket(both_ways, campaign, buyer)
        reply = both_ways.order(campaign, buyer, "", mine, client_ip=f"192.0.2.{n}")
        assert reply.status == status
    assert (reply.code, reply.json["limit"]) == ("over_limit", "ip")


@pytest.mark.parametrize("address", ["", "no address", "1.2.3"])
def test_address_in_the_body_of_a_buyer_with_a_ticket_must_be_one_all_the_same(
    both_ways: Client, gated: str, address: str
) -> None:
    """Nobody believes it; but the short way shall not take what the long way refuses."""
    buyer = fresh("b")
    reply = both_ways.order(gated, buyer, "k", ticket(both_ways, gated, buyer), client_ip=address)
    assert (reply.status, reply.json["field"]) == (422, "client_ip")


def test_ticket_opens_neither_batch_nor_admin_nor_tickets(both_ways: Client, gated: str) -> None:
    mine = ticket(both_ways, gated, "b")
    line = b'{"request_key":"k","buyer_id":"b","items":[{"sku":"red","quantity":1}]}'
    assert both_ways.batch(gated, line, mine).code == "ticket_wrong"
    assert both_ways.admin("GET", gated, token=mine).code == "operators_only"
    body = b'{"buyer_id":"c"}'
    reply = both_ways.call("POST", f"/v1/campaigns/{gated}/tickets", body, bearer(mine))
    assert (reply.status, reply.code) == (403, "ticket_wrong")


def test_tickets_are_not_issued_to_strangers_to_other_channels_nor_past_a_waiting_room(client: Client) -> None:
    own = client.sale({"red": 3}, admission="ticket", channels=["app"])
    room = client.sale({"red": 3}, admission="room")

    def ask(campaign: str, key: str, body: Any = None) -> Reply:
        data = json.dumps(body or {"buyer_id": "b"}).encode()
        return client.call("POST", f"/v1/campaigns/{campaign}/tickets", data, bearer(key))

    assert ask(own, "a-wrong-key-0000000").code == "unauthorized"
    assert ask(own, ADMIN).code == "unauthorized"
    assert ask(own, WEB_KEY).code == "channel_not_allowed"
    assert ask(own, APP_KEY, {"buyer_id": "a b"}).code == "invalid"
    assert ask("no-such-campaign", APP_KEY).code == "unknown_campaign"
    assert ask(room, APP_KEY).code == "conflict"
    # And one that a channel issued is no way around the room, where it was issued before there was one.
    reply = client.order(room, "b", "", forged(room, "b"))
    assert (reply.status, reply.code) == (403, "ticket_needed")
    assert client.order(room, "b", "", forged(room, "b", room=True)).status == 202


def test_gate_can_be_shut_and_opened_while_the_campaign_is_open(client: Client) -> None:
    body = definition({"red": 100})
    name = fresh("c")
    assert client.admin("PUT", name, body).status == 200
    assert client.admin("POST", f"{name}/open").status == 200
    assert client.order(name).status == 202
    assert client.admin("PUT", name, body | {"admission": "ticket"}).status == 200
    # A gateway learns of it from the store's next answer.
    until(lambda: client.order(name).code == "ticket_needed")
    assert client.admin("PUT", name, body).status == 200
    until(lambda: client.order(name).status == 202)
