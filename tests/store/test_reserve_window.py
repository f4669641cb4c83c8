"""When `reserve` sells: the window by the store's clock, paused, closed, and units that wait for the leases to end.

The clock cannot be set, so batches go back to back in one exchange, several a millisecond, around the instant; each
reply carries the clock it was decided by.
"""

from collections.abc import Callable
from typing import Any

import pytest

from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from lua.scripts import RestockCode, Scripts
from tests.support import LEASE_MS, StoreSale, eventually, raw_reserve, reading, tell

C = ReserveCode
NOW_MS, CODES = 1, 4  # places in a reply


async def store_ms(store: SharedConnection) -> int:
    seconds, micros = await tell(store, "TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def codes_around(
    store: SharedConnection, sale: StoreSale, instant_ms: int, expected: Callable[[int], ReserveCode]
) -> set[int]:
    """Asks until the instant is past; every answer is as expected. Returns: -1, 0, 1 = asked before, at, after."""
    sides: set[int] = set()
    n = 0
    while True:
        replies = await raw_reserve(store, sale, [[sale.ask(f"b{(n := n + 1)}")] for _ in range(20)])
        for reply in replies:
            assert (reply[CODES] or [C.ACCEPTED]) == [expected(reply[NOW_MS])]
            sides.add((reply[NOW_MS] > instant_ms) - (reply[NOW_MS] < instant_ms))
        if replies[-1][NOW_MS] > instant_ms:
            return sides


@pytest.mark.parametrize(
    ("field", "before", "after"), [("opens_ms", C.NOT_OPEN, C.ACCEPTED), ("closes_ms", C.ACCEPTED, C.CLOSED)]
)
async def test_reserve_window_is_exact_by_the_store_clock(
    store: SharedConnection, field: str, before: ReserveCode, after: ReserveCode
) -> None:
    async def all_sides_seen() -> bool:
        instant_ms = await store_ms(store) + 30
        sale = await StoreSale.open(store, {"red": 10**6}, **{field: instant_ms})
        return await codes_around(store, sale, instant_ms, lambda t: after if t >= instant_ms else before) == {-1, 0, 1}

    await eventually(all_sides_seen)


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({"state": "paused"}, C.PAUSED),
        ({"state": "paused", "opens_ms": 2**45}, C.PAUSED),
        ({"state": "closed"}, C.CLOSED),
        ({"state": "nonsense"}, C.CLOSED),
        ({"closes_ms": 1}, C.CLOSED),
        ({"opens_ms": 2**45, "closes_ms": 2**46}, C.NOT_OPEN),
    ],
)
async def test_reserve_shut_sale_refuses_with_its_reason(
    store: SharedConnection, meta: dict[str, Any], code: ReserveCode
) -> None:
    sale = await StoreSale.open(store, {"red": 5, "blue": 0}, limit_buyer=1, **meta)
    asks = [sale.ask("a"), sale.ask("b", ("red", 2)), sale.ask("c", ("blue", 1)), sale.ask("d", ("none", 1))]
    answers = await sale.reserve(store, *asks)
    assert [o.code for o in answers.outcomes] == [code] * 4
    assert answers.leases == []


async def test_reserve_lease_says_how_long_an_empty_sku_stays_empty(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 1, "blue": 5})
    assert (await sale.reserve(store, sale.ask("a"))).leases == []
    answers = await sale.reserve(store, sale.ask("b"), sale.ask("c"), sale.ask("d", ("blue", 1)))
    assert answers.leases == [("red", LEASE_MS, b"0")]


async def test_reserve_last_unit_and_the_refusal_after_it_in_one_batch_give_a_lease(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    assert (await sale.reserve(store, sale.ask("a"), sale.ask("b"))).leases == [("red", LEASE_MS, b"0")]


async def test_reserve_gives_no_lease_while_a_unit_is_left(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 1, "blue": 0})
    answers = await sale.reserve(store, sale.ask("a", ("red", 2)))
    assert [o.code for o in answers.outcomes] == [C.SOLD_OUT]
    assert answers.leases == []
    basket = await sale.reserve(store, sale.ask("a", ("red", 1), ("blue", 1)))
    assert basket.leases == [("blue", LEASE_MS, b"0")]


