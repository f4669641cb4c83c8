"""Holds without units: reserve with `at_payment` takes none, allocate takes them once per order, or changes nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from core.wire import has_units
from lua.connection import SharedConnection, StoreConnection
from lua.reserve import ReserveCode
from lua.scripts import MAX_ENDED, AllocateCode, GivebackCode, ReleaseCode, Scripts, SettleCode, Sold
from tests.conftest import Services
from tests.support import StoreSale, contents, eventually, reading, tell

LIMITS = {"limit_buyer": 4, "limit_buyer_sku": 3, "limit_ip": 60, "limit_device": 50}
NOTHING, ALLOCATED, TOO_LATE = AllocateCode.NOTHING, AllocateCode.ALLOCATED, AllocateCode.TOO_LATE
C = ReserveCode


async def opened(store: StoreConnection, stock: dict[str, int], **meta: str | int) -> StoreSale:
    return await StoreSale.open(store, stock, at_payment=1, **meta)


async def held(store: StoreConnection, sale: StoreSale, buyer: str = "b1", *lines: tuple[str, int]) -> bytes:
    """The id of an accepted order, whose hold has no units."""
    ask = sale.ask(buyer, *(lines or (("red", 1),)), ip="10.0.0.1", device="d1")
    [outcome] = (await sale.reserve(store, ask)).outcomes
    assert outcome.code is C.ACCEPTED
    return outcome.order_id


async def stock(store: StoreConnection, sale: StoreSale, sku: str = "red") -> tuple[int, int, int]:
    """Left, held, sold."""
    found = await reading(store, sale)
    return found.left[sku], found.held[sku], found.sold[sku]


async def shut_out(store: StoreConnection, sale: StoreSale, key: str) -> dict[bytes, object]:
    """What the store holds after a key was made one of the wrong type."""
    await tell(store, "DEL", getattr(sale.keys, key))
    await tell(store, "SET", getattr(sale.keys, key), "x")
    return await contents(store)


async def test_reserve_at_payment_takes_no_units_and_counts_every_limit(store: SharedConnection) -> None:
    sale = await opened(store, {"red": 3, "blue": 3}, **LIMITS)
    before = await tell(store, "HGETALL", sale.keys.stock)
    order = await held(store, sale, "b1", ("red", 2), ("blue", 1))
    assert await tell(store, "HGETALL", sale.keys.stock) == before
    assert not has_units(await tell(store, "HGET", sale.keys.holds, order))
    flat = await tell(store, "HGETALL", sale.keys.used)
    counted = dict(zip(flat[::2], flat[1::2], strict=True))
    assert counted == {b"b:b1": b"3", b"s:b1 red": b"2", b"s:b1 blue": b"1", b"i:10.0.0.1": b"3", b"d:d1": b"3"}
    again = await sale.reserve(store, sale.ask("b1", ("red", 2)))
    assert (again.outcomes[0].code, again.outcomes[0].detail) == (C.OVER_LIMIT, "buyer")
    found = await reading(store, sale)
    assert (found.seq, found.holds, found.intake) == (1, 1, 1)


async def test_reserve_at_payment_accepts_more_orders_than_units_in_one_batch(store: SharedConnection) -> None:
    sale = await opened(store, {"red": 2})
    answers = await sale.reserve(store, *(sale.ask(f"b{n}", ("red", 2)) for n in range(5)), sale.ask("b9", ("red", 3)))
    assert [o.code for o in answers.outcomes] == [C.ACCEPTED] * 5 + [C.SOLD_OUT]
    assert answers.leases == []  # two can still be had


async def test_reserve_at_payment_is_sold_out_with_a_lease_once_the_units_are_allocated(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await opened(store, {"red": 1})
    order, late = await held(store, sale), await held(store, sale, "b2")
    assert await scripts.allocate(sale.keys, 1, [order]) == [ALLOCATED]
    answers = await sale.reserve(store, sale.ask("b3"))
    assert [o.code for o in answers.outcomes] == [C.SOLD_OUT]
    assert [(lease.sku, lease.ms > 0) for lease in answers.leases] == [("red", True)]
    # What comes back waits for the lease, as any other unit; the late order's limits alone change nothing in that.
    await scripts.release(sale.keys, 1, [late])
    mark = (await sale.reserve(store, sale.ask("b3"))).leases[0].mark
    await scripts.release(sale.keys, 1, [order])
    waiting = await sale.reserve(store, sale.ask("b3"))
    assert [o.code for o in waiting.outcomes] == [C.SOLD_OUT]
    assert answers.leases[0].mark == mark != waiting.leases[0].mark

    async def bought() -> bool:
        return (await sale.reserve(store, sale.ask("b3"))).outcomes[0].code is C.ACCEPTED

    await eventually(bought, timeout_s=1.0)


async def test_reserve_without_at_payment_holds_units(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 3}, **LIMITS)
    order = await held(store, sale)
    assert has_units(await tell(store, "HGET", sale.keys.holds, order))
    assert await stock(store, sale) == (2, 1, 0)


@pytest.mark.parametrize(("left", "codes"), [
    (0, [TOO_LATE] * 3), (1, [TOO_LATE, TOO_LATE, ALLOCATED]), (2, [ALLOCATED, TOO_LATE, TOO_LATE]),
    (3, [ALLOCATED, TOO_LATE, ALLOCATED]), (4, [ALLOCATED, ALLOCATED, TOO_LATE]), (5, [ALLOCATED] * 3),
])  # fmt: skip
async def test_orders_of_one_batch_get_what_is_left_in_their_order(
    store: SharedConnection, scripts: Scripts, left: int, codes: list[AllocateCode]
) -> None:
    """Two, two and one unit are wanted."""
    sale = await opened(store, {"red": 9})
    orders = [await held(store, sale, f"b{n}", ("red", units)) for n, units in enumerate((2, 2, 1))]
    await scripts.restock(sale.keys, 1, "m", "red", left - 9)
    assert await scripts.allocate(sale.keys, 1, orders) == codes
    taken = sum(units for units, code in zip((2, 2, 1), codes, strict=True) if code is ALLOCATED)
    assert await stock(store, sale) == (left - taken, taken, 0)
    holds = [await tell(store, "HGET", sale.keys.holds, order) for order in orders]
    assert [has_units(hold) for hold in holds] == [code is ALLOCATED for code in codes]


async def test_order_that_was_too_late_writes_nothing_and_may_ask_again(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await opened(store, {"red": 2}, **LIMITS)
    order = await held(store, sale, "b1", ("red", 2))
    await scripts.restock(sale.keys, 1, "m1", "red", -1)
    before = await contents(store)
    assert await scripts.allocate(sale.keys, 1, [order, order]) == [TOO_LATE, TOO_LATE]
    assert await contents(store) == before
    await scripts.restock(sale.keys, 1, "m2", "red", 1)
    assert await scripts.allocate(sale.keys, 1, [order]) == [ALLOCATED]
    assert await stock(store, sale) == (0, 2, 0)


async def test_order_allocated_again_says_so_and_changes_nothing(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"red": 5}, **LIMITS)
    order, other = await held(store, sale), await held(store, sale, "b2", ("red", 2))
    assert await scripts.allocate(sale.keys, 1, [order, order, b"\0" * 16, other]) == [1, 1, 0, 1]
    assert await stock(store, sale) == (2, 3, 0)
    before = await contents(store)
    assert await scripts.allocate(sale.keys, 1, [other, order, other]) == [ALLOCATED] * 3
    assert await contents(store) == before


async def test_hold_keeps_all_but_its_mark_when_it_gets_its_units(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"red": 5}, **LIMITS)
    order = await held(store, sale)
    before = await tell(store, "HGET", sale.keys.holds, order)
    await scripts.allocate(sale.keys, 1, [order])
    after = await tell(store, "HGET", sale.keys.holds, order)
    assert (before[:-13], before[-13], before[-12:]) == (after[:-13], after[-13] + 16, after[-12:])
    assert after[-13] == 15


async def test_basket_is_allocated_whole_or_not_at_all(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"red": 5, "blue": 1})
    basket = await held(store, sale, "b1", ("red", 1), ("blue", 1), ("red", 2))  # two lines of one SKU are one wish
    other = await held(store, sale, "b2", ("blue", 1))
    more = await held(store, sale, "b3", ("red", 3))
    await scripts.allocate(sale.keys, 1, [other])
    before = await contents(store)
    assert await scripts.allocate(sale.keys, 1, [basket]) == [TOO_LATE]
    assert await contents(store) == before
    await scripts.release(sale.keys, 1, [other])
    assert await scripts.allocate(sale.keys, 1, [basket, more]) == [ALLOCATED, TOO_LATE]
    assert (await stock(store, sale), await stock(store, sale, "blue")) == ((2, 3, 0), (0, 1, 0))


async def test_units_that_wait_for_a_lease_are_allocated_at_once(store: SharedConnection, scripts: Scripts) -> None:
    """The lease promises that no request is accepted; an order that was accepted long ago is none."""
    sale = await opened(store, {"red": 1}, lease_ms=600_000)
    order, other = await held(store, sale), await held(store, sale, "b2")
    await scripts.allocate(sale.keys, 1, [order])
    await scripts.release(sale.keys, 1, [order])
    before = await sale.reserve(store, sale.ask("b3"))
    assert before.leases[0].mark.startswith(b"w")
    assert await scripts.allocate(sale.keys, 1, [other]) == [ALLOCATED]
    after = await sale.reserve(store, sale.ask("b3"))
    assert [a.outcomes[0].code for a in (before, after)] == [C.SOLD_OUT] * 2
    assert after.leases[0].mark == before.leases[0].mark  # nobody was accepted meanwhile


@pytest.mark.parametrize("allocated", [False, True])
async def test_release_gives_back_the_limits_and_only_units_that_were_taken(
    store: SharedConnection, scripts: Scripts, allocated: bool
) -> None:
    sale = await opened(store, {"red": 5, "blue": 5}, **LIMITS)
    before = await contents(store)
    order = await held(store, sale, "b1", ("red", 2), ("blue", 1))
    if allocated:
        assert await scripts.allocate(sale.keys, 1, [order]) == [ALLOCATED]
    assert await scripts.release(sale.keys, 1, [order]) == [ReleaseCode.RELEASED]
    after = await contents(store)
    for key in (sale.keys.requests, sale.keys.intake, sale.keys.meta):  # what was accepted stays on record
        before.pop(key, None), after.pop(key, None)
    assert after == before
    assert await scripts.allocate(sale.keys, 1, [order]) == [NOTHING]


async def test_release_of_holds_with_and_without_units_in_one_call(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"red": 5}, **LIMITS)
    with_units, without = await held(store, sale, "b1", ("red", 2)), await held(store, sale, "b2", ("red", 3))
    await scripts.allocate(sale.keys, 1, [with_units])
    assert await scripts.release(sale.keys, 1, [without, with_units]) == [ReleaseCode.RELEASED] * 2
    assert await stock(store, sale) == (5, 0, 0)
    assert await tell(store, "EXISTS", sale.keys.used) == 0


async def test_release_of_a_hold_without_units_forgives_only_limits_that_were_counted(
    store: SharedConnection, scripts: Scripts
) -> None:
    """Bit 16 must not be taken for the device's."""
    sale = await opened(store, {"red": 10})
    uncounted = await held(store, sale, "b1", ("red", 2))
    await scripts.change(sale.keys, 1, 2, {"limit_device": 2, "count_device": 1})
    counted = await held(store, sale, "b2", ("red", 2))
    await scripts.release(sale.keys, 1, [uncounted])
    assert await tell(store, "HGET", sale.keys.used, "d:d1") == b"2"
    await scripts.release(sale.keys, 1, [counted])
    assert await tell(store, "EXISTS", sale.keys.used) == 0


