"""Orders completed by time: once, with what belongs to it, and never while a refund is under review."""

import asyncio
from collections.abc import Iterable

import asyncpg
import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.campaigns import CampaignDesk
from core.desk.moves import Owner
from core.desk.orders import OrderDesk
from core.desk.refunds import RefundDesk
from core.errors import NotAllowed
from core.flows import FLOWS
from core.ids import shard_of
from core.ledger.pool import Pool
from core.ledger.queries import query
from core.model import RefundRequest
from core.settings import Settings
from lua.connection import SharedConnection
from tests.ledger.support import Sale, drain, make_worker, waiting_for_lock
from tests.ledger.test_lifecycle import ids, paid, states
from tests.ledger.test_plans import filled, indexes, plan, whole_scans
from tests.support import SHARDS
from workers.expiry import BATCH, ExpiryWorker, completion_step, expiry_step

__all__ = ["filled"]

ORDERS = 12
STEP = completion_step()
PARAMS = STEP.to, STEP.action, "system", STEP.reason, list(STEP.messages)


@pytest.fixture
def orders(ledger: Pool) -> OrderDesk:
    return OrderDesk(ledger, SHARDS)


@pytest.fixture
def refunds(ledger: Pool) -> RefundDesk:
    return RefundDesk(ledger, SHARDS)


@pytest.fixture
async def sale(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, orders: OrderDesk
) -> Sale:
    """Twelve orders, received, with an after-sales window of an hour."""
    found = await Sale.open(desk, {"red": 50}, after_sales_s=3_600)
    await found.accept(store, ORDERS, ("red", 1))
    await drain(store, make_worker(settings, ledger))

    async def carry(order: bytes) -> None:
        await orders.pay(paid(order), order)
        for action in ("pick", "ship", "receive"):
            await orders.act(order, action, "warehouse", "warehouse")

    await asyncio.gather(*(carry(order) for order in await ids(ledger)))
    return found


async def window_over(ledger: Pool, orders: Iterable[bytes] | None = None) -> None:
    """The after-sales window of these orders (None: of all) is over."""
    which = None if orders is None else [UUID(o) for o in orders]
    await ledger.execute(
        "UPDATE orders SET timer_at = now() - interval '1 second' WHERE $1::uuid[] IS NULL OR order_id = ANY ($1)",
        which,
    )


async def test_shipped_orders_are_received_by_time_and_completed_after_their_window(
    sale: Sale, ledger: Pool, orders: OrderDesk
) -> None:
    first, *others = await ids(ledger)
    await ledger.execute("UPDATE orders SET state = 'paid', timer_at = NULL")
    for order in (first, *others):
        for action in ("pick", "ship"):
            await orders.act(order, action, "warehouse", "warehouse")
    query_s = "SELECT round(extract(epoch FROM timer_at - now())) FROM orders WHERE order_id = $1"
    assert await ledger.fetchval(query_s, UUID(first)) == 15 * 86_400
    worker = ExpiryWorker(ledger, range(SHARDS))
    assert await worker.step() == 0
    await window_over(ledger)
    await orders.act(first, "receive", "buyer", "channel:app")
    both = ExpiryWorker(ledger, range(SHARDS))
    await asyncio.gather(worker.step(), both.step())
    assert worker.received + both.received == ORDERS - 1
    assert await states(ledger) == {"received": ORDERS}
    events = await ledger.fetch("SELECT actor, reason FROM order_events WHERE action = 'receive_by_time'")
    assert [tuple(r) for r in events] == [("system", "receipt_not_confirmed")] * (ORDERS - 1)
    assert await ledger.fetchval(query_s, UUID(others[0])) == 3_600
    await orders.act(others[0], "return", "buyer", "channel:app")
    assert await ledger.fetchval(query_s, UUID(others[0])) is None  # time does not move it on
    await orders.act(others[0], "reject_return", "operator", "operator")
    assert await ledger.fetchval(query_s, UUID(others[0])) == 3_600
    await window_over(ledger, [first])
    assert await worker.step() == 1
    assert await ledger.fetchval(query_s, UUID(first)) is None


async def request(refunds: RefundDesk, order: bytes) -> str:
    """A refund is under review; its number."""
    return (await refunds.request(order, RefundRequest(amount=10), "buyer", "channel:app", Owner("app"))).refund_no


async def completions(ledger: Pool) -> list[UUID]:
    return [r[0] for r in await ledger.fetch("SELECT order_id FROM order_events WHERE action = 'complete'")]


