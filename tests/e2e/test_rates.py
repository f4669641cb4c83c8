"""Rate limits over HTTP: both ways and batches, two gateways, what callers are told, and a store that is away."""

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ops.embedded import process_ids, status
from tests.e2e.conftest import own_gateway
from tests.e2e.line_support import post, room_sale, until_state
from tests.e2e.support import APP_KEY, WEB_KEY, Client, Part, Reply, Up, Wire, until
from tests.support import fresh


def tell(client: Client, campaign: str, buyer: str, times: int, **fields: Any) -> list[Reply]:
    return [client.order(campaign, buyer, **fields) for _ in range(times)]


async def at_once(clients: Sequence[Client], campaign: str, orders: int) -> list[Reply]:
    """Orders of one buyer, over as many connections, all open before the first one is sent."""
    wires = [Wire(clients[n % len(clients)]) for n in range(orders)]
    await asyncio.gather(*(wire.connect() for wire in wires))
    try:
        return await asyncio.gather(*(wire.order(campaign, fresh("key"), "bot") for wire in wires))
    finally:
        await asyncio.gather(*(wire.close() for wire in wires))


def counts(replies: Sequence[Reply]) -> Counter[str]:
    return Counter(reply.code or str(reply.status) for reply in replies)


async def test_control_without_a_rate_500_at_once_are_all_accepted(pair: tuple[Client, Client]) -> None:
    """Control: the crowd of the next test gets its orders if nothing stops it."""
    campaign = pair[0].sale()
    assert counts(await at_once(pair, campaign, 500)) == {"202": 500}


async def test_of_500_at_once_on_two_gateways_the_burst_is_accepted(pair: tuple[Client, Client]) -> None:
    campaign = pair[0].sale(rates={"buyer": "10/h"})
    assert counts(await at_once(pair, campaign, 500)) == {"202": 10, "rate_limited": 490}


def test_buyer_beyond_the_burst_is_told_when_to_come_again(both_ways: Client) -> None:
    campaign = both_ways.sale(rates={"buyer": "30/m:2", "ip": "100/m"})
    first, second, third = tell(both_ways, campaign, "ann", 3, client_ip="10.0.0.1")
    assert (first.status, second.status, third.code) == (202, 202, "rate_limited")
    policy = '"buyer";q=2;w=4, "ip";q=100;w=60'
    assert [r.headers["ratelimit-policy"] for r in (first, second, third)] == [policy] * 3
    limits = [re.fullmatch(r'"buyer";r=(\d+);t=(\d+)', r.headers["ratelimit"]) for r in (first, second, third)]
    assert [m and m[1] for m in limits] == ["1", "0", "0"]
    assert limits[2] is not None
    assert third.headers["retry-after"] == limits[2][2] in ("1", "2")
    problem = third.json
    assert (problem["limit"], problem["status"]) == ("buyer", 429)
    assert problem["retry_after"] == int(third.headers["retry-after"])
    # Another buyer is not concerned.
    assert both_ways.order(campaign, "bob", client_ip="10.0.0.1").status == 202


@pytest.mark.parametrize(
    ("kind", "same", "other"),
    [
        ("ip", {"client_ip": "10.0.0.1"}, {"client_ip": "10.0.0.2"}),
        ("ip", {"client_ip": "2001:db8::1"}, {"client_ip": "2001:db8:0:1::1"}),
        ("device", {"device_id": "d1"}, {"device_id": "d2"}),
    ],
)
def test_address_and_device_have_limits_of_their_own(
    both_ways: Client, kind: str, same: dict[str, str], other: dict[str, str]
) -> None:
    campaign = both_ways.sale(rates={kind: "1/h"})
    assert [both_ways.order(campaign, **same).status for _ in range(2)] == [202, 429]
    assert both_ways.order(campaign, **other).status == 202
    assert both_ways.order(campaign).status == 202  # not known, not counted


def test_address_of_the_same_ipv6_network_counts_as_the_same(both_ways: Client) -> None:
    campaign = both_ways.sale(rates={"ip": "1/h"})
    replies = [both_ways.order(campaign, client_ip=ip) for ip in ("2001:db8::1", "2001:db8::ffff:2")]
    assert [r.status for r in replies] == [202, 429]


