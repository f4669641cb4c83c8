"""Many buyers at once on several connections. Each race has a control that shows that the harness can see one."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from lua.connection import SharedConnection, StoreConnection
from lua.reserve import Ask, Outcome, ReserveCode
from tests.conftest import Services
from tests.support import StoreSale, reading, tell

C = ReserveCode
CONNECTIONS = 5


@pytest.fixture
async def connections(services: Services, store: SharedConnection) -> AsyncIterator[list[StoreConnection]]:
    """Connections of separate owners, connected, so that they start side by side."""
    made = [StoreConnection(services.store_url, "fsync", 10.0, f"racer-{n}") for n in range(CONNECTIONS)]
    await asyncio.gather(*(c.connect() for c in made))
    yield made
    for connection in made:
        await connection.close()


async def race(connections: list[StoreConnection], sale: StoreSale, asks: list[Ask], seed: int) -> list[Outcome]:
    """The asks, dealt out to the connections and sent in batches of random size; outcomes in the order of the asks."""
    chance = random.Random(seed)
    outcomes: dict[bytes, Outcome] = {}

    async def own(connection: StoreConnection, mine: list[Ask]) -> None:
        while mine:
            size = chance.randint(1, 12)
            batch, mine = mine[:size], mine[size:]
            answers = await sale.reserve(connection, *batch)
            outcomes.update(zip((a.order_id for a in batch), answers.outcomes, strict=True))

    hands = [asks[n::CONNECTIONS] for n in range(CONNECTIONS)]
    await asyncio.gather(*(own(c, hand) for c, hand in zip(connections, hands, strict=True)))
    return [outcomes[a.order_id] for a in asks]


async def take_without_script(connection: StoreConnection, sale: StoreSale) -> bool:
    """What many shops do: look, then take."""
    left = int(await tell(connection, "HGET", sale.keys.stock, "red"))
    if left > 0:
        await tell(connection, "HSET", sale.keys.stock, "red", left - 1)
    return left > 0


async def test_control_read_then_write_oversells(store: SharedConnection, connections: list[StoreConnection]) -> None:
    """Control: shows that this harness can see a race. If it fails, the next tests prove nothing."""
    sale = await StoreSale.open(store, {"red": 10})

    async def own(connection: StoreConnection) -> int:
        return sum([await take_without_script(connection, sale) for _ in range(40)])

    assert sum(await asyncio.gather(*map(own, connections))) > 10


async def test_control_look_up_then_record_accepts_a_key_twice(
    store: SharedConnection, connections: list[StoreConnection]
) -> None:
    """Control of the race for one key."""
    sale = await StoreSale.open(store, {"red": 10})

    async def take(connection: StoreConnection, n: int) -> bool:
        if await tell(connection, "HGET", sale.keys.requests, "k"):
            return False
        await tell(connection, "HSET", sale.keys.requests, "k", n)
        return True

    assert sum(await asyncio.gather(*(take(c, n) for n, c in enumerate(connections)))) > 1


@pytest.mark.parametrize("seed", range(3))
async def test_reserve_never_oversells_under_contention(
    store: SharedConnection, connections: list[StoreConnection], seed: int
) -> None:
    sale = await StoreSale.open(store, {"red": 10})
    outcomes = await race(connections, sale, [sale.ask(f"b{n}") for n in range(200)], seed)
    assert [o.code for o in outcomes].count(C.ACCEPTED) == 10
    assert [o.code for o in outcomes].count(C.SOLD_OUT) == 190
    found = await reading(store, sale)
    assert (found.left, found.held, found.seq, found.holds) == ({"red": 0}, {"red": 10}, 10, 10)


async def test_reserve_last_unit_wanted_by_fifty_is_sold_once(
    store: SharedConnection, connections: list[StoreConnection]
) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    outcomes = await race(connections, sale, [sale.ask(f"b{n}") for n in range(50)], 1)
    assert sorted(o.code for o in outcomes) == [C.ACCEPTED] + [C.SOLD_OUT] * 49


async def test_reserve_one_key_sent_fifty_times_is_one_order(
    store: SharedConnection, connections: list[StoreConnection]
) -> None:
    sale = await StoreSale.open(store, {"red": 100})
    outcomes = await race(connections, sale, [sale.ask("b", key="k") for _ in range(50)], 2)
    assert sorted(o.code for o in outcomes) == [C.ACCEPTED] + [C.REPLAYED] * 49
    assert len({(o.order_id, o.pay_by_ms) for o in outcomes}) == 1
    assert (await reading(store, sale)).left == {"red": 99}


async def test_reserve_one_buyer_on_all_connections_stays_within_the_limit(
    store: SharedConnection, connections: list[StoreConnection]
) -> None:
    sale = await StoreSale.open(store, {"red": 100}, limit_buyer=3)
    outcomes = await race(connections, sale, [sale.ask("b") for _ in range(60)], 3)
    assert sorted(o.code for o in outcomes) == [C.ACCEPTED] * 3 + [C.OVER_LIMIT] * 57


async def test_reserve_baskets_in_opposite_order_sell_all_and_no_more(
    store: SharedConnection, connections: list[StoreConnection]
) -> None:
    sale = await StoreSale.open(store, {"red": 15, "blue": 10})
    lines = [("red", 1), ("blue", 1)]
    asks = [sale.ask(f"b{n}", *(lines if n % 2 else lines[::-1])) for n in range(100)]
    outcomes = await race(connections, sale, asks, 4)
    assert [o.code for o in outcomes].count(C.ACCEPTED) == 10
    assert (await reading(store, sale)).left == {"red": 5, "blue": 0}