async def test_settle_sells_nothing_of_a_hold_without_units_and_leaves_it(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await opened(store, {"red": 5}, **LIMITS)
    order, other = await held(store, sale), await held(store, sale, "b2")
    before = await contents(store)
    assert await scripts.settle(sale.keys, 1, [order]) == [SettleCode.NOTHING]
    assert await contents(store) == before
    await scripts.allocate(sale.keys, 1, [other])
    assert await scripts.settle(sale.keys, 1, [order, other]) == [SettleCode.NOTHING, SettleCode.SETTLED]
    assert await stock(store, sale) == (4, 0, 1)
    assert await scripts.allocate(sale.keys, 1, [order, other]) == [ALLOCATED, NOTHING]


@pytest.mark.parametrize("settled", [True, False])
async def test_giveback_of_an_allocated_order_returns_units_and_every_limit(
    store: SharedConnection, scripts: Scripts, settled: bool
) -> None:
    sale = await opened(store, {"red": 5}, **LIMITS)
    order = await held(store, sale, "b1", ("red", 2))
    sold = Sold(order, "app", "b1", "10.0.0.1", "d1", {"red": 2})
    await scripts.allocate(sale.keys, 1, [order])
    if settled:
        await scripts.settle(sale.keys, 1, [order])
    assert await scripts.giveback(sale.keys, 1, [sold]) == [GivebackCode.RETURNED]
    await scripts.settle(sale.keys, 1, [order])
    assert await stock(store, sale) == (5, 0, 2)
    assert (await reading(store, sale)).allocation == {"red": 7}
    assert await tell(store, "EXISTS", sale.keys.used) == 0
    assert await scripts.giveback(sale.keys, 1, [sold]) == [GivebackCode.REPEATED]


async def test_giveback_of_a_hold_without_units_makes_no_units(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"red": 5}, **LIMITS)
    order = await held(store, sale)
    before = await contents(store)
    sold = Sold(order, "app", "b1", "10.0.0.1", "d1", {"red": 1})
    assert await scripts.giveback(sale.keys, 1, [sold, sold]) == [GivebackCode.UNKNOWN] * 2
    assert await contents(store) == before


