"""Each limit of `reserve` at its bound: inside one batch, across batches, in baskets."""

from typing import Any

import pytest

from lua.connection import SharedConnection
from lua.reserve import Ask, Outcome, ReserveCode
from lua.scripts import Scripts
from tests.support import StoreSale, contents, tell

C = ReserveCode
LIMIT = 3

# How the n-th request of one and the same buyer, IP or device looks; the other two differ each time.
SAME: dict[str, dict[str, str]] = {
    "buyer": {"buyer": "b"},
    "buyer_sku": {"buyer": "b"},
    "ip": {"ip": "10.0.0.1"},
    "device": {"device": "d"},
}
every_limit = pytest.mark.parametrize("limit", list(SAME))


def request(sale: StoreSale, limit: str, n: int, quantity: int = 1, sku: str = "red") -> Ask:
    who = {"buyer": f"b{n}", "ip": f"10.1.0.{n}", "device": f"d{n}"} | SAME[limit]
    return sale.ask(who["buyer"], (sku, quantity), ip=who["ip"], device=who["device"])


async def opened(store: SharedConnection, limit: str, **meta: Any) -> StoreSale:
    return await StoreSale.open(store, {"red": 100, "blue": 100}, **{f"limit_{limit}": LIMIT}, **meta)


@every_limit
async def test_reserve_limit_inside_one_batch_is_exact(store: SharedConnection, limit: str) -> None:
    sale = await opened(store, limit)
    answers = await sale.reserve(store, *(request(sale, limit, n) for n in range(LIMIT + 2)))
    assert [o.code for o in answers.outcomes] == [C.ACCEPTED] * LIMIT + [C.OVER_LIMIT] * 2
    assert answers.outcomes[LIMIT] == Outcome(C.OVER_LIMIT, detail=limit)


@every_limit
async def test_reserve_limit_across_batches_is_exact(store: SharedConnection, limit: str) -> None:
    sale = await opened(store, limit)
    got = [(await sale.reserve(store, request(sale, limit, n))).outcomes[0].code for n in range(LIMIT + 2)]
    assert got == [C.ACCEPTED] * LIMIT + [C.OVER_LIMIT] * 2


@every_limit
async def test_reserve_limit_counts_units_not_orders(store: SharedConnection, limit: str) -> None:
    sale = await opened(store, limit)
    answers = await sale.reserve(
        store,
        request(sale, limit, 1, quantity=LIMIT + 1),
        request(sale, limit, 2, quantity=LIMIT - 1),
        request(sale, limit, 3, quantity=2),
        request(sale, limit, 4, quantity=1),
        request(sale, limit, 5, quantity=1),
    )
    assert [o.code for o in answers.outcomes] == [C.OVER_LIMIT, C.ACCEPTED, C.OVER_LIMIT, C.ACCEPTED, C.OVER_LIMIT]


@every_limit
async def test_reserve_limit_does_not_touch_others(store: SharedConnection, limit: str) -> None:
    sale = await opened(store, limit)
    other = next(name for name in ("buyer", "ip") if name != limit.removesuffix("_sku"))
    asks = [request(sale, other, n, quantity=LIMIT) for n in range(4)]  # all alike in what is not limited
    assert [o.code for o in (await sale.reserve(store, *asks)).outcomes] == [C.ACCEPTED] * 4


@pytest.mark.parametrize("limit", ["buyer", "ip", "device"])
async def test_reserve_limit_sums_the_skus_of_a_campaign(store: SharedConnection, limit: str) -> None:
    sale = await opened(store, limit)
    answers = await sale.reserve(
        store, request(sale, limit, 1, 2), request(sale, limit, 2, 2, "blue"), request(sale, limit, 3, 1, "blue")
    )
    assert [o.code for o in answers.outcomes] == [C.ACCEPTED, C.OVER_LIMIT, C.ACCEPTED]


async def test_reserve_limit_of_buyer_and_sku_is_per_sku(store: SharedConnection) -> None:
    sale = await opened(store, "buyer_sku")
    answers = await sale.reserve(
        store,
        sale.ask("b", ("red", LIMIT), ("blue", LIMIT)),
        sale.ask("b", ("blue", 1)),
        sale.ask("c", ("blue", 2), ("red", LIMIT + 1)),
        sale.ask("c", ("blue", 2), ("red", 1), ("blue", 2)),
        sale.ask("c", ("blue", LIMIT)),
    )
    assert [o.code for o in answers.outcomes] == [C.ACCEPTED, C.OVER_LIMIT, C.OVER_LIMIT, C.OVER_LIMIT, C.ACCEPTED]


