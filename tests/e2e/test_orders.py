"""Orders over real HTTP: what a 202 gives, what each refusal says, where an order is found afterwards."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis import Redis

from tests.e2e.support import (
    APP_KEY,
    WEB_KEY,
    Client,
    Reply,
    Up,
    Wire,
    definition,
    until,
)

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def client(both_ways: Client) -> Client:
    """All of this file is answered alike on both ways."""
    return both_ways


def in_hours(hours: float) -> str:
    return (datetime.now(UTC) + hours * HOUR).isoformat()


def test_order_accepted_has_location_and_body(client: Client) -> None:
    before = datetime.now(UTC)
    reply = client.order(client.sale())
    assert reply.status == 202
    assert list(reply.json) == ["order_id", "status", "status_url", "pay_by", "durability"]
    order_id = reply.json["order_id"]
    assert reply.json["status"] == "accepted"
    assert reply.json["durability"] == "fsync"
    assert reply.json["status_url"] == reply.headers["location"] == f"/v1/orders/{order_id}"
    pay_by = datetime.fromisoformat(reply.json["pay_by"])
    assert timedelta(seconds=895) < pay_by - before < timedelta(seconds=905)
    assert "idempotent-replayed" not in reply.headers
    assert reply.headers["content-type"] == "application/json"


def test_order_replayed_gives_the_same_bytes(client: Client) -> None:
    campaign = client.sale({"red": 5})
    first = client.order(campaign, "b", "k")
    again = [client.order(campaign, "b", "k") for _ in range(5)]
    assert first.status == 202
    assert {r.body for r in again} == {first.body}
    assert {(r.status, r.headers["location"], r.headers["idempotent-replayed"]) for r in again} == {
        (202, first.headers["location"], "true")
    }
    assert client.audit(campaign)["accepted"] == 1


def test_order_with_basket_in_another_order_is_the_same(client: Client) -> None:
    campaign = client.sale({"red": 5, "blue": 5})
    basket = [{"sku": "red", "quantity": 1}, {"sku": "blue", "quantity": 2}]
    first = client.order(campaign, "b", "k", items=basket)
    again = client.order(campaign, "b", "k", items=basket[::-1])
    assert (first.status, again.status, again.body) == (202, 202, first.body)


@pytest.mark.parametrize(
    "change",
    [
        {"buyer_id": "another"},
        {"items": [{"sku": "red", "quantity": 2}]},
        {"items": [{"sku": "blue", "quantity": 1}]},
        {"device_id": "d"},
        {"ship_to": {"name": "n", "phone": "123", "address": "a"}},
    ],
)
def test_order_with_used_key_and_another_body_is_key_reused(client: Client, change: dict[str, Any]) -> None:
    campaign = client.sale({"red": 5, "blue": 5})
    assert client.order(campaign, "b", "k").status == 202
    reply = client.order(campaign, "b", "k", **change)
    assert (reply.status, reply.code) == (422, "key_reused")
    assert client.audit(campaign)["accepted"] == 1


def test_order_with_the_key_of_another_channel_is_an_order_of_its_own(client: Client) -> None:
    campaign = client.sale({"red": 5})
    app, web = (client.order(campaign, "b", "k", channel_key=key) for key in (APP_KEY, WEB_KEY))
    assert (app.status, web.status) == (202, 202)
    assert app.json["order_id"] != web.json["order_id"]


def test_order_of_more_than_is_left_is_sold_out_with_the_sku(client: Client) -> None:
    campaign = client.sale({"red": 3, "blue": 9})
    both = [{"sku": "blue", "quantity": 1}, {"sku": "red", "quantity": 4}]
    reply = client.order(campaign, items=both)
    assert (reply.status, reply.code, reply.json["sku"]) == (409, "sold_out", "red")
    assert reply.headers["content-type"] == "application/problem+json"
    assert client.order(campaign, items=[{"sku": "red", "quantity": 3}]).status == 202
    reply = client.order(campaign)
    assert (reply.status, reply.code, reply.json["sku"]) == (409, "sold_out", "red")
    assert client.order(campaign, items=[{"sku": "blue", "quantity": 9}]).status == 202
    audit = client.settled_audit(campaign)
    assert (audit["ok"], audit["accepted"], audit["unsold"]) == (True, 2, 0)


@pytest.mark.parametrize(
    ("limit", "orders"),
    [
        ("buyer", [{"buyer": "b"}, {"buyer": "b", "items": [{"sku": "blue", "quantity": 1}]}]),
        ("buyer_sku", [{"buyer": "b"}, {"buyer": "b"}]),
        ("ip", [{"client_ip": "10.0.0.1"}, {"client_ip": "::ffff:10.0.0.1"}]),
        ("ip", [{"client_ip": "2001:db8::1"}, {"client_ip": "2001:0DB8:0:0:0:0:0:1"}]),
        ("device", [{"device_id": "d"}, {"device_id": "d"}]),
    ],
)
def test_order_past_a_limit_names_the_limit(client: Client, limit: str, orders: list[dict[str, Any]]) -> None:
    campaign = client.sale({"red": 9, "blue": 9}, limits={limit: 1})
    first, second = (client.order(campaign, **fields) for fields in orders)
    assert first.status == 202
    assert (second.status, second.code, second.json["limit"]) == (409, "over_limit", limit)


def test_order_before_the_window_is_not_open(client: Client) -> None:
    campaign = client.sale(opens_at=in_hours(1), closes_at=in_hours(2))
    reply = client.order(campaign)
    assert (reply.status, reply.code) == (409, "not_open")


def test_order_from_a_draft_is_not_open(client: Client) -> None:
    reply = client.order(client.define())
    assert (reply.status, reply.code) == (409, "not_open")


def test_order_after_the_window_is_closed(client: Client) -> None:
    campaign = client.sale(opens_at=in_hours(-2), closes_at=in_hours(-1))
    reply = client.order(campaign)
    assert (reply.status, reply.code) == (409, "closed")


def test_order_of_a_closed_campaign_is_closed_but_an_old_key_is_replayed(client: Client) -> None:
    campaign = client.sale({"red": 5})
    first = client.order(campaign, "b", "k")
    assert client.admin("POST", f"{campaign}/close").json["state"] == "closed"
    reply = client.order(campaign)
    assert (reply.status, reply.code) == (409, "closed")
    assert client.order(campaign, "b", "k").body == first.body


def test_pause_holds_at_once_in_both_processes_until_opened(pair: tuple[Client, Client]) -> None:
    campaign = pair[0].sale()
    assert [c.order(campaign).status for c in pair] == [202, 202]
    assert pair[0].admin("POST", f"{campaign}/pause").json["state"] == "paused"
    assert [(r.status, r.code) for r in (c.order(campaign) for c in pair * 3)] == [(409, "paused")] * 6
    assert pair[1].admin("POST", f"{campaign}/open").json["state"] == "open"
    assert [c.order(campaign).status for c in pair] == [202, 202]


@pytest.mark.parametrize(
    "name", ["no-such-campaign", "No-Such", "a b", "x" * 65, "%00", "a%2Fb", "%ff", "%F0%9F%98%80"]
)
def test_order_of_unknown_campaign_is_404(client: Client, name: str) -> None:
    reply = client.order(name.replace(" ", "%20"))
    assert (reply.status, reply.code) == (404, "unknown_campaign")


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong-key-0000000000", f"Basic {APP_KEY}", APP_KEY, f"Bearer  {APP_KEY}"],
)
def test_order_without_a_known_channel_key_is_401(client: Client, authorization: str | None) -> None:
    campaign = client.sale()
    headers = {"Idempotency-Key": "k"} | ({} if authorization is None else {"Authorization": authorization})
    body = json.dumps({"buyer_id": "b", "items": [{"sku": "red", "quantity": 1}]}).encode()
    reply = client.call("POST", f"/v1/campaigns/{campaign}/orders", body, headers)
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert client.audit(campaign)["accepted"] == 0


def test_order_of_a_channel_that_is_not_allowed_is_403(client: Client) -> None:
    campaign = client.sale(channels=["web"])
    reply = client.order(campaign, channel_key=APP_KEY)
    assert (reply.status, reply.code) == (403, "channel_not_allowed")
    assert client.order(campaign, channel_key=WEB_KEY).status == 202


def test_order_is_found_right_after_its_202_and_another_channel_does_not_see_it(client: Client) -> None:
    campaign = client.sale({"red": 5, "blue": 5})
    basket = [{"sku": "red", "quantity": 1}, {"sku": "blue", "quantity": 2}]
    made = client.order(campaign, "b", items=basket).json
    view = client.get(made["status_url"])
    assert view.status == 200
    assert view.json == {
        "order_id": made["order_id"],
        "campaign": campaign,
        "channel": "app",
        "buyer_id": "b",
        "state": "accepted",
        "items": [{"sku": "blue", "quantity": 2, "price": 100}, {"sku": "red", "quantity": 1, "price": 100}],
        "amount": 300,
        "currency": "CNY",
        "accepted_at": view.json["accepted_at"],
        "pay_by": view.json["pay_by"],
        "version": 1,
    }
    assert datetime.fromisoformat(view.json["pay_by"]) == datetime.fromisoformat(made["pay_by"])
    other = client.get(made["status_url"], WEB_KEY)
    assert (other.status, other.code) == (404, "unknown_order")
    assert client.call("GET", made["status_url"]).code == "unauthorized"


@pytest.mark.parametrize(
    "order_id",
    ["x", "00000000-0000-0000-0000-000000000000", "019f0000-0000-7000-8000-000000000000", "%00", "a" * 3_000],
)
def test_order_id_that_is_none_is_404(client: Client, order_id: str) -> None:
    reply = client.get(f"/v1/orders/{order_id}")
    assert (reply.status, reply.code) == (404, "unknown_order")


@pytest.fixture
def quiet_stack(tmp_path: Path) -> Iterator[Up]:
    """A stack of its own whose worker and ledger a test may stop."""
    up = Up(tmp_path / "d", "--port", "0", "--gateway-workers", "2")
    try:
        yield up.wait_ready()
    finally:
        for pid in up.children("ledger"):
            _signal(pid, signal.SIGCONT)
        up.end()


def _signal(pid: int, signum: signal.Signals) -> None:
    os.kill(pid, signum)


def test_order_looks_the_same_before_and_after_the_ledger_has_it(quiet_stack: Up) -> None:
    client = quiet_stack.client
    campaign = client.sale({"red": 2_000})
    [worker] = quiet_stack.children("ledger")
    _signal(worker, signal.SIGSTOP)
    made = [client.order(campaign).json["status_url"] for _ in range(20)]
    before = [client.get(url) for url in made]
    assert {r.status for r in before} == {200}
    audit = client.audit(campaign)
    assert (audit["ok"], audit["accepted"], audit["persisted"], audit["in_flight"]) == (True, 20, 0, 20)
    _signal(worker, signal.SIGCONT)
    audit = client.settled_audit(campaign)
    assert (audit["ok"], audit["persisted"]) == (True, 20)
    assert [client.get(url).body for url in made] == [r.body for r in before]


async def test_thousand_pollers_at_once_are_all_answered(client: Client) -> None:
    campaign = client.sale({"red": 1_000})
    urls = [client.order(campaign).json["status_url"] for _ in range(50)]
    wires = [Wire(client) for _ in range(1_000)]
    await asyncio.gather(*(w.connect() for w in wires))

    async def poll(n: int) -> Reply:
        head = f"GET {urls[n % 50]} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {APP_KEY}\r\n\r\n"
        return await wires[n].send(head.encode())

    began_s = time.monotonic()
    replies = await asyncio.gather(*(poll(n) for n in range(1_000)))
    took_s = time.monotonic() - began_s
    await asyncio.gather(*(w.close() for w in wires))
    assert {r.status for r in replies} == {200}
    assert all(r.json["order_id"] in urls[n % 50] for n, r in enumerate(replies))
    assert took_s < 10


def test_campaign_view_shows_what_a_shop_needs(client: Client) -> None:
    campaign = client.sale({"red": 7}, limits={"buyer": 2})
    view = client.get(f"/v1/campaigns/{campaign}")
    assert view.status == 200
    assert (view.json["campaign"], view.json["state"], view.json["currency"]) == (campaign, "open", "CNY")
    assert view.json["skus"] == [{"sku": "red", "name": "red", "price": 100}]
    assert view.json["limits"] == {"buyer": 2}
    now = datetime.fromisoformat(view.json["now"])
    assert datetime.fromisoformat(view.json["opens_at"]) < now < datetime.fromisoformat(view.json["closes_at"])
    assert abs((now - datetime.now(UTC)).total_seconds()) < 5
    assert client.call("GET", f"/v1/campaigns/{campaign}").code == "unauthorized"
    assert client.get("/v1/campaigns/no-such").code == "unknown_campaign"
    assert client.get(f"/v1/campaigns/{client.define()}").code == "not_open"


def test_campaign_called_orders_can_be_seen_and_sold(client: Client) -> None:
    reply = client.admin("PUT", "orders", definition({"red": 2}))
    if reply.json["state"] == "draft":
        assert client.admin("POST", "orders/open").status == 200
    assert client.get("/v1/campaigns/orders").status == 200
    assert client.order("orders").status in (202, 409)


def test_campaign_changed_by_one_process_is_seen_by_the_other_at_once(pair: tuple[Client, Client]) -> None:
    campaign = pair[0].sale({"red": 9}, limits={"buyer": 5})
    assert [c.get(f"/v1/campaigns/{campaign}").json["limits"] for c in pair] == [{"buyer": 5}] * 2
    old = pair[0].admin("GET", campaign).json["spec"]
    changed = pair[0].admin("PUT", campaign, old | {"limits": {"buyer": 1}, "pay_within_s": 60})
    assert (changed.status, changed.json["version"] > 1) == (200, True)
    view = pair[1].get(f"/v1/campaigns/{campaign}").json
    assert (view["limits"], view["pay_within_s"]) == ({"buyer": 1}, 60)
    assert pair[1].order(campaign, "b").status == 202
    assert pair[1].order(campaign, "b").json["limit"] == "buyer"


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("PUT", ""),
        ("GET", ""),
        ("POST", "/open"),
        ("POST", "/pause"),
        ("POST", "/close"),
        ("POST", "/restock"),
        ("GET", "/audit"),
    ],
)
@pytest.mark.parametrize("token", ["", "wrong-token-00000000", APP_KEY])
def test_admin_call_without_the_admin_token_is_refused_and_changes_nothing(
    client: Client, method: str, call: str, token: str
) -> None:
    campaign = client.sale({"red": 3})
    body = definition({"red": 9}) if method == "PUT" else {"id": "r", "sku": "red", "units": 1}
    reply = client.admin(method, campaign + call, None if method == "GET" else body, token)
    assert (reply.status, reply.code) == ((403, "operators_only") if token == APP_KEY else (401, "unauthorized"))
    assert ("www-authenticate" in reply.headers) == (reply.status == 401)
    assert client.admin("GET", campaign).json["state"] == "open"
    assert client.audit(campaign)["skus"][0]["allocation"] == 3


def test_admin_put_of_an_open_campaign_never_changes_stock(client: Client) -> None:
    campaign = client.sale({"red": 3})
    old = client.admin("GET", campaign).json["spec"]
    more = client.admin("PUT", campaign, old | {"skus": [old["skus"][0] | {"stock": 99}]})
    assert (more.status, more.code) == (409, "conflict")
    assert "restock" in more.json["detail"]
    assert client.audit(campaign)["skus"][0]["allocation"] == 3


def test_admin_calls_of_unknown_campaign_are_404_and_of_impossible_name_422(client: Client) -> None:
    for call in ("/open", "/pause", "/close"):
        assert client.admin("POST", f"no-such{call}").code == "unknown_campaign"
    assert client.admin("GET", "no-such").code == client.admin("GET", "no-such/audit").code == "unknown_campaign"
    reply = client.admin("PUT", "Bad%00Name", definition())
    assert (reply.status, reply.code, reply.json["field"]) == (422, "invalid", "campaign")


def test_admin_restock_counts_once_per_id_and_never_below_zero(client: Client) -> None:
    campaign = client.sale({"red": 3})

    def restock(units: int, name: str, sku: str = "red") -> Reply:
        return client.admin("POST", f"{campaign}/restock", {"id": name, "sku": sku, "units": units})

    assert restock(5, "a").json == {"id": "a", "sku": "red", "units": 5, "repeated": False}
    assert restock(5, "a").json == {"id": "a", "sku": "red", "units": 5, "repeated": True}
    assert restock(-8, "b").json["units"] == -8
    assert (restock(-1, "c").status, restock(-1, "c").code) == (409, "conflict")
    assert (restock(1, "d", "blue").status, restock(1, "d", "blue").json["field"]) == (422, "sku")
    assert (restock(0, "e").status, restock(0, "e").json["field"]) == (422, "units")
    audit = client.audit(campaign)
    assert (audit["ok"], audit["skus"][0]["allocation"], audit["unsold"]) == (True, 0, 0)


def test_admin_close_withdraws_what_is_left(client: Client) -> None:
    campaign = client.sale({"red": 3})
    assert client.order(campaign).status == 202
    assert client.admin("POST", f"{campaign}/close").json["state"] == "closed"
    audit = client.settled_audit(campaign)
    assert (audit["ok"], audit["unsold"], audit["skus"][0]["allocation"]) == (True, 0, 1)
    assert client.admin("POST", f"{campaign}/open").code == "conflict"
    assert client.admin("POST", f"{campaign}/close").status == 200


def sells(client: Client, campaign: str) -> bool:
    return client.order(campaign).status == 202


def script_calls(stack: Up) -> int:
    """How often the store has run a script by its digest."""
    with Redis.from_url(stack.ready["store"]) as store:
        found: Any = store.info("commandstats")
    return int(found.get("cmdstat_evalsha", {}).get("calls", 0))


def raise_flag(stack: Up, client: Client, campaign: str) -> None:
    """This process answers `sold_out` from memory: ten refusals without a script call."""

    def from_memory() -> bool:
        before = script_calls(stack)
        replies = [client.order(campaign) for _ in range(10)]
        assert {r.code for r in replies} == {"sold_out"}
        return script_calls(stack) == before

    until(from_memory, every_s=0.0)


@pytest.mark.parametrize("spread", [1, 4])
def test_restock_is_sold_within_a_second_though_both_processes_call_it_sold_out(
    stack: Up, pair: tuple[Client, Client], spread: int
) -> None:
    campaign = pair[0].sale({"red": 8}, spread=spread)
    assert [pair[n % 2].order(campaign).status for n in range(8)] == [202] * 8
    pair[0].settled_audit(campaign)
    for process in pair:
        raise_flag(stack, process, campaign)
    began_s = time.monotonic()
    assert pair[0].admin("POST", f"{campaign}/restock", {"id": "r", "sku": "red", "units": 4}).status == 200
    for process in pair * 2:
        until(partial(sells, process, campaign), 1.0)
    assert time.monotonic() - began_s < 1.0
    until(lambda: {p.order(campaign).code for p in pair} == {"sold_out"})
    audit = pair[0].settled_audit(campaign)
    assert (audit["ok"], audit["accepted"], audit["unsold"]) == (True, 12, 0)


def test_replay_of_an_accepted_key_while_the_sold_out_flag_stands(stack: Up, pair: tuple[Client, Client]) -> None:
    campaign = pair[0].sale({"red": 20})
    first = {f"k{n}": pair[n % 2].order(campaign, f"b{n}", f"k{n}") for n in range(20)}
    assert {r.status for r in first.values()} == {202}
    pair[0].settled_audit(campaign)
    for process in pair:
        raise_flag(stack, process, campaign)
    for n, (key, made) in enumerate(first.items()):
        for process in pair:
            again = process.order(campaign, f"b{n}", key)
            assert (again.status, again.body) == (202, made.body)
            assert again.headers["idempotent-replayed"] == "true"
            assert process.order(campaign, f"c{n}", key).code == "key_reused"
            assert process.order(campaign, f"b{n}", f"new-{n}").code == "sold_out"


def test_flag_of_another_sku_does_not_refuse(stack: Up, pair: tuple[Client, Client]) -> None:
    campaign = pair[0].sale({"red": 1, "blue": 5})
    assert pair[0].order(campaign).status == 202
    pair[0].settled_audit(campaign)
    raise_flag(stack, pair[0], campaign)
    assert pair[0].order(campaign, items=[{"sku": "blue", "quantity": 1}]).status == 202
    both = pair[0].order(campaign, items=[{"sku": "blue", "quantity": 1}, {"sku": "red", "quantity": 1}])
    assert (both.code, both.json["sku"]) == ("sold_out", "red")


def test_order_id_of_a_foreign_shard_is_unknown_not_an_error(client: Client) -> None:
    made = client.order(client.sale()).json["order_id"]
    far = made[:15] + "fff" + made[18:]
    assert client.get(f"/v1/orders/{far}").code == "unknown_order"


async def test_ledger_agrees_with_every_202(stack: Up, client: Client) -> None:
    campaign = await asyncio.to_thread(client.sale, {"red": 100})
    replies = [await asyncio.to_thread(client.order, campaign) for _ in range(30)]
    await asyncio.to_thread(client.settled_audit, campaign)
    connection = await asyncpg.connect(stack.ready["ledger"])
    try:
        rows = await connection.fetch("SELECT order_id FROM orders WHERE campaign = $1", campaign)
    finally:
        await connection.close()
    assert {str(r["order_id"]) for r in rows} == {r.json["order_id"] for r in replies}