@pytest.mark.parametrize("another_waits", [False, True])
async def test_reserve_returned_units_are_on_sale_exactly_one_lease_later(
    store: SharedConnection, scripts: Scripts, another_waits: bool
) -> None:
    async def all_sides_seen() -> bool:
        sale = await StoreSale.open(store, {"red": 0}, lease_ms=60)
        before_ms = await store_ms(store)
        assert await scripts.restock(sale.keys, 1, "r1", "red", 10**6) == (RestockCode.DONE, 10**6)
        after_ms = await store_ms(store)
        opens_ms = int((await reading(store, sale)).meta["r:red"])
        assert before_ms + 60 <= opens_ms <= after_ms + 60
        if another_waits:
            await tell(store, "HSET", sale.keys.meta, "reopen", 2**45)
        sides = await codes_around(store, sale, opens_ms, lambda t: C.ACCEPTED if t >= opens_ms else C.SOLD_OUT)
        return sides == {-1, 0, 1}

    await eventually(all_sides_seen, timeout_s=5.0)


async def test_reserve_lease_of_waiting_units_ends_when_they_go_on_sale(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 0, "blue": 3})
    await scripts.restock(sale.keys, 1, "r1", "red", 2)
    opens_ms = int((await reading(store, sale)).meta["r:red"])

    async def a_part_of_the_lease_is_over() -> bool:
        return await store_ms(store) > opens_ms - LEASE_MS + 1

    await eventually(a_part_of_the_lease_is_over)
    [reply] = await raw_reserve(store, sale, [[sale.ask("a"), sale.ask("b", ("blue", 1))]])
    assert reply[CODES] == [C.SOLD_OUT, C.ACCEPTED]  # another SKU does not wait
    assert reply[6] == [b"red", opens_ms - reply[NOW_MS], b"w%d" % opens_ms]
    assert 0 < reply[6][1] < LEASE_MS
    assert (await reading(store, sale)).left["red"] == 2

    async def sold() -> bool:
        return (await sale.reserve(store, sale.ask("a"))).outcomes[0].code is C.ACCEPTED

    await eventually(sold, timeout_s=1.0)
    assert await store_ms(store) >= opens_ms


async def test_reserve_lease_mark_changes_with_every_return(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 0}, lease_ms=20)
    marks = [(await sale.reserve(store, sale.ask("a"))).leases[0].mark]
    for n in range(3):
        await scripts.restock(sale.keys, 1, f"r{n}", "red", 1)

        async def sold() -> bool:
            return (await sale.reserve(store, sale.ask("a"))).outcomes[0].code is C.ACCEPTED

        await eventually(sold, timeout_s=1.0)
        [lease] = (await sale.reserve(store, sale.ask("a"))).leases
        assert lease.ms == 20
        marks.append(lease.mark)
    assert len(set(marks)) == 4


async def test_reserve_units_added_to_a_sku_with_units_left_are_on_sale_at_once(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 1}, lease_ms=900)
    await scripts.restock(sale.keys, 1, "r1", "red", 1)
    answers = await sale.reserve(store, sale.ask("a", ("red", 2)))
    assert answers.outcomes[0].code is C.ACCEPTED


async def test_reserve_transferred_units_are_on_sale_at_once(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 0}, lease_ms=900)
    await scripts.restock(sale.keys, 1, "x1", "red", 1, to=5)
    assert (await sale.reserve(store, sale.ask("a"))).outcomes[0].code is C.ACCEPTED


async def test_reserve_lease_zero_sells_returned_units_at_once(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 0}, lease_ms=0)
    for n in range(50):
        refused, sold = await _around_restock(store, scripts, sale, n)
        assert (refused.outcomes[0].code, sold.outcomes[0].code) == (C.SOLD_OUT, C.ACCEPTED)
        assert refused.leases[0].ms == 0


async def _around_restock(store: SharedConnection, scripts: Scripts, sale: StoreSale, n: int) -> tuple[Any, Any]:
    refused = await sale.reserve(store, sale.ask("a"))
    await scripts.restock(sale.keys, 1, f"r{n}", "red", 1)
    return refused, await sale.reserve(store, sale.ask("a"))
