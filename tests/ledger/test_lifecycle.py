"""Orders on their way: paid, cancelled, expired, and their stock sold or back. Real store, real ledger, real races."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import Moved, OrderDesk, Owner
from core.errors import Conflicting, NotAllowed, OrderUnknown
from core.ids import shard_of, text_of
from core.ledger.pool import Pool
from core.ledger.queries import query
from core.model import AuditReport, Payment
from core.settings import Settings
from lua.connection import SharedConnection, StoreConnection
from lua.scripts import Scripts
from tests.conftest import Services
from tests.ledger.support import Sale, drain, make_worker
from tests.support import SHARDS
from workers.expiry import ExpiryWorker
from workers.relay import RelayWorker, backoff_s

ORDERS = 20
_numbers = itertools.count(1)


@pytest.fixture
def orders(ledger: Pool) -> OrderDesk:
    return OrderDesk(ledger, SHARDS)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """20 orders of one red each, of 25, in the ledger."""
    found = await Sale.open(desk, {"red": 25}, limits={"buyer": 1})
    await found.accept(store, ORDERS, ("red", 1))
    await drain(store, make_worker(settings, ledger))
    return found


async def ids(ledger: Pool) -> list[bytes]:
    return [r["order_id"].bytes for r in await ledger.fetch("SELECT order_id FROM orders ORDER BY order_id")]


def paid(order: bytes, number: str = "", **fields: Any) -> Payment:
    values: dict[str, Any] = {
        "payment_no": number or f"p-{next(_numbers)}", "order_id": text_of(order), "amount": 100, "currency": "CNY",
        "status": "paid", "paid_at": datetime.now(UTC),
    }  # fmt: skip
    return Payment(**values | fields)


async def overdue(ledger: Pool) -> None:
    """Every order's time to pay is over."""
    await ledger.execute("UPDATE orders SET pay_by = now() - interval '1 second'")


async def relay(ledger: Pool, services: Services) -> int:
    """All of the store's messages are delivered; how many there were."""
    worker = RelayWorker(ledger, StoreConnection(services.store_url, "fsync", 10.0, "relay"), range(SHARDS))
    while await worker.step():
        pass
    await worker.run_down()
    return worker.delivered


async def states(ledger: Pool) -> dict[str, int]:
    return {r[0]: r[1] for r in await ledger.fetch("SELECT state, count(*) FROM orders GROUP BY state")}


async def stock(scripts: Scripts, sale: Sale) -> tuple[int, int, int]:
    """Left, held, sold."""
    [found] = await scripts.audit([sale.parts[0].keys])
    return found.left["red"], found.held["red"], found.sold["red"]


async def report(auditor: Auditor, sale: Sale) -> AuditReport:
    found = await auditor.audit(sale.campaign)
    assert found.ok, found.findings
    return found


async def test_order_paid_in_time_is_sold_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor
) -> None:
    order = (await ids(ledger))[0]
    payment = paid(order)
    assert await orders.pay(payment, order) == Moved("paid", 2, True)
    await report(auditor, sale)
    assert await relay(ledger, services) == 1
    assert await stock(scripts, sale) == (5, 19, 1)
    assert await orders.pay(payment, order) == Moved("paid", 2, False)  # the callback again
    assert await relay(ledger, services) == 0
    found = await report(auditor, sale)
    assert (found.skus[0].held, found.skus[0].sold) == (19, 1)


async def test_order_cancelled_gives_its_unit_and_its_limit_back_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor
) -> None:
    order = (await ids(ledger))[0]
    assert await orders.act(order, "cancel", "buyer", "channel:app") == Moved("cancelled", 2, True)
    await report(auditor, sale)  # the release is due: the unit is neither lost nor doubled
    assert await relay(ledger, services) == 1
    assert await stock(scripts, sale) == (6, 19, 0)
    await report(auditor, sale)
    with pytest.raises(NotAllowed) as refused:
        await orders.act(order, "cancel", "buyer", "channel:app")
    assert (refused.value.state, refused.value.allowed) == ("cancelled", [])
    assert await relay(ledger, services) == 0


async def test_orders_not_paid_in_time_expire_and_their_units_are_sold_again(
    sale: Sale, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor, store: SharedConnection
) -> None:
    worker = ExpiryWorker(ledger, range(SHARDS))
    assert await worker.step() == 0
    await overdue(ledger)
    assert await worker.step() == ORDERS
    assert await worker.step() == 0
    assert await states(ledger) == {"expired": ORDERS}
    await report(auditor, sale)
    await relay(ledger, services)
    assert await stock(scripts, sale) == (25, 0, 0)
    await sale.accept(store, 25, ("red", 1))
    found = await report(auditor, sale)
    assert (found.unsold, found.in_flight) == (0, 25)