async def test_allocate_is_fenced_by_the_epoch_and_writes_nothing(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"red": 5})
    order = await held(store, sale)
    before = await contents(store)
    assert await scripts.allocate(sale.keys, 2, [order]) is None
    assert await contents(store) == before


@pytest.mark.parametrize("key", ["stock", "holds"])
async def test_allocate_with_a_key_of_the_wrong_type_writes_nothing(
    store: SharedConnection, scripts: Scripts, key: str
) -> None:
    sale = await opened(store, {"red": 5})
    order = await held(store, sale)
    before = await shut_out(store, sale, key)
    with pytest.raises(Exception, match="WRONGTYPE"):
        await scripts.allocate(sale.keys, 1, [order])
    assert await contents(store) == before


@pytest.mark.parametrize("key", ["stock", "used"])
async def test_release_of_a_hold_without_units_checks_every_key_first(
    store: SharedConnection, scripts: Scripts, key: str
) -> None:
    sale = await opened(store, {"red": 5}, **LIMITS)
    order = await held(store, sale)
    before = await shut_out(store, sale, key)
    with pytest.raises(Exception, match="WRONGTYPE"):
        await scripts.release(sale.keys, 1, [order])
    assert await contents(store) == before


async def test_allocate_works_in_a_full_store(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"red": 5})
    order = await held(store, sale)
    await tell(store, "CONFIG", "SET", "maxmemory", "1mb")
    try:
        assert await scripts.allocate(sale.keys, 1, [order]) == [ALLOCATED]
    finally:
        await tell(store, "CONFIG", "SET", "maxmemory", "0")


