"""The life of an order that takes its units when it is paid: allocated and sold, or too late and paid back."""

import asyncio

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import Moved, OrderDesk
from core.errors import NotAllowed
from core.ledger.pool import Pool
from core.settings import Settings
from core.wire import has_units
from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from lua.scripts import Scripts
from tests.conftest import Services
from tests.ledger.at_payment_support import (
    ORDERS,
    UNITS,
    buyer_used,
    due,
    opened,
    outcomes,
    run,
    state,
    steps,
    stock,
)
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_lifecycle import overdue, paid, states
from tests.support import SHARDS, fresh
from workers.expiry import ExpiryWorker


@pytest.fixture
def orders(ledger: Pool) -> OrderDesk:
    return OrderDesk(ledger, SHARDS)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    return await opened(desk, settings, store, ledger)


async def sell_out(orders: OrderDesk, ledger: Pool, services: Services) -> None:
    """The first five orders have all there is."""
    for order in (await ids(ledger))[:UNITS]:
        await orders.pay(paid(order), order)
    await run(ledger, services)


async def test_accepted_orders_hold_no_units(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, scripts: Scripts, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": UNITS}, order_type="reserve_at_payment", limits={"buyer": 1})
    buyers = [fresh("buyer") for _ in range(ORDERS)]
    assert {o.code for o in await sale.buy(store, buyers)} == {ReserveCode.ACCEPTED}
    for in_flight in (ORDERS, 0):  # before the drain, and after it
        report = await balanced(auditor, sale)
        assert (report.in_flight, report.unsold, report.skus[0].in_flight) == (in_flight, UNITS, 0)
        assert await stock(scripts, sale) == (UNITS, 0, 0)
        if in_flight:
            await drain(store, make_worker(settings, ledger))
    assert {o.code for o in await sale.buy(store, buyers[:3])} == {ReserveCode.OVER_LIMIT}


async def test_order_of_goods_has_units_all_along(desk: CampaignDesk, store: SharedConnection) -> None:
    """Control of the mark: it is of this order type alone."""
    sale = await Sale.open(desk, {"red": UNITS})
    await sale.accept(store, 1)
    [flat] = await store.exchange([("HGETALL", sale.parts[0].keys.holds)])
    assert has_units(flat[1])
    [mark] = await store.exchange([("HGET", sale.parts[0].keys.meta, "at_payment")])
    assert mark is None


async def test_order_type_survives_a_change_of_the_campaign(
    sale: Sale, desk: CampaignDesk, store: SharedConnection, scripts: Scripts
) -> None:
    await desk.pause(sale.campaign)
    await desk.open(sale.campaign)
    await sale.accept(store, 3)
    assert await stock(scripts, sale) == (UNITS, 0, 0)


async def test_paid_order_is_allocated_then_settled(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor
) -> None:
    order = (await ids(ledger))[0]
    payment = paid(order)
    assert await orders.pay(payment, order) == Moved("allocating", 2, True)
    await balanced(auditor, sale)
    assert await stock(scripts, sale) == (UNITS, 0, 0)
    assert await run(ledger, services) == 2
    assert (await state(ledger, order), await stock(scripts, sale)) == ("paid", (UNITS - 1, 0, 1))
    assert await outcomes(ledger, order) == {"allocate": "allocated", "settle": "settled"}
    assert await orders.pay(payment, order) == Moved("paid", 3, False)  # the callback again
    topics = await ledger.fetch("SELECT topic FROM outbox WHERE order_id = $1 AND version = 3", UUID(order))
    assert {t["topic"] for t in topics} == {"warehouse", "notify", "webhook"}
    event = await ledger.fetchrow("SELECT * FROM order_events WHERE order_id = $1 AND version = 3", UUID(order))
    assert event is not None
    assert (event["from_state"], event["actor"], event["reason"]) == ("allocating", "system", "allocated")
    report = await balanced(auditor, sale)
    assert (report.skus[0].left, report.skus[0].sold) == (UNITS - 1, 1)


async def test_order_paid_when_all_is_gone_is_paid_back_and_its_limit_with_it(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection,
) -> None:  # fmt: skip
    await sell_out(orders, ledger, services)
    order = (await ids(ledger))[UNITS]
    await orders.pay(paid(order), order)
    assert await buyer_used(ledger, store, sale, order) == b"1"
    await balanced(auditor, sale)
    assert await run(ledger, services) == 2
    assert await state(ledger, order) == "refund_pending"
    assert await outcomes(ledger, order) == {"allocate": "too_late", "release": "released"}
    assert await buyer_used(ledger, store, sale, order) is None
    assert await stock(scripts, sale) == (0, 0, UNITS)
    await balanced(auditor, sale)
    refund = await ledger.fetchrow("SELECT refund_no, amount, reason FROM refunds WHERE order_id = $1", UUID(order))
    assert refund is not None
    assert tuple(refund) == ("ref_3", 100, "sold_out_at_payment")
    done = paid(order, "ref_3", status="refunded")
    assert (await orders.pay(done, order)).state == "refunded"
    assert not (await orders.pay(done, order)).moved
    assert await run(ledger, services) == 0
    await balanced(auditor, sale)


@pytest.mark.parametrize("end", ["cancel", "expire"])
async def test_unpaid_order_that_ends_gives_back_its_limit_and_money_that_comes_later_goes_back(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection, end: str,
) -> None:  # fmt: skip
    order = (await ids(ledger))[0]
    if end == "cancel":
        await orders.act(order, "cancel", "buyer", "channel:app")
    else:
        await overdue(ledger)
        assert await ExpiryWorker(ledger, range(SHARDS)).step() == ORDERS
    await balanced(auditor, sale)
    await run(ledger, services)
    assert await outcomes(ledger, order) == {"release": "released"}
    assert await buyer_used(ledger, store, sale, order) is None
    assert await stock(scripts, sale) == (UNITS, 0, 0)
    assert (await orders.pay(paid(order), order)).state == "refund_pending"
    assert await run(ledger, services) == 0  # nothing was asked of the store
    assert await stock(scripts, sale) == (UNITS, 0, 0)
    assert await ledger.fetchval("SELECT amount FROM refunds WHERE order_id = $1", UUID(order)) == 100
    await balanced(auditor, sale)


async def test_order_cancelled_after_it_was_sold_puts_its_unit_on_sale_again(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection,
) -> None:  # fmt: skip
    await sell_out(orders, ledger, services)
    order, waiting = (await ids(ledger))[0], (await ids(ledger))[UNITS]
    await orders.act(order, "cancel", "operator", "operator")
    await balanced(auditor, sale)
    await orders.pay(paid(waiting), waiting)
    await run(ledger, services)  # what comes back can be taken in the same round
    assert (await state(ledger, waiting), await stock(scripts, sale)) == ("paid", (0, 0, UNITS + 1))
    assert await buyer_used(ledger, store, sale, order) is None
    report = await balanced(auditor, sale)
    assert report.skus[0].allocation == UNITS + 1


async def test_order_that_is_being_allocated_cannot_be_cancelled(sale: Sale, orders: OrderDesk, ledger: Pool) -> None:
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    with pytest.raises(NotAllowed) as refused:
        await orders.act(order, "cancel", "buyer", "channel:app")
    assert (refused.value.state, refused.value.allowed) == ("allocating", [])


async def test_order_paid_twice_and_too_late_gets_all_its_money_back(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services
) -> None:
    await sell_out(orders, ledger, services)
    order = (await ids(ledger))[UNITS]
    await orders.pay(paid(order), order)
    assert (await orders.pay(paid(order), order)).state == "allocating"
    await run(ledger, services)
    assert await steps(ledger, order) == ["accept", "pay", "pay_again", "too_late"]
    rows = await ledger.fetch("SELECT refund_no, amount FROM refunds WHERE order_id = $1 ORDER BY 1", UUID(order))
    assert [tuple(r) for r in rows] == [("ref_3", 100), ("ref_4", 100)]


async def test_last_unit_goes_to_the_order_that_was_paid_first(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services
) -> None:
    payers = (await ids(ledger))[::-1]
    for n, order in enumerate(payers):
        await orders.pay(paid(order), order)
        wait = "UPDATE outbox SET at = now() - make_interval(secs => $2) WHERE order_id = $1 AND topic = 'allocate'"
        await ledger.execute(wait, UUID(order), ORDERS - n)
    await run(ledger, services)
    assert [await state(ledger, order) for order in payers[:UNITS]] == ["paid"] * UNITS
    assert await states(ledger) == {"paid": UNITS, "refund_pending": ORDERS - UNITS}


async def test_allocation_waits_for_a_store_that_does_not_hold_the_campaign(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, store: SharedConnection
) -> None:
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    meta = sale.parts[0].keys.meta
    await store.exchange([("HSET", meta, "epoch", "9")])
    assert await run(ledger, services) == 0
    assert await state(ledger, order) == "allocating"
    assert "epoch 1" in await ledger.fetchval("SELECT error FROM outbox WHERE topic = 'allocate'")
    await store.exchange([("HSET", meta, "epoch", "1")])
    await due(ledger)
    assert await run(ledger, services) == 2
    assert (await state(ledger, order), await stock(scripts, sale)) == ("paid", (UNITS - 1, 0, 1))


async def test_paid_order_whose_hold_the_store_lost_is_paid_back(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, store: SharedConnection
) -> None:
    """Nothing else would ever move it on."""
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    await store.exchange([("HDEL", sale.parts[0].keys.holds, order)])
    await run(ledger, services)
    assert (await state(ledger, order), await stock(scripts, sale)) == ("refund_pending", (UNITS, 0, 0))
    assert await outcomes(ledger, order) == {"allocate": "nothing", "release": "nothing"}


async def test_audit_is_right_at_every_moment_of_payments_and_ends(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, auditor: Auditor, store: SharedConnection
) -> None:
    """Payments, cancels, expiries, returns and two relays go on while audit follows audit."""
    done = asyncio.Event()

    async def live() -> None:
        for n, order in enumerate(await ids(ledger)):
            if n % 5 == 4:
                await orders.act(order, "cancel", "buyer", "channel:app")
            else:
                await orders.pay(paid(order), order)
            await asyncio.gather(run(ledger, services), run(ledger, services))
            if n % 5 == 1 and await state(ledger, order) == "paid":
                await orders.act(order, "cancel", "operator", "operator")
            await sale.buy(store, [fresh("buyer")])
        await overdue(ledger)
        await ExpiryWorker(ledger, range(SHARDS)).step()
        await run(ledger, services)
        done.set()

    task, rounds = asyncio.create_task(live()), 0
    while not done.is_set():
        await balanced(auditor, sale)
        rounds += 1
    await task
    assert rounds > 10
    last = await balanced(auditor, sale)
    assert (last.unsold, last.skus[0].held) == (0, 0)