async def completed_under_review(ledger: Pool) -> int:
    return int(
        await ledger.fetchval(
            "SELECT count(*) FROM orders o JOIN refunds r USING (shard, order_id) "
            "WHERE o.state = 'completed' AND r.state = 'requested'"
        )
    )


def worker(ledger: Pool) -> ExpiryWorker:
    return ExpiryWorker(ledger, range(SHARDS))


def test_steps_of_the_worker_are_those_of_every_flow() -> None:
    assert (expiry_step().state, expiry_step().to) == ("accepted", "expired")
    assert all(flow.step("accepted", "expire") == expiry_step() for flow in FLOWS.values())
    with_window = [flow for flow in FLOWS.values() if "received" in flow.states]
    assert {f.order_type for f in with_window} == {"goods", "reserve_at_payment"}
    assert all(flow.step("received", "complete") == STEP for flow in with_window)


async def test_order_is_completed_when_its_window_is_over_and_not_before(
    sale: Sale, orders: OrderDesk, ledger: Pool
) -> None:
    one, other, *_ = await ids(ledger)
    only = worker(ledger)
    assert await only.step() == 0
    await window_over(ledger, [one, other])
    await ledger.execute("DELETE FROM outbox")
    assert await only.step() == 2
    assert await only.step() == 0
    assert (only.completed, only.expired) == (2, 0)
    assert 1.0 <= only.late_s < 10.0
    assert await states(ledger) == {"completed": 2, "received": ORDERS - 2}
    last = (await orders.trace(one))[-1]
    assert (last.what, last.actor, last.reason) == ("complete", "system", "after_sales_over")
    assert (last.from_state, last.to_state, last.version) == ("received", "completed", 6)
    messages = await ledger.fetch("SELECT order_id, version, topic FROM outbox ORDER BY order_id")
    assert [tuple(m) for m in messages] == [(UUID(o), 6, "webhook") for o in sorted([one, other])]


async def test_window_is_the_campaigns_and_begins_with_the_receipt(sale: Sale, ledger: Pool) -> None:
    waits = await ledger.fetch(
        "SELECT extract(epoch FROM timer_at - e.at)::float8 AS s FROM orders JOIN order_events e "
        "USING (shard, order_id) WHERE e.action = 'receive'"
    )
    assert len(waits) == ORDERS
    assert all(3_599.0 < w["s"] < 3_601.0 for w in waits)


async def test_orders_are_completed_by_exactly_one_of_several_workers(sale: Sale, ledger: Pool) -> None:
    await window_over(ledger)
    workers = [worker(ledger) for _ in range(4)]
    assert sum(await asyncio.gather(*(w.step() for w in workers))) == ORDERS
    done = await completions(ledger)
    assert len(done) == len(set(done)) == ORDERS


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_order_under_review_is_completed_after_the_decision(
    sale: Sale, refunds: RefundDesk, ledger: Pool, decision: str
) -> None:
    order = (await ids(ledger))[0]
    number = await request(refunds, order)
    await window_over(ledger, [order])
    only = worker(ledger)
    assert await only.step() == 0
    await (refunds.approve if decision == "approve" else refunds.reject)(order, number, "operator")
    assert await only.step() == 1
    assert await states(ledger) == {"completed": 1, "received": ORDERS - 1}


async def test_orders_under_review_do_not_hold_up_those_behind_them(
    sale: Sale, refunds: RefundDesk, ledger: Pool
) -> None:
    """More of them than fit a batch, all due longer than the one order that is not under review."""
    order = (await ids(ledger))[0]
    await request(refunds, order)
    await ledger.execute(
        """
        INSERT INTO orders
        SELECT shard, ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, campaign, epoch, 1000 + n,
            channel, 'many' || n, buyer_id, '', '', 'received', 1, 100, 'CNY', now(), now(), NULL,
            now() - interval '1 hour'
        FROM orders, generate_series(1, $2::int) n WHERE order_id = $1""",
        UUID(order), 4 * BATCH,
    )  # fmt: skip
    await ledger.execute(
        "INSERT INTO refunds (shard, order_id, refund_no, amount, currency, state) "
        "SELECT shard, order_id, 'req_1', 1, 'CNY', 'requested' FROM orders WHERE request_key LIKE 'many%'"
    )
    await window_over(ledger, [order, (await ids(ledger))[-1]])
    assert await worker(ledger).step() == 1
    assert await completed_under_review(ledger) == 0


