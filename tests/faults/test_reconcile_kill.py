"""Reconcile workers as real processes, killed at each gap of a repair: another one finishes it, once."""

from collections.abc import Awaitable, Callable

import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.scripts import Scripts
from tests.faults.support import Process, Spawn, at_work, die
from tests.ledger.reconcile_support import cancel, entry_lost, relay, repairs, stock
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, intake, make_worker, table_locked, waiting_for_lock
from tests.support import eventually, tell

Start = Callable[[], Awaitable[Process]]


@pytest.fixture
def start(spawn: Spawn, settings: Settings) -> Start:
    """Starts reconcile workers."""
    own = settings.with_values(reconcile_every_s=0.05, ledger_timeout_s=60.0, store_timeout_s=60.0)
    return lambda: spawn("reconcile", own)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """Six orders, of 20 units, in the ledger; three more whose entry is lost; one cancelled whose release is lost."""
    found = await Sale.open(desk, {"red": 20})
    await found.accept(store, 6)
    await drain(store, make_worker(settings, ledger))
    await cancel(ledger, (await ids(ledger))[0])
    await ledger.execute("DELETE FROM outbox WHERE topic = 'release'")
    await found.accept(store, 3)
    await entry_lost(store, found.parts[0].keys)
    return found


async def journalled(ledger: Pool) -> list[str]:
    return [what for what, _ in await repairs(ledger)]


async def second_finishes(
    start: Start, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor,
    scripts: Scripts,
) -> None:  # fmt: skip
    """Another worker does what is left, and stops gracefully; each order has its one repair."""

    async def mended() -> bool:
        looked = await at_work(ledger, "reconcile")
        return looked and len(await repairs(ledger)) == 4 and (await auditor.audit(sale.campaign)).lost == 0

    child = await start()
    await eventually(mended, 30.0)
    child.terminate()
    assert await child.wait() == 0
    await drain(store, make_worker(settings, ledger, "two"))
    assert await relay(ledger, settings) == 1
    report = await balanced(auditor, sale)
    assert (report.persisted, report.dead_lettered) == (9, 0)
    assert await stock(scripts, sale.parts[0].keys) == (12, 8, 0)
    assert await journalled(ledger) == ["released", "requeued", "requeued", "requeued"]
    assert await ledger.fetchval("SELECT count(*) FROM alerts") == 0


async def test_reconcile_killed_before_the_journal_is_committed(
    start: Start, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor,
    scripts: Scripts, dsn: str,
) -> None:  # fmt: skip
    async with table_locked(dsn, "repairs") as admin:
        first = await start()
        backend = await waiting_for_lock(admin, "rushgate-reconcile%")
        await die(first)
        # Nobody tells a waiting backend that its client has gone: it would still commit.
        await admin.execute("SELECT pg_terminate_backend($1)", backend)
    assert (await journalled(ledger), await intake(store)) == ([], 0)
    await second_finishes(start, sale, settings, store, ledger, auditor, scripts)


async def test_reconcile_killed_between_the_journal_and_the_mending(
    start: Start, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor,
    scripts: Scripts,
) -> None:  # fmt: skip
    """The store takes no writes for a while, so the orders are journalled and not in the intake."""
    await tell(store, "CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        first = await start()
        await eventually(lambda: journalled(ledger), 30.0)
        await die(first)
    finally:
        await tell(store, "CLIENT", "UNPAUSE")
    assert (await journalled(ledger), await intake(store)) == (["requeued"] * 3, 0)
    await second_finishes(start, sale, settings, store, ledger, auditor, scripts)


async def test_reconcile_killed_after_the_mending_and_before_it_looked_again(
    start: Start, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor,
    scripts: Scripts, dsn: str,
) -> None:  # fmt: skip
    async with table_locked(dsn, "alerts") as admin:
        first = await start()
        await waiting_for_lock(admin, "rushgate-reconcile%")
        await die(first)
    assert (len(await repairs(ledger)), await intake(store)) == (4, 3)
    await second_finishes(start, sale, settings, store, ledger, auditor, scripts)
    assert await ledger.fetchval("SELECT count(*) FROM orders") == 9
