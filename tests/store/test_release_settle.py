"""release and settle: a hold ends once, one way or the other; what it held comes back exactly, or is sold."""

import asyncio

import pytest

from lua.connection import SharedConnection, StoreConnection
from lua.reserve import ReserveCode
from lua.scripts import MAX_ENDED, ReleaseCode, Scripts, SettleCode
from tests.conftest import Services
from tests.support import LEASE_MS, StoreSale, contents, eventually, reading, tell

LIMITS = {"limit_buyer": 4, "limit_buyer_sku": 3, "limit_ip": 6, "limit_device": 5}


async def held(store: StoreConnection, sale: StoreSale, buyer: str = "b1", *lines: tuple[str, int]) -> bytes:
    """The id of an accepted order."""
    ask = sale.ask(buyer, *(lines or (("red", 1),)), ip="10.0.0.1", device="d1")
    [outcome] = (await sale.reserve(store, ask)).outcomes
    assert outcome.code is ReserveCode.ACCEPTED
    return outcome.order_id


async def test_release_gives_back_units_and_every_limit(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 10, "blue": 10}, **LIMITS)
    before = await contents(store)
    order = await held(store, sale, "b1", ("red", 2), ("blue", 1))
    assert await scripts.release(sale.keys, 1, [order]) == [ReleaseCode.RELEASED]
    after = await contents(store)
    for key in (sale.keys.requests, sale.keys.intake, sale.keys.meta):  # what was accepted stays on record
        before.pop(key, None), after.pop(key, None)
    assert after == before


async def test_settle_sells_what_was_held(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 10, "blue": 10}, **LIMITS)
    order = await held(store, sale, "b1", ("red", 2), ("blue", 1))
    assert await scripts.settle(sale.keys, 1, [order]) == [SettleCode.SETTLED]
    found = await reading(store, sale)
    assert (found.left, found.held, found.sold) == ({"red": 8, "blue": 9}, {"red": 0, "blue": 0}, {"red": 2, "blue": 1})
    assert found.holds == 0
    assert await tell(store, "HGET", sale.keys.used, "b:b1") == b"3"  # what is sold stays counted


@pytest.mark.parametrize("first", ["release", "settle"])
@pytest.mark.parametrize("second", ["release", "settle"])
async def test_hold_that_ended_changes_nothing_when_ended_again(
    store: SharedConnection, scripts: Scripts, first: str, second: str
) -> None:
    sale = await StoreSale.open(store, {"red": 10}, **LIMITS)
    order = await held(store, sale)
    assert await getattr(scripts, first)(sale.keys, 1, [order]) == [1]
    before = await contents(store)
    assert await getattr(scripts, second)(sale.keys, 1, [order, order]) == [0, 0]
    assert await contents(store) == before


@pytest.mark.parametrize("end", ["release", "settle"])
async def test_order_named_twice_in_one_call_ends_once(store: SharedConnection, scripts: Scripts, end: str) -> None:
    sale = await StoreSale.open(store, {"red": 10})
    order, other = await held(store, sale), await held(store, sale, "b2", ("red", 2))
    assert await getattr(scripts, end)(sale.keys, 1, [order, order, b"\0" * 16, other]) == [1, 0, 0, 1]
    found = await reading(store, sale)
    assert (found.left["red"], found.held["red"], found.sold["red"]) == ((10, 0, 0) if end == "release" else (7, 0, 3))


@pytest.mark.parametrize("end", ["release", "settle"])
async def test_end_is_fenced_by_the_epoch_and_writes_nothing(
    store: SharedConnection, scripts: Scripts, end: str
) -> None:
    sale = await StoreSale.open(store, {"red": 10})
    order = await held(store, sale)
    before = await contents(store)
    assert await getattr(scripts, end)(sale.keys, 2, [order]) is None
    assert await contents(store) == before


async def test_released_units_of_an_empty_sku_are_sold_again_after_the_lease(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    order = await held(store, sale)
    sold_out = await sale.reserve(store, sale.ask("b2"))
    await scripts.release(sale.keys, 1, [order])
    waiting = await sale.reserve(store, sale.ask("b2"))
    assert [o.code for o in waiting.outcomes] == [ReserveCode.SOLD_OUT]
    assert 0 < waiting.leases[0].ms <= LEASE_MS
    assert waiting.leases[0].mark != sold_out.leases[0].mark  # a flag of before is not believed any more

    async def bought() -> bool:
        return (await sale.reserve(store, sale.ask("b2"))).outcomes[0].code is ReserveCode.ACCEPTED

    await eventually(bought, timeout_s=1.0)


async def test_released_units_of_a_sku_that_sells_are_on_sale_at_once(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 3})
    order = await held(store, sale, "b1", ("red", 2))
    await scripts.release(sale.keys, 1, [order])
    assert (await sale.reserve(store, sale.ask("b2", ("red", 3)))).outcomes[0].code is ReserveCode.ACCEPTED