async def test_completion_uses_the_index_of_what_is_due_and_the_key_of_refunds(filled: Pool) -> None:
    await filled.execute("UPDATE orders SET state = 'received', timer_at = now() WHERE seq % 8 < 4")
    await filled.execute(
        "INSERT INTO refunds (shard, order_id, refund_no, amount, currency, state) "
        "SELECT shard, order_id, 'req_1', 1, 'CNY', 'requested' FROM orders WHERE seq % 3 = 0"
    )
    await filled.execute("VACUUM ANALYZE orders, refunds")
    nodes = await plan(filled, "complete_orders", 3, BATCH, *PARAMS)
    assert {"orders_timer", "refunds_pkey"} <= indexes(nodes)
    assert whole_scans(nodes) == []
    nodes = await plan(filled, "due_shards", list(range(SHARDS)))
    assert {"orders_due", "orders_timer", "refunds_pkey"} <= indexes(nodes)
    assert whole_scans(nodes) == []


async def test_move_of_a_batch_finds_its_orders_by_key(filled: Pool) -> None:
    """All orders of the table are due: a planner who joins them reads all of them for each batch."""
    await filled.execute("UPDATE orders SET state = 'received', timer_at = now() WHERE seq % 16 < 8")
    await filled.execute("VACUUM ANALYZE orders")
    for name in ("expire_orders", "complete_orders"):
        nodes = await plan(filled, name, 3, BATCH, *PARAMS)
        assert "orders_pkey" in indexes(nodes)
        assert "orders" not in whole_scans(nodes)


PAUSE = """
CREATE FUNCTION pause() RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN true; END $$
"""


async def completed_across_a_request(dsn: str, ledger: Pool, refunds: RefundDesk, order: bytes, text: str) -> int:
    """What the statement completes when a refund is asked for after it has begun and before it locks the order."""
    await window_over(ledger, [order])
    await ledger.execute(PAUSE)
    pausing = text.replace("o.timer_at <= now()", "o.timer_at <= now() AND pause()")
    assert pausing.count("pause()") == 1
    admin, other = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        await admin.execute("SELECT pg_advisory_lock(42)")
        task = asyncio.create_task(ledger.fetchval(pausing, shard_of(order), BATCH, *PARAMS))
        await waiting_for_lock(other, "test%")  # its snapshot is taken
        await request(refunds, order)
        await admin.execute("SELECT pg_advisory_unlock(42)")
        return int(await task)
    finally:
        await admin.close()
        await other.close()


async def test_control_completion_without_the_version_passes_over_a_request_of_the_same_instant(
    sale: Sale, refunds: RefundDesk, ledger: Pool, dsn: str
) -> None:
    """Control: shows the gap between snapshot and lock. If it fails, the next test proves nothing."""
    guard = "AND o.version = d.version "
    text = query("complete_orders")
    assert text.count(guard) == 1
    order = (await ids(ledger))[0]
    assert await completed_across_a_request(dsn, ledger, refunds, order, text.replace(guard, "")) == 1
    assert await completed_under_review(ledger) == 1


async def test_request_between_snapshot_and_lock_keeps_the_order_from_being_completed(
    sale: Sale, refunds: RefundDesk, ledger: Pool, dsn: str
) -> None:
    order = (await ids(ledger))[0]
    assert await completed_across_a_request(dsn, ledger, refunds, order, query("complete_orders")) == 0
    assert await worker(ledger).step() == 0
    assert await completed_under_review(ledger) == 0


async def test_race_of_completion_and_request_has_one_winner_each(
    sale: Sale, refunds: RefundDesk, ledger: Pool
) -> None:
    """Either the order is completed and the request refused, or the request stands and the order waits."""
    refused = 0
    for order in await ids(ledger):
        await window_over(ledger, [order])

        asked, *steps = await asyncio.gather(
            request(refunds, order), worker(ledger).step(), worker(ledger).step(), return_exceptions=True
        )
        assert all(isinstance(s, int) for s in steps)
        if not isinstance(asked, str):
            assert isinstance(asked, NotAllowed)
            assert asked.state == "completed"
            refused += 1
    assert await completed_under_review(ledger) == 0
    assert len(await completions(ledger)) == refused
    assert await ledger.fetchval("SELECT count(*) FROM refunds WHERE state = 'requested'") == ORDERS - refused


async def test_order_that_somebody_else_holds_is_passed_over_and_completed_later(sale: Sale, ledger: Pool) -> None:
    order = (await ids(ledger))[0]
    await window_over(ledger, [order])
    async with ledger.acquire() as connection, connection.transaction():
        await connection.fetchrow(query("lock_order"), shard_of(order), UUID(order))
        assert await worker(ledger).step() == 0
    assert await worker(ledger).step() == 1