def test_request_that_is_limited_was_not_looked_at_and_may_be_sent_again(both_ways: Client) -> None:
    """Nothing of it is remembered: the same key is an order when its time has come, and a replay after that."""
    campaign = both_ways.sale(rates={"buyer": "2/s:1"})

    def limited() -> str:
        key = fresh("key")
        return key if both_ways.order(campaign, "ann", key).status == 429 else ""

    def accepted() -> Reply | None:
        reply = both_ways.order(campaign, "ann", key)
        return reply if reply.status == 202 else None

    key = until(limited)
    first, again = until(accepted), until(accepted)
    assert "idempotent-replayed" not in first.headers
    assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")


def test_refusals_of_the_store_carry_the_limits_too(both_ways: Client) -> None:
    campaign = both_ways.sale(rates={"buyer": "9/m"}, limits={"buyer": 1})
    assert both_ways.order(campaign, "ann").status == 202
    refused = both_ways.order(campaign, "ann")
    assert refused.code == "over_limit"
    assert refused.headers["ratelimit"].startswith('"buyer";r=7;')


def test_sold_out_from_memory_counts_for_no_limit(client: Client) -> None:
    campaign = client.sale({"red": 1}, rates={"buyer": "30/h"})
    assert client.order(campaign, "ann").status == 202

    def unlimited() -> bool:
        return "ratelimit" not in (reply := client.order(campaign, f"x-{fresh('b')}")).headers and reply.status == 409

    until(unlimited)


def test_campaign_without_rates_says_nothing_of_limits(both_ways: Client) -> None:
    assert not [name for name in both_ways.order(both_ways.sale()).headers if name.startswith("ratelimit")]


def lines(buyers: Sequence[str]) -> bytes:
    return b"\n".join(
        json.dumps({"request_key": f"k{n}", "buyer_id": b, "items": [{"sku": "red", "quantity": 1}]}).encode()
        for n, b in enumerate(buyers)
    )


def test_lines_of_a_batch_are_limited_one_by_one(client: Client) -> None:
    campaign = client.sale(rates={"buyer": "2/h"})
    reply = client.batch(campaign, lines(["ann", "ann", "ann", "bob"]))
    told = [json.loads(line) for line in reply.body.splitlines()]
    assert [t["http_status"] for t in told] == [202, 202, 429, 202]
    assert (told[2]["code"], told[2]["limit"], told[2]["request_key"]) == ("rate_limited", "buyer", "k2")
    assert 1_790 <= told[2]["retry_after"] <= 1_800


