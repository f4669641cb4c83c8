"""giveback: sold units come back once per order, with the limits that were counted for it, before or after settle."""

import pytest

from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from lua.scripts import MAX_ENDED, GivebackCode, Scripts, Sold
from tests.support import LEASE_MS, StoreSale, contents, reading, tell

LIMITS = {"limit_buyer": 4, "limit_buyer_sku": 3, "limit_ip": 6, "limit_device": 5}
RETURNED, REPEATED, UNKNOWN = GivebackCode.RETURNED, GivebackCode.REPEATED, GivebackCode.UNKNOWN


async def held(store: SharedConnection, sale: StoreSale, buyer: str = "b1", **units: int) -> Sold:
    """An accepted order."""
    wanted = units or {"red": 1}
    ask = sale.ask(buyer, *wanted.items(), ip="10.0.0.1", device="d1")
    [outcome] = (await sale.reserve(store, ask)).outcomes
    assert outcome.code is ReserveCode.ACCEPTED
    return Sold(outcome.order_id, "app", buyer, "10.0.0.1", "d1", wanted)


async def sold(store: SharedConnection, sale: StoreSale, buyer: str = "b1", **units: int) -> Sold:
    order = await held(store, sale, buyer, **units)
    await Scripts(store).settle(sale.keys, 1, [order.order_id])
    return order


@pytest.mark.parametrize("first", ["settle", "giveback"])
async def test_units_and_every_limit_come_back_once_in_either_order_with_settle(
    store: SharedConnection, scripts: Scripts, first: str
) -> None:
    """G18"""
    sale = await StoreSale.open(store, {"red": 10, "blue": 10}, **LIMITS)
    order = await held(store, sale, red=2, blue=1)
    for step in ("settle", "giveback") if first == "settle" else ("giveback", "settle"):
        if step == "settle":
            await scripts.settle(sale.keys, 1, [order.order_id])
        else:
            assert await scripts.giveback(sale.keys, 1, [order]) == [RETURNED]
    found = await reading(store, sale)
    assert (found.left, found.held) == ({"red": 10, "blue": 10}, {"red": 0, "blue": 0})
    assert (found.sold, found.allocation) == ({"red": 2, "blue": 1}, {"red": 12, "blue": 11})
    assert await tell(store, "EXISTS", sale.keys.used) == 0
    before = await contents(store)
    assert await scripts.giveback(sale.keys, 1, [order, order]) == [REPEATED, REPEATED]
    assert await scripts.settle(sale.keys, 1, [order.order_id]) == [0]
    assert await contents(store) == before


async def test_giveback_takes_off_only_limits_that_were_counted(store: SharedConnection, scripts: Scripts) -> None:
    """The limit came after the first order: its return must not forgive the second one."""
    sale = await StoreSale.open(store, {"red": 10})
    uncounted = await sold(store, sale, red=2)
    await scripts.change(sale.keys, 1, 2, {"limit_ip": 4})
    await sold(store, sale, red=2)
    await scripts.giveback(sale.keys, 1, [uncounted])
    assert await tell(store, "HGET", sale.keys.used, "i:10.0.0.1") == b"2"


async def test_giveback_of_an_order_named_twice_in_one_call_is_once(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 10}, **LIMITS)
    one, other = await sold(store, sale), await sold(store, sale, "b2", red=2)
    assert await scripts.giveback(sale.keys, 1, [one, other, one]) == [RETURNED, RETURNED, REPEATED]
    found = await reading(store, sale)
    assert (found.left["red"], found.sold["red"], found.allocation["red"]) == (10, 3, 13)


async def test_giveback_to_an_empty_sku_waits_for_the_leases(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    order = await sold(store, sale)
    await scripts.giveback(sale.keys, 1, [order])
    answers = await sale.reserve(store, sale.ask("b2"))
    assert answers.outcomes[0].code is ReserveCode.SOLD_OUT
    assert 0 < answers.leases[0].ms <= LEASE_MS


async def test_giveback_of_an_unknown_sku_writes_nothing_and_the_rest_comes_back(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 10})
    order = await sold(store, sale)
    odd = order._replace(order_id=b"\0" * 16, units={"red": 1, "green": 1})
    before = await contents(store)
    assert await scripts.giveback(sale.keys, 1, [odd]) == [UNKNOWN]
    assert await contents(store) == before
    assert await scripts.giveback(sale.keys, 1, [odd, order]) == [UNKNOWN, RETURNED]
    assert (await reading(store, sale)).left == {"red": 10}


async def test_giveback_is_fenced_by_the_epoch_and_writes_nothing(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 10})
    order = await sold(store, sale)
    before = await contents(store)
    assert await scripts.giveback(sale.keys, 2, [order]) is None
    assert await contents(store) == before


@pytest.mark.parametrize("key", ["stock", "used", "holds", "deltas"])
async def test_giveback_with_a_key_of_the_wrong_type_writes_nothing(
    store: SharedConnection, scripts: Scripts, key: str
) -> None:
    sale = await StoreSale.open(store, {"red": 10}, **LIMITS)
    order = await sold(store, sale)
    await tell(store, "DEL", getattr(sale.keys, key))
    await tell(store, "SET", getattr(sale.keys, key), "x")
    before = await contents(store)
    with pytest.raises(Exception, match="WRONGTYPE"):
        await scripts.giveback(sale.keys, 1, [order])
    assert await contents(store) == before


async def test_giveback_works_in_a_full_store(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 10}, **LIMITS)
    order = await sold(store, sale)
    await tell(store, "CONFIG", "SET", "maxmemory", "1mb")
    try:
        assert await scripts.giveback(sale.keys, 1, [order]) == [RETURNED]
    finally:
        await tell(store, "CONFIG", "SET", "maxmemory", "0")


async def test_giveback_takes_the_most_orders_with_the_most_lines(store: SharedConnection, scripts: Scripts) -> None:
    stock = {f"sku-{n}": MAX_ENDED for n in range(20)}
    sale = await StoreSale.open(store, stock, limit_buyer_sku=1, limit_buyer=20)
    orders = []
    for n in range(0, MAX_ENDED, 50):
        answers = await sale.reserve(store, *(sale.ask(f"b{k}", *((s, 1) for s in stock)) for k in range(n, n + 50)))
        orders += [
            Sold(o.order_id, "app", f"b{n + k}", "", "", dict.fromkeys(stock, 1))
            for k, o in enumerate(answers.outcomes)
        ]
    await scripts.settle(sale.keys, 1, [o.order_id for o in orders])
    assert await scripts.giveback(sale.keys, 1, orders) == [RETURNED] * MAX_ENDED
    assert (await reading(store, sale)).left == stock
    assert await tell(store, "EXISTS", sale.keys.used) == 0
