"""Orders on their way while workers die by SIGKILL: the relay at each gap of a message for the store, the ledger worker
while its orders go on without it. Afterwards another one does the rest, and every invariant holds."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.scripts import Scripts
from tests.conftest import Services
from tests.faults.support import Process, Spawn, die, stop
from tests.ledger.invariants import invariants
from tests.ledger.support import Sale, drain, drained, intake, make_worker, table_locked, waiting_for_lock
from tests.ledger.test_lifecycle import ids, overdue, paid, relay, stock
from tests.support import SHARDS, eventually, tell
from workers.expiry import ExpiryWorker

ORDERS = 10
STOCK = 15
NONE_WAIT = "SELECT count(*) = 0 FROM outbox WHERE topic IN ('settle', 'release', 'restock')"
TOLD = """
    SELECT order_id, version, topic FROM outbox UNION ALL SELECT order_id, version, topic FROM deliveries"""
Start = Callable[[str], Awaitable[Process]]


@pytest.fixture
def start(spawn: Spawn, settings: Settings) -> Start:
    """Starts workers of a kind."""
    own = settings.with_values(ledger_timeout_s=60.0, store_timeout_s=30.0, claim_idle_ms=300)
    return lambda kind: spawn(kind, own)


@pytest.fixture
async def sale(desk: CampaignDesk, store: SharedConnection) -> Sale:
    """Ten orders of one red each, of fifteen, in the intake."""
    found = await Sale.open(desk, {"red": STOCK}, limits={"buyer": 1})
    await found.accept(store, ORDERS, ("red", 1))
    return found


async def ready(topic: str, ledger: Pool, services: Services) -> tuple[int, int, int]:
    """Every order has this message for the store; left, held and sold once all are carried there."""
    orders = OrderDesk(ledger, SHARDS)
    if topic == "release":
        await overdue(ledger)
        assert await ExpiryWorker(ledger, range(SHARDS)).step() == ORDERS
        return STOCK, 0, 0
    for order in await ids(ledger):
        await orders.pay(paid(order), order)
    if topic == "settle":
        return STOCK - ORDERS, 0, ORDERS
    assert await relay(ledger, services) == ORDERS
    for order in await ids(ledger):
        await orders.act(order, "cancel", "buyer", "channel:app")
    return STOCK, 0, ORDERS


async def told(ledger: Pool) -> Counter[tuple[str, int, str]]:
    """The ids of all messages, delivered or not."""
    return Counter((str(r["order_id"]), r["version"], r["topic"]) for r in await ledger.fetch(TOLD))


@contextlib.asynccontextmanager
async def held_up(dsn: str, store: SharedConnection) -> AsyncIterator[asyncpg.Connection]:
    """The store takes no write until it is told so, or to the end; yields a connection inside a transaction."""
    admin = await asyncpg.connect(dsn)
    await tell(store, "CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        async with admin.transaction():
            yield admin
    finally:
        await tell(store, "CLIENT", "UNPAUSE")
        await admin.close()


GAPS = ["before the script", "after the script", "after the record"]


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("topic", ["settle", "release", "restock"])
async def test_relay_killed_on_its_way_to_the_store_ends_each_hold_once(
    topic: str, gap: str, start: Start, sale: Sale, settings: Settings, ledger: Pool, services: Services,
    scripts: Scripts, auditor: Auditor, store: SharedConnection, dsn: str,
) -> None:  # fmt: skip
    """G16, G18"""
    await drain(store, make_worker(settings, ledger))
    end = await ready(topic, ledger, services)
    before, messages = await stock(scripts, sale), await told(ledger)
    claimed = "SELECT count(*) = $1 FROM outbox WHERE topic = $2 AND attempts = 1 AND due_at > now()"
    async with held_up(dsn, store) as admin:
        first = await start("relay")
        await eventually(lambda: ledger.fetchval(claimed, ORDERS, topic), 30.0)
        if topic == "restock":  # journalled before the store hears of it
            await eventually(lambda: ledger.fetchval("SELECT count(*) FROM stock_moves WHERE kind = 'return'"), 30.0)
        if gap != "before the script":
            await admin.execute("SELECT FROM outbox FOR UPDATE")
            await tell(store, "CLIENT", "UNPAUSE")
            backend = await waiting_for_lock(admin, "rushgate-relay%")
        await die(first)
        if gap == "after the script":
            # Nobody tells a waiting backend that its client has gone: it would still commit.
            await admin.execute("SELECT pg_terminate_backend($1)", backend)
    assert await stock(scripts, sale) == (before if gap == "before the script" else end)
    if gap == "after the record":
        await eventually(lambda: ledger.fetchval(NONE_WAIT))
    else:
        assert await ledger.fetchval(claimed, ORDERS, topic)
    await invariants(auditor, store, ledger, sale)
    await ledger.execute("UPDATE outbox SET due_at = now()")  # the lease of the dead one has passed
    if gap == "after the record":
        assert await relay(ledger, services) == 0
    else:
        second = await start("relay")
        await eventually(lambda: ledger.fetchval(NONE_WAIT), 30.0)
        await stop(second)
    assert await stock(scripts, sale) == end
    assert await told(ledger) == messages
    assert await ledger.fetchval("SELECT count(*) FROM dead_messages") == 0
    await invariants(auditor, store, ledger, sale, ended=topic == "release")


async def test_ledger_worker_killed_before_it_acknowledged_sets_no_order_back(
    start: Start, sale: Sale, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection, dsn: str,
) -> None:  # fmt: skip
    """G4. The orders of its unacknowledged entries are paid, cancelled and delivered before they are read again."""
    async with table_locked(dsn) as admin:
        first = await start("ledger")
        await waiting_for_lock(admin, "rushgate-ledger%")
        await tell(store, "CLIENT", "PAUSE", 60_000, "WRITE")  # from here on nothing is acknowledged
    try:
        await eventually(lambda: ledger.fetchval("SELECT count(*) = $1 FROM orders", ORDERS), 30.0)
        await die(first)
    finally:
        await tell(store, "CLIENT", "UNPAUSE")
    assert await intake(store, sale.shards) == 1
    every, orders = await ids(ledger), OrderDesk(ledger, SHARDS)
    for order in every[:6]:
        await orders.pay(paid(order), order)
    for order in every[4:]:
        await orders.act(order, "cancel", "buyer", "channel:app")
    assert await relay(ledger, services) == ORDERS + 2
    standing = await ledger.fetch("SELECT order_id, state, version FROM orders ORDER BY order_id")
    second = await start("ledger")
    await drained(store)
    await stop(second)
    assert await ledger.fetch("SELECT order_id, state, version FROM orders ORDER BY order_id") == standing
    assert await stock(scripts, sale) == (STOCK - 4, 0, 6)
    await invariants(auditor, store, ledger, sale)