def test_guests_of_one_address_join_a_line_so_often_and_their_orders_count_apart(client: Client) -> None:
    campaign = room_sale(client, room={"rate": 1_000, "channel": "web"}, rates={"ip": "2/h"})
    replies = [post(client, campaign, "/line", {"guest_key": fresh("guest-key-00000000")}) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert (replies[2].code, replies[2].json["limit"]) == ("rate_limited", "ip")
    assert int(replies[2].headers["retry-after"]) == replies[2].json["retry_after"] > 1_000
    assert replies[2].headers["ratelimit-policy"] == '"ip";q=2;w=3600'
    for joined in replies[:2]:
        view = until_state(client, campaign, joined.json["line"], "admitted")
        assert client.order(campaign, joined.json["buyer_id"], "", view["ticket"]).status == 202


def test_buyer_joins_a_line_so_often_and_the_channel_as_often_as_it_has_buyers(client: Client) -> None:
    campaign = room_sale(client, rates={"buyer": "1/h", "ip": "1/h", "device": "1/h"})
    joins = [("ann", "d1"), ("ann", "d2"), ("bob", "d1"), ("cid", "d3"), ("dan", "d4")]
    replies = [post(client, campaign, "/line", {"buyer_id": b, "device_id": d}, APP_KEY) for b, d in joins]
    assert [reply.status for reply in replies] == [200, 429, 429, 200, 200]
    assert [replies[n].json["limit"] for n in (1, 2)] == ["buyer", "device"]


def test_rates_change_while_the_campaign_is_open(pair: tuple[Client, Client]) -> None:
    """The other gateway refuses all that comes, so no order tells it that its limit is gone: it looks by itself."""
    one, other = pair
    name = one.sale(rates={"buyer": "1/h"})
    assert [r.status for r in tell(other, name, "ann", 2)] == [202, 429]
    known = one.admin("GET", name).json["spec"]
    assert one.admin("PUT", name, known | {"rates": {}}).status == 200
    until(lambda: other.order(name, "ann").status == 202)
    assert [r.status for r in tell(other, name, "ann", 3)] == [202] * 3
    assert one.admin("PUT", name, known | {"rates": {"buyer": "2/h"}}).status == 200
    until(lambda: other.order(name, "ann").status == 429)


@pytest.mark.parametrize(
    "rates", [{"buyer": "5"}, {"buyer": "0/s"}, {"buyer": "1/h:2000"}, {"channel": "5/s"}, {"ip": 5}]
)
def test_rates_that_are_none_are_refused(client: Client, rates: dict[str, Any]) -> None:
    name = client.define()
    known = client.admin("GET", name).json["spec"]
    reply = client.admin("PUT", name, known | {"rates": rates})
    assert (reply.status, reply.code) == (422, "invalid")
    assert reply.json["field"].startswith("rates")


def test_channels_own_rate_is_in_force_at_once_and_goes_again(stack: Up) -> None:
    client, name = stack.client, fresh("shop")
    campaign = client.sale()
    key = json.loads(stack.command("channel", "add", name, "--json").stdout)["key"]
    # Two gateways, and each looks by itself.
    until(lambda: all(client.get(f"/v1/campaigns/{campaign}", key).status == 200 for _ in range(20)))
    assert counts([client.order(campaign, channel_key=key) for _ in range(3)]) == {"202": 3}
    assert stack.command("channel", "set", name, "--rate", "channel=2/h").returncode == 0
    limited = until(lambda: next((r for r in [client.order(campaign, channel_key=key)] if r.status == 429), None))
    assert limited.json["limit"] == "channel"
    assert client.order(campaign, channel_key=WEB_KEY).status == 202
    assert stack.command("channel", "set", name, "--rate", "none").returncode == 0
    until(lambda: client.order(campaign, channel_key=key).status == 202)


@pytest.fixture(scope="module")
def strict(stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A gateway with limits for every campaign."""
    env = own_gateway(stack) | {"RUSHGATE_RATES": "buyer=3/h,channel=40/h:4"}
    part = Part(tmp_path_factory.mktemp("strict") / "log", ["gateway"], env)
    try:
        yield part.gateway()
    finally:
        part.end()


def test_deployment_has_limits_where_campaigns_say_nothing(strict: Client) -> None:
    campaign, loose = strict.sale(), strict.sale(rates={"buyer": "off"})
    assert counts(tell(strict, campaign, "ann", 4, channel_key=APP_KEY)) == {"202": 3, "rate_limited": 1}
    # What the buyer's limit refused did not count for the channel's, which all campaigns share.
    assert counts(tell(strict, loose, "ann", 2, channel_key=APP_KEY)) == {"202": 1, "rate_limited": 1}
    assert strict.order(loose, "ann", channel_key=APP_KEY).json["limit"] == "channel"
    assert counts(tell(strict, loose, "ann", 4, channel_key=WEB_KEY)) == {"202": 4}


def test_store_that_hangs_lets_nobody_through(tmp_path: Path) -> None:
    """503 as for any order, and never `accepted` or `rate_limited`; afterwards all goes on."""
    up = Up(tmp_path / "d", "--port", "0", env={"RUSHGATE_STORE_TIMEOUT_S": "0.5", "RUSHGATE_CONSOLE": "off"})
    try:
        client = up.wait_ready().client
        campaign = client.sale(rates={"buyer": "1/h"})
        assert client.order(campaign, "ann").status == 202
        [store] = [pid for pid in process_ids() if status(pid).get("PPid") == str(up.process.pid) and "valkey" in
                   status(pid).get("Name", "")]  # fmt: skip
        os.kill(store, signal.SIGSTOP)
        try:
            replies = [client.order(campaign, buyer) for buyer in ("ann", "bob")]
        finally:
            os.kill(store, signal.SIGCONT)
        assert [r.status for r in replies] == [503, 503]
        assert all(r.headers["retry-after"] for r in replies)
        assert until(lambda: (reply := client.order(campaign, "ann")).status != 503 and reply).code == "rate_limited"
        assert until(lambda: (reply := client.order(campaign, "eve")).status != 503 and reply).status == 202
    finally:
        up.end()