@pytest.mark.parametrize("limit", ["buyer", "buyer_sku", "ip", "device"])
async def test_reserve_limit_sums_two_lines_of_one_sku(store: SharedConnection, limit: str) -> None:
    sale = await opened(store, limit)
    two = sale.ask("b", ("red", 2), ("red", 2), ip="10.0.0.1", device="d")
    one = sale.ask("b", ("red", 2), ("red", 1), ip="10.0.0.1", device="d")
    assert [o.code for o in (await sale.reserve(store, two, one)).outcomes] == [C.OVER_LIMIT, C.ACCEPTED]


async def test_reserve_unknown_ip_and_device_count_for_nothing(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 100}, limit_ip=1, limit_device=1)
    answers = await sale.reserve(store, *(sale.ask(f"b{n}") for n in range(5)))
    assert [o.code for o in answers.outcomes] == [C.ACCEPTED] * 5
    assert await tell(store, "HKEYS", sale.keys.used) == [b"b:b%d" % n for n in range(5)]  # buyers always count


async def test_reserve_limit_counters_are_what_was_taken(store: SharedConnection) -> None:
    sale = await StoreSale.open(
        store, {"red": 9, "blue": 9}, limit_buyer=9, limit_buyer_sku=9, limit_ip=9, limit_device=9
    )
    await sale.reserve(store, sale.ask("b", ("red", 2), ("blue", 1), ip="10.0.0.1", device="d"))
    await sale.reserve(store, sale.ask("b", ip="10.0.0.1"), sale.ask("c", device="d"))
    assert (await contents(store))[sale.keys.used] == {
        b"b:b": b"4", b"s:b red": b"3", b"s:b blue": b"1", b"i:10.0.0.1": b"4", b"d:d": b"4",
        b"b:c": b"1", b"s:c red": b"1",
    }  # fmt: skip


async def test_reserve_refusal_by_one_limit_counts_for_none(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 9}, limit_buyer=9, limit_ip=9, limit_device=1)
    answers = await sale.reserve(store, sale.ask("b", ("red", 2), ip="10.0.0.1", device="d"))
    assert answers.outcomes == [Outcome(C.OVER_LIMIT, detail="device")]
    assert not await tell(store, "EXISTS", sale.keys.used)


async def test_reserve_replay_counts_once_for_limits(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 9}, limit_buyer=2)
    asks = [sale.ask("b", key=key) for key in ("k1", "k1", "k2", "k1", "k3")]
    answers = await sale.reserve(store, *asks)
    assert [o.code for o in answers.outcomes] == [C.ACCEPTED, C.REPLAYED, C.ACCEPTED, C.REPLAYED, C.OVER_LIMIT]


@pytest.mark.parametrize("kind", ["buyer", "buyer_sku", "ip", "device"])
async def test_reserve_limit_that_was_lifted_and_set_again_counts_what_was_taken_meanwhile(
    store: SharedConnection, scripts: Scripts, kind: str
) -> None:
    sale = await StoreSale.open(store, {"red": 100}, **{f"limit_{kind}": 2, f"count_{kind}": 1})

    async def order() -> C:
        return (await sale.reserve(store, sale.ask("bob", ip="10.0.0.1", device="d"))).outcomes[0].code

    assert await order() is C.ACCEPTED
    await scripts.change(sale.keys, 1, 2, {f"limit_{kind}": ""})
    assert [await order() for _ in range(3)] == [C.ACCEPTED] * 3
    await scripts.change(sale.keys, 1, 3, {f"limit_{kind}": 4})
    assert await order() is C.OVER_LIMIT


async def test_reserve_buyer_limit_that_comes_later_counts_from_the_start(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 100})
    await sale.reserve(store, sale.ask("bob", ("red", 3)))
    await scripts.change(sale.keys, 1, 2, {"limit_buyer": 3})
    assert (await sale.reserve(store, sale.ask("bob"))).outcomes[0].code is C.OVER_LIMIT
