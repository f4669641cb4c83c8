"""Units taken at payment, in races and wherever a relay dies: never more than there are, and every order at one end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.errors import StoreUnavailable
from core.ledger.pool import Pool
from core.ledger.queries import query
from core.model import Restock
from core.settings import Settings
from core.wire import NO_UNITS, TAIL_BYTES
from lua.connection import SharedConnection
from lua.keys import SaleKeys
from lua.scripts import AllocateCode, Scripts
from tests.conftest import Services
from tests.ledger.at_payment_support import (
    ORDERS,
    UNITS,
    Broken,
    buyer_used,
    due,
    opened,
    outcomes,
    relay_on,
    run,
    state,
    steps,
    stock,
)
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale
from tests.ledger.test_lifecycle import paid, states
from tests.ledger.test_relay_restock import Died
from tests.support import SHARDS

RELAYS = 4
Allocate = Callable[[Scripts, SaleKeys, int, list[bytes]], Any]


@pytest.fixture
def orders(ledger: Pool) -> OrderDesk:
    return OrderDesk(ledger, SHARDS)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    return await opened(desk, settings, store, ledger)


async def withdraw(desk: CampaignDesk, sale: Sale, units: int) -> None:
    """So many units are no longer for sale."""
    await desk.restock(sale.campaign, Restock(f"w{units}", "red", -units))


async def race(
    orders: OrderDesk, ledger: Pool, services: Services, monkeypatch: pytest.MonkeyPatch, allocate: Allocate
) -> int:
    """All have paid, four relays have five of them each, and ask at the same time. The orders that get a unit."""
    relays = [relay_on(ledger, services) for _ in range(RELAYS)]
    start, late = asyncio.Barrier(RELAYS), set[int]()

    async def together(scripts: Scripts, keys: SaleKeys, epoch: int, order_ids: list[bytes]) -> Any:
        if id(scripts) not in late:
            late.add(id(scripts))
            await start.wait()
        return await allocate(scripts, keys, epoch, order_ids)

    monkeypatch.setattr("workers.store_topics.BATCH", ORDERS // RELAYS)
    monkeypatch.setattr(Scripts, "allocate", together)
    await asyncio.gather(*(orders.pay(paid(order), order) for order in await ids(ledger)))
    await asyncio.wait_for(asyncio.gather(*(relay.step() for relay in relays)), 30)
    await asyncio.gather(*(relay.run_down() for relay in relays))
    return (await states(ledger)).get("paid", 0)


def look_then_take() -> Allocate:
    """What many shops do when the money has come. All relays have looked before one of them takes."""
    looked, met = asyncio.Barrier(RELAYS), set[int]()

    async def allocate(scripts: Scripts, keys: SaleKeys, _epoch: int, order_ids: list[bytes]) -> list[AllocateCode]:
        meets = id(scripts) not in met
        met.add(id(scripts))
        return [await one(scripts, keys, order, meets) for order in order_ids]

    async def one(scripts: Scripts, keys: SaleKeys, order: bytes, meets: bool) -> AllocateCode:
        left, hold = await scripts.connection.exchange([("HGET", keys.stock, "red"), ("HGET", keys.holds, order)])
        if meets:
            await looked.wait()
        assert isinstance(left, bytes)
        if int(left) < 1:
            return AllocateCode.TOO_LATE
        assert isinstance(hold, bytes)
        mark = bytes([hold[-TAIL_BYTES] & ~NO_UNITS])
        await scripts.connection.exchange([
            ("HINCRBY", keys.stock, "red", -1), ("HINCRBY", keys.stock, "h:red", 1),
            ("HSET", keys.holds, order, hold[:-TAIL_BYTES] + mark + hold[1 - TAIL_BYTES :]),
        ])  # fmt: skip
        return AllocateCode.ALLOCATED

    return allocate


async def test_control_look_then_take_sells_more_than_there_is(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: if it fails, the next test proves nothing."""
    assert await race(orders, ledger, services, monkeypatch, look_then_take()) > UNITS