async def test_expired_orders_are_of_exactly_one_worker_each(sale: Sale, ledger: Pool) -> None:
    await overdue(ledger)
    workers = [ExpiryWorker(ledger, range(SHARDS)) for _ in range(4)]
    expired = await asyncio.gather(*(w.step() for w in workers))
    assert sum(expired) == ORDERS
    events = await ledger.fetch("SELECT order_id FROM order_events WHERE action = 'expire'")
    assert len(events) == len({e["order_id"] for e in events}) == ORDERS


@pytest.mark.parametrize("end", ["cancel", "expire"])
async def test_money_that_comes_after_the_end_goes_back_and_both_are_on_record(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor, end: str
) -> None:
    order = (await ids(ledger))[0]
    if end == "cancel":
        await orders.act(order, "cancel", "operator", "operator")
    else:
        await overdue(ledger)
        await ExpiryWorker(ledger, range(SHARDS)).step()
    assert (await orders.pay(paid(order), order)).state == "refund_pending"
    await relay(ledger, services)
    assert (await stock(scripts, sale))[2] == 0  # nothing was sold by it
    await report(auditor, sale)
    moves = [s for s in await orders.trace(order) if s.kind == "move"]
    assert [s.what for s in moves] == ["accept", end, "pay"]
    assert (
        await ledger.fetchval("SELECT count(*) FROM outbox WHERE order_id = $1 AND topic = 'refund'", UUID(order)) == 1
    )


async def test_second_payment_of_a_paid_order_goes_back_and_the_order_stays_paid(
    sale: Sale, orders: OrderDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    assert (await orders.pay(paid(order), order)).state == "paid"
    refunds = "SELECT count(*) FROM outbox WHERE order_id = $1 AND topic = 'refund'"
    assert await ledger.fetchval(refunds, UUID(order)) == 1


async def test_failed_payment_changes_nothing_and_a_later_one_still_pays(
    sale: Sale, orders: OrderDesk, ledger: Pool
) -> None:
    order = (await ids(ledger))[0]
    assert (await orders.pay(paid(order, status="failed"), order)).state == "accepted"
    assert (await orders.pay(paid(order), order)).state == "paid"


@pytest.mark.parametrize("wrong", [{"amount": 99}, {"amount": 101}, {"currency": "EUR"}])
async def test_payment_of_another_amount_is_refused_and_leaves_no_record(
    sale: Sale, orders: OrderDesk, ledger: Pool, wrong: dict[str, Any]
) -> None:
    order = (await ids(ledger))[0]
    with pytest.raises(Conflicting):
        await orders.pay(paid(order, **wrong), order)
    assert await ledger.fetchval("SELECT count(*) FROM payments") == 0
    assert (await states(ledger)) == {"accepted": ORDERS}


async def test_payment_number_used_for_another_order_is_refused(sale: Sale, orders: OrderDesk, ledger: Pool) -> None:
    one, other = (await ids(ledger))[:2]
    await orders.pay(paid(one, "p-same"), one)
    with pytest.raises(Conflicting, match="p-same"):
        await orders.pay(paid(other, "p-same"), other)
    with pytest.raises(Conflicting, match="p-same"):
        await orders.pay(paid(one, "p-same", status="failed"), one)
    assert (await states(ledger)) == {"accepted": ORDERS - 1, "paid": 1}


async def test_order_of_another_channel_is_unknown(sale: Sale, orders: OrderDesk, ledger: Pool) -> None:
    order = (await ids(ledger))[0]
    with pytest.raises(OrderUnknown):
        await orders.act(order, "cancel", "buyer", "channel:web", Owner("web"))
    with pytest.raises(OrderUnknown):
        await orders.trace(order, Owner("web"))


async def test_same_callback_from_many_at_once_pays_once(sale: Sale, orders: OrderDesk, ledger: Pool) -> None:
    order = (await ids(ledger))[0]
    payment = paid(order)
    results = await asyncio.gather(*(orders.pay(payment, order) for _ in range(20)))
    assert sum(r.moved for r in results) == 1
    assert {r.state for r in results} <= {"paid", "accepted"}
    assert await ledger.fetchval("SELECT count(*) FROM order_events WHERE action = 'pay'") == 1


RACES = list(itertools.combinations(["pay", "cancel", "expire"], 2))


async def race(ledger: Pool, orders: OrderDesk, order: bytes, pair: tuple[str, str]) -> None:
    async def pay() -> None:
        await orders.pay(paid(order), order)

    async def cancel() -> None:
        try:
            await orders.act(order, "cancel", "buyer", "channel:app")
        except NotAllowed:
            return

    async def expire() -> None:
        await ExpiryWorker(ledger, [shard_of(order)]).step()

    doers: dict[str, Callable[[], Awaitable[None]]] = {"pay": pay, "cancel": cancel, "expire": expire}
    await asyncio.gather(*(doers[name]() for name in pair for _ in range(2)))


@pytest.mark.parametrize("pair", RACES)
async def test_race_has_one_winner_and_stock_comes_back_or_is_sold_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    pair: tuple[str, str],
) -> None:  # fmt: skip
    await overdue(ledger)
    for order in await ids(ledger):
        await race(ledger, orders, order, pair)
    await relay(ledger, services)
    left, held, sold = await stock(scripts, sale)
    # Who pays first may still be cancelled afterwards: sold is what was paid out of `accepted`.
    in_time = await ledger.fetchval(
        "SELECT count(*) FROM order_events WHERE from_state = 'accepted' AND action = 'pay'"
    )
    again = await ledger.fetchval("SELECT count(*) FROM deliveries WHERE topic = 'restock' AND outcome = 'returned'")
    assert (left + held + sold, held, sold) == (25 + again, 0, in_time)
    ended = await ledger.fetch(
        "SELECT order_id, count(*) FROM deliveries WHERE topic IN ('release', 'settle') AND outcome <> 'nothing' "
        "GROUP BY order_id"
    )
    assert len(ended) == ORDERS
    assert {r["count"] for r in ended} == {1}
    await report(auditor, sale)