async def test_release_takes_off_only_limits_that_were_counted(store: SharedConnection, scripts: Scripts) -> None:
    """The limit came after the first order: releasing it must not forgive the second one."""
    sale = await StoreSale.open(store, {"red": 10})
    uncounted = await held(store, sale, "b1", ("red", 2))
    await scripts.change(sale.keys, 1, 2, {"limit_ip": 2, "count_ip": 1})
    await held(store, sale, "b2", ("red", 2))
    await scripts.release(sale.keys, 1, [uncounted])
    assert await tell(store, "HGET", sale.keys.used, "i:10.0.0.1") == b"2"
    again = await sale.reserve(store, sale.ask("b3", ip="10.0.0.1"))
    assert again.outcomes[0].code is ReserveCode.OVER_LIMIT


async def test_released_buyer_may_buy_again_up_to_the_limit(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 10}, limit_buyer=2, limit_ip=2)
    order = await held(store, sale, "b1", ("red", 2))
    assert (await sale.reserve(store, sale.ask("b1"))).outcomes[0].code is ReserveCode.OVER_LIMIT
    await scripts.release(sale.keys, 1, [order])
    assert await tell(store, "EXISTS", sale.keys.used) == 0  # counters at 0 leave nothing behind
    again = await sale.reserve(store, sale.ask("b1", ("red", 2), ip="10.0.0.1"), sale.ask("b1"))
    assert [o.code for o in again.outcomes] == [ReserveCode.ACCEPTED, ReserveCode.OVER_LIMIT]


@pytest.mark.parametrize(
    ("end", "key"),
    [("release", "stock"), ("release", "used"), ("release", "holds"), ("settle", "stock"), ("settle", "holds")],
)
async def test_key_of_the_wrong_type_leaves_nothing_half_ended(
    store: SharedConnection, scripts: Scripts, end: str, key: str
) -> None:
    sale = await StoreSale.open(store, {"red": 10}, **LIMITS)
    order = await held(store, sale)
    await tell(store, "DEL", getattr(sale.keys, key))
    await tell(store, "SET", getattr(sale.keys, key), "x")
    before = await contents(store)
    with pytest.raises(Exception, match="WRONGTYPE"):
        await getattr(scripts, end)(sale.keys, 1, [order])
    assert await contents(store) == before


@pytest.mark.parametrize("end", ["release", "settle"])
async def test_end_works_in_a_full_store(store: SharedConnection, scripts: Scripts, end: str) -> None:
    sale = await StoreSale.open(store, {"red": 10}, **LIMITS)
    order = await held(store, sale)
    await tell(store, "CONFIG", "SET", "maxmemory", "1mb")
    try:
        assert await getattr(scripts, end)(sale.keys, 1, [order]) == [1]
    finally:
        await tell(store, "CONFIG", "SET", "maxmemory", "0")


async def test_end_takes_the_most_orders_with_the_most_lines(store: SharedConnection, scripts: Scripts) -> None:
    stock = {f"sku-{n}": MAX_ENDED for n in range(20)}
    sale = await StoreSale.open(store, stock, limit_buyer_sku=1, limit_buyer=20)
    lines = [(sku, 1) for sku in stock]
    orders = []
    for n in range(0, MAX_ENDED, 50):
        answers = await sale.reserve(store, *(sale.ask(f"b{k}", *lines) for k in range(n, n + 50)))
        orders += [o.order_id for o in answers.outcomes]
    assert await scripts.release(sale.keys, 1, orders) == [ReleaseCode.RELEASED] * MAX_ENDED
    assert (await reading(store, sale)).left == stock


async def test_release_and_settle_at_once_have_one_winner_each(services: Services, store: SharedConnection) -> None:
    """Two callers, each order wanted by both: what is sold and what is back add up to what was held."""
    sale = await StoreSale.open(store, {"red": 200})
    answers = await sale.reserve(store, *(sale.ask(f"b{n}") for n in range(200)))
    orders = [o.order_id for o in answers.outcomes]
    callers = [StoreConnection(services.store_url, "fsync", 10.0, f"c{n}") for n in range(2)]

    async def end_all(caller: StoreConnection, name: str) -> int:
        codes = [await getattr(Scripts(caller), name)(sale.keys, 1, orders[n : n + 5]) for n in range(0, 200, 5)]
        return sum(map(sum, codes))

    released, settled = await asyncio.gather(end_all(callers[0], "release"), end_all(callers[1], "settle"))
    for caller in callers:
        await caller.close()
    assert released + settled == 200
    found = await reading(store, sale)
    assert (found.left["red"], found.held["red"], found.sold["red"]) == (released, 0, settled)