async def test_twenty_payers_of_five_units_get_five(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert await race(orders, ledger, services, monkeypatch, Scripts.allocate) == UNITS
    await run(ledger, services)
    assert await states(ledger) == {"paid": UNITS, "refund_pending": ORDERS - UNITS}
    assert await stock(scripts, sale) == (0, 0, UNITS)
    assert await ledger.fetchval("SELECT sum(amount) FROM refunds") == 100 * (ORDERS - UNITS)
    used = [await buyer_used(ledger, store, sale, order) for order in await ids(ledger)]
    assert used.count(b"1") == UNITS
    assert used.count(None) == ORDERS - UNITS
    await balanced(auditor, sale)


# Where the relay dies, and whether there are units: after the claim, the script, the step, the record.
POINTS = [
    (statement, when, enough)
    for enough in (True, False)
    for statement in ("claim_messages", "move_orders" if enough else "act", "finish_messages")
    for when in ("before", "after")
    if (statement, when) != ("claim_messages", "before")
]


@pytest.mark.parametrize(("statement", "when", "enough"), POINTS)
async def test_relay_that_dies_at_any_point_allocates_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    desk: CampaignDesk, statement: str, when: str, enough: bool,
) -> None:  # fmt: skip
    """What was done is done once. Two orders in one call."""
    await withdraw(desk, sale, 3 if enough else UNITS)
    pair = (await ids(ledger))[:2]
    for order in pair:
        await orders.pay(paid(order), order)
    with pytest.raises(Died):
        await run(Broken(ledger, statement, when), services)
    await balanced(auditor, sale)
    await run(ledger, services)  # its lease holds; what the steps that it made have written is delivered
    await balanced(auditor, sale)
    await due(ledger)
    await run(ledger, services)
    last = ("allocated", "paid") if enough else ("too_late", "refund_pending")
    for order in pair:
        assert await steps(ledger, order) == ["accept", "pay", last[0]]
        assert await state(ledger, order) == last[1]
        ended = {"settle": "settled"} if enough else {"release": "released"}
        assert (await outcomes(ledger, order)).items() >= ended.items()
    assert await stock(scripts, sale) == ((0, 0, 2) if enough else (0, 0, 0))
    refunds = await ledger.fetchval("SELECT count(*) FROM refunds")
    assert refunds == (0 if enough else 2)
    await balanced(auditor, sale)


@pytest.mark.parametrize("first", ["allocated", "too_late"])
async def test_two_relays_with_unlike_answers_leave_one_end(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    desk: CampaignDesk, store: SharedConnection, monkeypatch: pytest.MonkeyPatch, first: str,
) -> None:  # fmt: skip
    """One finds no units and falls asleep over its lease; they come back, and the other one takes them."""
    await withdraw(desk, sale, UNITS)
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    asked, answered = {True: asyncio.Event(), False: asyncio.Event()}, {True: asyncio.Event(), False: asyncio.Event()}
    real = Scripts.allocate

    async def held_up(self: Scripts, keys: SaleKeys, epoch: int, order_ids: list[bytes]) -> Any:
        codes = await real(self, keys, epoch, order_ids)
        assert codes is not None
        late = codes == [AllocateCode.TOO_LATE]
        asked[late].set()
        await answered[late].wait()
        return codes

    monkeypatch.setattr(Scripts, "allocate", held_up)
    sleeper = asyncio.create_task(run(ledger, services))
    await asyncio.wait_for(asked[True].wait(), 10)
    await due(ledger)
    await desk.restock(sale.campaign, Restock("more", "red", 1))
    other = asyncio.create_task(run(ledger, services))
    await asyncio.wait_for(asked[False].wait(), 10)
    assert await stock(scripts, sale) == (0, 1, 0)
    await balanced(auditor, sale)
    winner, loser = (sleeper, other) if first == "too_late" else (other, sleeper)
    answered[first == "too_late"].set()
    await winner
    await balanced(auditor, sale)
    answered[first != "too_late"].set()
    await loser
    await balanced(auditor, sale)
    assert await steps(ledger, order) == ["accept", "pay", first]
    sold = first == "allocated"
    assert await stock(scripts, sale) == ((0, 0, 1) if sold else (1, 0, 0))
    assert await buyer_used(ledger, store, sale, order) == (b"1" if sold else None)
    assert await ledger.fetchval("SELECT count(*) FROM refunds") == (0 if sold else 1)
    assert await ledger.fetchval("SELECT count(*) FROM outbox WHERE topic IN ('allocate', 'settle', 'release')") == 0


async def test_control_steps_that_ask_for_no_state_leave_two_ends(sale: Sale, orders: OrderDesk, ledger: Pool) -> None:
    """Control of the test before: the step's expected state is what keeps the second relay out."""
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    blind = query("move_orders").replace("AND state = $3", "AND $3 = $3").replace("AND o.state = $3", "")
    for to, topic in (("refund_pending", "release"), ("paid", "settle")):
        await ledger.fetch(blind, sale.shards[0], [UUID(order)], "allocating", to, "x", "x", "x", [topic], None, None)
    assert await ledger.fetchval("SELECT count(*) FROM outbox WHERE topic IN ('release', 'settle')") == 2


async def test_allocation_whose_answer_is_lost_is_made_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    real = Scripts.allocate

    async def lossy(*args: Any) -> list[AllocateCode] | None:
        await real(*args)
        raise StoreUnavailable("the store did not answer")

    with monkeypatch.context() as patched:
        patched.setattr(Scripts, "allocate", lossy)
        assert await run(ledger, services) == 0
    assert (await state(ledger, order), await stock(scripts, sale)) == ("allocating", (UNITS - 1, 1, 0))
    await balanced(auditor, sale)
    await due(ledger)
    assert await run(ledger, services) == 2
    assert (await state(ledger, order), await stock(scripts, sale)) == ("paid", (UNITS - 1, 0, 1))
    await balanced(auditor, sale)