async def test_allocate_takes_the_most_orders_with_the_most_lines(store: SharedConnection, scripts: Scripts) -> None:
    wanted = {f"sku-{n}": MAX_ENDED for n in range(500)}
    sale = await opened(store, wanted)
    orders = []
    for n in range(0, MAX_ENDED, 50):
        lines = [[(f"sku-{(20 * k + m) % 500}", 1) for m in range(20)] for k in range(n, n + 50)]
        asks = [sale.ask(f"b{n + k}", *basket) for k, basket in enumerate(lines)]
        orders += [o.order_id for o in (await sale.reserve(store, *asks)).outcomes]
    assert await scripts.allocate(sale.keys, 1, orders) == [ALLOCATED] * MAX_ENDED
    found = await reading(store, sale)
    assert set(found.left.values()) == {MAX_ENDED - 4}
    assert set(found.held.values()) == {4}


@pytest.fixture
async def callers(services: Services, store: SharedConnection) -> AsyncIterator[list[StoreConnection]]:
    """Connections of separate owners, connected, so that they start side by side."""
    made = [StoreConnection(services.store_url, "fsync", 10.0, f"c{n}") for n in range(4)]
    await asyncio.gather(*(c.connect() for c in made))
    yield made
    for caller in made:
        await caller.close()


async def look_then_take(caller: StoreConnection, sale: StoreSale) -> bool:
    """What a payment callback would do without the script."""
    if int(await tell(caller, "HGET", sale.keys.stock, "red")) < 1:
        return False
    await tell(caller, "HINCRBY", sale.keys.stock, "red", -1)
    return True


async def test_control_look_then_take_sells_the_last_units_twice(
    store: SharedConnection, callers: list[StoreConnection]
) -> None:
    """Control: if it fails, the next test proves nothing."""
    sale = await opened(store, {"red": 5})

    async def own(caller: StoreConnection) -> int:
        return sum([await look_then_take(caller, sale) for _ in range(10)])

    assert sum(await asyncio.gather(*map(own, callers))) > 5


async def test_allocate_and_release_at_once_never_sell_more_than_there_is(
    store: SharedConnection, callers: list[StoreConnection]
) -> None:
    """Two callers allocate the same 60 orders, two release a third of them: what is left fits at the end."""
    sale = await opened(store, {"red": 20})
    answers = await sale.reserve(store, *(sale.ask(f"b{n}") for n in range(60)))
    orders = [o.order_id for o in answers.outcomes]

    async def allocate(caller: StoreConnection) -> None:
        for n in range(0, 60, 3):
            await Scripts(caller).allocate(sale.keys, 1, orders[n : n + 3])
            assert (await reading(caller, sale)).left["red"] >= 0

    async def release(caller: StoreConnection) -> int:
        codes = [await Scripts(caller).release(sale.keys, 1, [order]) for order in orders[::3]]
        return sum(code == [ReleaseCode.RELEASED] for code in codes)

    results = await asyncio.gather(*map(allocate, callers[:2]), *map(release, callers[2:]))
    assert sum(r for r in results if r is not None) == 20
    await Scripts(store).allocate(sale.keys, 1, orders)
    assert await stock(store, sale) == (0, 20, 0)
    flat = await tell(store, "HGETALL", sale.keys.holds)
    assert sum(map(has_units, flat[1::2])) == 20
