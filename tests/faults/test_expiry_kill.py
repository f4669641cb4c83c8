"""Expiry workers as real processes, killed at each gap of a batch: every order ends once, with its messages once."""

import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import asyncpg
import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.flows.table import Step
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from tests.faults.support import Process, Spawn, at_work, die
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, make_worker, waiting_for_lock
from tests.ledger.test_lifecycle import overdue, paid
from tests.support import SHARDS, eventually
from workers.expiry import completion_step, expiry_step

ORDERS = 10
Start = Callable[[], Awaitable[Process]]


class Due(NamedTuple):
    """Ten orders on which this step is due."""

    sale: Sale
    step: Step


@pytest.fixture
def start(spawn: Spawn, settings: Settings) -> Start:
    """Starts expiry workers."""
    return lambda: spawn("expiry", settings.with_values(ledger_timeout_s=60.0))


@pytest.fixture(params=[expiry_step(), completion_step()], ids=lambda step: step.action)
async def due(
    request: pytest.FixtureRequest, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> Due:
    found = await Sale.open(desk, {"red": 50}, after_sales_s=0)
    await found.accept(store, ORDERS)
    await drain(store, make_worker(settings, ledger))
    step: Step = request.param
    if step.state == "accepted":
        await overdue(ledger)
        return Due(found, step)
    orders = OrderDesk(ledger, SHARDS)
    for order in await ids(ledger):
        await orders.pay(paid(order), order)
        for action in ("pick", "ship", "receive"):
            await orders.act(order, action, "warehouse", "warehouse")
    return Due(found, step)


@contextlib.asynccontextmanager
async def stuck(dsn: str, step: Step) -> AsyncIterator[asyncpg.Connection]:
    """Whoever makes the step has moved a batch and waits, before its commit, to write the message of one order.

    A table lock would hold it up before it begins. Yields a connection of another transaction.
    """
    holder, other = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    held = holder.transaction()
    try:
        await held.start()
        await holder.execute(
            "INSERT INTO outbox (shard, order_id, version, topic, at) "
            "SELECT shard, order_id, version + 1, $1, now() FROM orders LIMIT 1",
            step.messages[0],
        )
        yield other
        await held.rollback()
    finally:
        await holder.close()
        await other.close()


async def has_looked(admin: asyncpg.Connection | Pool) -> bool:
    """An expiry worker has looked: it asks the ledger long after it began, and it looks five times a second."""
    return await at_work(admin, "expiry")


async def ended(ledger: Pool, step: Step) -> bool:
    return bool(await ledger.fetchval("SELECT count(*) = $1 FROM orders WHERE state = $2", ORDERS, step.to))


async def ended_once(ledger: Pool, due: Due, auditor: Auditor) -> None:
    """Each order has made the step once, with its messages; its events have no gap, and the books balance."""
    step = due.step
    assert await ended(ledger, step)
    events = await ledger.fetch(
        "SELECT order_id, array_agg(action) FILTER (WHERE action = $1) AS steps, count(*), max(version) "
        "FROM order_events GROUP BY order_id",
        step.action,
    )
    assert [e["steps"] for e in events] == [[step.action]] * ORDERS
    assert all(e["count"] == e["max"] for e in events)
    messages = await ledger.fetch(
        "SELECT array_agg(topic) AS topics FROM outbox JOIN order_events USING (shard, order_id, version) "
        "WHERE action = $1 GROUP BY order_id",
        step.action,
    )
    assert [sorted(m["topics"]) for m in messages] == [sorted(step.messages)] * ORDERS
    await balanced(auditor, due.sale)


async def second_takes_over(start: Start, ledger: Pool, due: Due, auditor: Auditor) -> None:
    child = await start()
    await eventually(lambda: ended(ledger, due.step), 30.0)
    await eventually(lambda: has_looked(ledger), 30.0)
    child.terminate()
    assert await child.wait() == 0
    await ended_once(ledger, due, auditor)


async def test_worker_killed_before_its_commit_leaves_the_orders_to_another(
    start: Start, due: Due, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    async with stuck(dsn, due.step) as admin:
        first = await start()
        backend = await waiting_for_lock(admin, "rushgate-expiry%")
        await die(first)
        # Nobody tells a waiting backend that its client has gone: it would still commit.
        await admin.execute("SELECT pg_terminate_backend($1)", backend)
    assert await ledger.fetchval("SELECT count(*) FROM orders WHERE state = $1", due.step.state) == ORDERS
    await second_takes_over(start, ledger, due, auditor)


async def test_worker_killed_after_its_commit_and_before_it_hears_of_it_has_done_its_work(
    start: Start, due: Due, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    async with stuck(dsn, due.step) as admin:
        first = await start()
        await waiting_for_lock(admin, "rushgate-expiry%")
        first.send_signal(signal.SIGSTOP)
    await eventually(lambda: ended(ledger, due.step), 30.0)
    await die(first)
    await second_takes_over(start, ledger, due, auditor)


async def test_worker_killed_while_its_statement_lives_on_shares_no_order_with_another(
    start: Start, due: Due, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    """The dead worker's rows are locked: a second worker passes over them until they are committed."""
    async with stuck(dsn, due.step) as admin:
        first = await start()
        await waiting_for_lock(admin, "rushgate-expiry%")
        await die(first)
        second = await start()
        await eventually(lambda: has_looked(admin), 30.0)
    await eventually(lambda: ended(ledger, due.step), 30.0)
    second.terminate()
    assert await second.wait() == 0
    await ended_once(ledger, due, auditor)
