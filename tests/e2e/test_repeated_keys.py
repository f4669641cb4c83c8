"""A buyer who clicks again gets the order again, whatever stock came and went meanwhile."""

import time
from functools import partial

import pytest
import redis

from tests.e2e.support import Client, Up, definition, until
from tests.support import fresh


def accepted(client: Client, campaign: str, buyer: str, key: str) -> bool:
    return client.order(campaign, buyer, key).status == 202


@pytest.mark.parametrize("spread", [1, 3])
def test_key_accepted_after_a_restock_is_replayed_when_the_sku_is_empty_again(
    stack: Up, pair: tuple[Client, Client], spread: int
) -> None:
    """The crowd clicks all the time, so flags go up while the returned units still wait for their lease."""
    first, second = pair
    campaign = first.sale({"red": 1}, spread=spread)
    assert first.order(campaign).status == 202
    for n in range(3):
        first.admin("POST", f"{campaign}/restock", {"id": f"r{n}", "sku": "red", "units": 2})
        for _ in range(8):
            first.order(campaign), second.order(campaign)
        key, buyer = fresh("key"), fresh("buyer")
        until(partial(accepted, first, campaign, buyer, key), timeout_s=3.0)
        until(lambda: second.order(campaign).status == 202, timeout_s=3.0)
        until(lambda: second.order(campaign).code == "sold_out", timeout_s=3.0)
        until_s = time.monotonic() + 0.6
        while time.monotonic() < until_s:  # past a lease, with flags going up and falling
            for process in pair:
                process.order(campaign)
                assert process.order(campaign, buyer, key).status == 202


def test_limit_that_is_put_on_an_open_campaign_counts_what_was_bought_before(client: Client) -> None:
    campaign = client.sale({"red": 100})
    for _ in range(3):
        assert client.order(campaign, "bob").status == 202
    known = client.admin("GET", campaign).json["spec"]
    body = definition({"red": 100}) | {"opens_at": known["opens_at"], "closes_at": known["closes_at"]}
    assert client.admin("PUT", campaign, body | {"limits": {"buyer": 3}}).status == 200
    assert client.order(campaign, "bob").code == "over_limit"
    assert client.settled_audit(campaign)["ok"]


def test_campaign_that_the_store_loses_in_mid_sale_is_a_fault_at_any_spread(stack: Up, client: Client) -> None:
    campaign = client.sale({"red": 3}, spread=4)
    client.order(campaign)
    with redis.Redis.from_url(stack.ready["store"]) as store:
        store.delete(*store.keys(f"*:c:{campaign}:*"))
    for _ in range(12):
        reply = client.order(campaign)
        assert (reply.status, reply.code) == (503, "campaign_lost")
    line = b'{"request_key":"x","buyer_id":"d","items":[{"sku":"red","quantity":1}]}\n'
    reply = client.batch(campaign, line * 3)
    assert reply.status in (200, 503)
    assert b"internal" not in reply.body
