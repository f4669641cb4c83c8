"""A campaign on several shards: stock follows demand, and sold out means sold out on all of them."""

import random
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.support import Client
from tests.support import fresh

CROWD = 24  # requests at once


def ask_all(client: Client, campaign: str, wishes: list[int]) -> list[int]:
    """The units that were sold to buyers with these wishes, all different ones; refusals must be `sold_out`."""

    def one(quantity: int) -> int:
        reply = client.order(campaign, fresh("buyer"), items=[{"sku": "red", "quantity": quantity}])
        if reply.status == 202:
            return quantity
        assert (reply.status, reply.code) == (409, "sold_out")
        return 0

    with ThreadPoolExecutor(CROWD) as pool:
        return list(pool.map(one, wishes))


def test_spread_sale_sells_every_unit_wherever_its_buyers_are(client: Client) -> None:
    campaign = client.sale({"red": 41}, spread=8)
    sold = ask_all(client, campaign, [1] * 150)
    assert sum(sold) == 41
    report = client.settled_audit(campaign)
    assert (report["ok"], report["unsold"], report["oversold"]) == (True, 0, 0)


def test_spread_sale_gathers_units_for_a_wish_that_no_shard_alone_can_meet(client: Client) -> None:
    campaign = client.sale({"red": 8}, spread=8)
    assert ask_all(client, campaign, [8]) == [8]
    assert ask_all(client, campaign, [1]) == [0]


def test_spread_sale_refuses_the_large_wish_and_sells_the_small_one(client: Client) -> None:
    """3 units are left: 5 is too many, and says nothing about 1."""
    for _ in range(5):
        campaign = client.sale({"red": 3}, spread=4)
        sold = ask_all(client, campaign, [5, 5, 1, 5, 1, 5, 1, 5])
        assert sorted(sold) == [0, 0, 0, 0, 0, 1, 1, 1]


def test_spread_sale_with_mixed_wishes_balances(client: Client) -> None:
    wishes = [random.Random(7).choice([1, 1, 2, 5]) for _ in range(150)] + [1] * 60
    campaign = client.sale({"red": 97}, spread=8)
    assert sum(ask_all(client, campaign, wishes)) == 97
    report = client.settled_audit(campaign)
    assert (report["ok"], report["unsold"]) == (True, 0)