async def test_control_without_the_expected_state_a_race_has_two_winners(
    sale: Sale, ledger: Pool, services: Services, scripts: Scripts
) -> None:
    """Control: moves that do not ask for the state they leave. If it fails, the race tests prove nothing."""
    blind = query("move_orders").replace("AND state = $3", "AND $3 = $3").replace("AND o.state = $3", "")

    async def move(order: bytes, to: str, topic: str) -> None:
        await ledger.fetch(blind, shard_of(order), [UUID(order)], "accepted", to, "x", "x", "x", [topic], None, None)

    for order in await ids(ledger):
        await asyncio.gather(move(order, "paid", "settle"), move(order, "cancelled", "release"))
    both = await ledger.fetchval(
        "SELECT count(*) FROM (SELECT order_id FROM outbox WHERE topic IN ('release', 'settle') "
        "GROUP BY order_id HAVING count(*) = 2) AS twice"
    )
    assert both == ORDERS


async def test_relay_puts_off_what_the_store_cannot_take_and_delivers_it_later(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, store: SharedConnection
) -> None:
    order = (await ids(ledger))[0]
    await orders.act(order, "cancel", "buyer", "channel:app")
    [epoch] = await store.exchange([("HGET", sale.parts[0].keys.meta, "epoch")])
    await store.exchange([("HSET", sale.parts[0].keys.meta, "epoch", "9")])
    assert await relay(ledger, services) == 0
    row = await ledger.fetchrow("SELECT attempts, error, due_at > now() AS later FROM outbox WHERE topic = 'release'")
    assert row is not None
    assert (row["attempts"], row["later"]) == (1, True)
    assert "epoch 1" in row["error"]
    await store.exchange([("HSET", sale.parts[0].keys.meta, "epoch", epoch)])
    await ledger.execute("UPDATE outbox SET due_at = now()")
    assert await relay(ledger, services) == 1
    assert await stock(scripts, sale) == (6, 19, 0)


async def test_message_of_a_relay_that_died_is_taken_over_after_its_lease(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts
) -> None:
    """Dead between the claim and the store, and dead between the store and the record: once either way."""
    one, other = (await ids(ledger))[:2]
    for order in (one, other):
        await orders.act(order, "cancel", "buyer", "channel:app")
    shard = shard_of(one)
    claimed = await ledger.fetch(query("claim_messages"), shard, "release", 10, 30.0)
    assert len(claimed) == 2
    await scripts.release(sale.parts[0].keys, 1, [one])  # done, and nobody wrote it down
    assert await relay(ledger, services) == 0  # the lease holds
    await ledger.execute("UPDATE outbox SET due_at = now()")  # the lease has passed
    assert await relay(ledger, services) == 2
    assert await stock(scripts, sale) == (7, 18, 0)


def test_backoff_doubles_within_its_bounds() -> None:
    waits = [backoff_s(n, 1.0) for n in range(1, 60)]
    assert waits[:3] == [0.2, 0.4, 0.8]
    assert max(waits) == 30.0
    assert backoff_s(1, 0.0) == 0.1


async def test_audit_is_right_at_every_moment_of_expiry_and_release(
    sale: Sale, ledger: Pool, services: Services, auditor: Auditor, desk: CampaignDesk
) -> None:
    """Expiry and relay run in small bites while the audit looks all the time: never a false alarm."""
    done = asyncio.Event()

    async def end_all() -> None:
        for order in await ids(ledger):
            await ledger.execute(
                "UPDATE orders SET pay_by = now() - interval '1 second' WHERE order_id = $1", UUID(order)
            )
            await ExpiryWorker(ledger, range(SHARDS)).step()
            await relay(ledger, services)
        done.set()

    task = asyncio.create_task(end_all())
    rounds = 0
    while not done.is_set():
        await report(auditor, sale)
        rounds += 1
    await task
    assert rounds > 3
    assert (await report(auditor, sale)).unsold == 25
