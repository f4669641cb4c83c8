"""Ledger workers as real processes: killed, stopped, frozen, started too early. No order is lost or written twice."""

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from tests.faults.support import Process, Spawn, die, stop
from tests.ledger.support import (
    Sale,
    add_orders,
    counts,
    drained,
    intake,
    pending,
    spare_ledger,
    table_locked,
    waiting_for_lock,
    whole,
)
from tests.support import eventually

ORDERS = 12
Start = Callable[[Settings], Awaitable[Process]]


@pytest.fixture
def start(spawn: Spawn) -> Start:
    """Starts ledger workers."""
    return lambda settings: spawn("ledger", settings)


@pytest.fixture
def hasty(settings: Settings) -> Settings:
    """Workers that claim soon, and wait long for a lock."""
    return settings.with_values(claim_idle_ms=300, ledger_timeout_s=60.0, store_timeout_s=30.0)


async def sold(desk: CampaignDesk, store: SharedConnection) -> Sale:
    sale = await Sale.open(desk, {"red": 100})
    for _ in range(3):
        await sale.accept(store, ORDERS // 3)
    return sale


async def is_whole(auditor: Auditor, sale: Sale, ledger: Pool) -> None:
    """Each order once, in every table, and the books balance."""
    assert await counts(ledger) == whole(ORDERS)
    report = await auditor.audit(sale.campaign)
    assert report.ok, report
    assert (report.accepted, report.persisted, report.in_flight) == (ORDERS, ORDERS, 0)


async def test_worker_killed_between_commit_and_acknowledge_writes_each_order_once(
    start: Start, hasty: Settings, desk: CampaignDesk, store: SharedConnection, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    sale = await sold(desk, store)
    async with table_locked(dsn) as admin:
        first = await start(hasty)
        await waiting_for_lock(admin, "rushgate-ledger%")
        await store.exchange([("CLIENT", "PAUSE", 60_000, "WRITE")])  # from here on nothing is acknowledged
    try:
        await eventually(lambda: ledger.fetchval("SELECT count(*) = $1 FROM orders", ORDERS))
        await die(first)
        assert await intake(store, sale.shards) == 3
        [(dead, count)] = (await pending(store, sale.shards)).items()
        assert count == 3
    finally:
        await store.exchange([("CLIENT", "UNPAUSE")])
    await ledger.execute("DELETE FROM outbox")  # delivered meanwhile
    second = await start(hasty)
    await drained(store)
    await stop(second)
    assert dead not in await pending(store)
    assert await ledger.fetchval("SELECT count(*) FROM outbox") == 0
    await ledger.execute("INSERT INTO outbox SELECT shard, order_id, 1, 'payment', accepted_at FROM orders")
    await is_whole(auditor, sale, ledger)


async def test_worker_killed_before_its_commit_leaves_the_orders_to_another(
    start: Start, hasty: Settings, desk: CampaignDesk, store: SharedConnection, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    sale = await sold(desk, store)
    async with table_locked(dsn) as admin:
        first = await start(hasty)
        backend = await waiting_for_lock(admin, "rushgate-ledger%")
        await die(first)
        # Nobody tells a waiting backend that its client has gone: it would still commit.
        await admin.execute("SELECT pg_terminate_backend($1)", backend)
    assert await counts(ledger) == whole(0)
    second = await start(hasty)
    await drained(store)
    await stop(second)
    await is_whole(auditor, sale, ledger)


async def test_worker_told_to_stop_finishes_its_batch_and_exits_0(
    start: Start, hasty: Settings, desk: CampaignDesk, store: SharedConnection, ledger: Pool, auditor: Auditor, dsn: str
) -> None:
    sale = await sold(desk, store)
    async with table_locked(dsn) as admin:
        only = await start(hasty)
        await waiting_for_lock(admin, "rushgate-ledger%")
        only.terminate()
    assert await only.wait() == 0
    assert (await intake(store), await pending(store)) == (0, {})
    await is_whole(auditor, sale, ledger)


@pytest.mark.parametrize("insert", ["commits", "is lost"])
async def test_worker_frozen_while_another_takes_over_changes_nothing_when_it_wakes(
    insert: str, start: Start, hasty: Settings, desk: CampaignDesk, store: SharedConnection, ledger: Pool,
    auditor: Auditor, dsn: str,
) -> None:  # fmt: skip
    sale = await sold(desk, store)
    async with table_locked(dsn) as admin:
        frozen = await start(hasty)
        backend = await waiting_for_lock(admin, "rushgate-ledger%")
        frozen.send_signal(signal.SIGSTOP)
        if insert == "is lost":
            await admin.execute("SELECT pg_terminate_backend($1)", backend)
    second = await start(hasty)
    await drained(store)
    await stop(second)
    await is_whole(auditor, sale, ledger)
    frozen.send_signal(signal.SIGCONT)
    await sale.accept(store, 1)  # it works again, so it has got over its old batch
    await drained(store)
    await stop(frozen)
    assert await counts(ledger) == whole(ORDERS + 1)
    assert (await auditor.audit(sale.campaign)).ok


async def test_worker_with_a_store_limit_below_its_own_wait_is_not_cut_off(
    start: Start, settings: Settings, desk: CampaignDesk, store: SharedConnection, ledger: Pool
) -> None:
    """Its read waits up to 500 ms for entries: the time limit of the store must not end the connection then."""
    only = await start(settings.with_values(store_timeout_s=0.2))

    async def reader() -> str:
        [clients] = await store.exchange([("CLIENT", "LIST")])
        lines = [c for c in clients.decode().splitlines() if " name=ledger-" in c and " cmd=xreadgroup" in c]
        return lines[0].split()[0] if lines else ""

    connected = await eventually(reader)

    async def calls() -> int:
        [info] = await store.exchange([("INFO", "commandstats")])
        [line] = [x for x in info.decode().splitlines() if x.startswith("cmdstat_xreadgroup:")]
        return int(line.split("calls=")[1].split(",")[0])

    before = await calls()
    await eventually(lambda: _at_least(calls, before + 3))
    assert await reader() == connected
    await stop(only)


async def _at_least(count: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await count() >= wanted


async def test_worker_started_while_the_ledger_is_away_works_when_it_comes(
    start: Start, hasty: Settings, store: SharedConnection, tmp_path: Path
) -> None:
    async with spare_ledger() as own:
        await own.stop()
        only = await start(hasty.with_values(ledger_dsn=own.dsn))
        log = tmp_path / "ledger-0.log"

        async def says_so() -> bool:
            assert only.returncode is None
            return "worker waits for the ledger" in log.read_text()

        await eventually(says_so)
        await add_orders(store, 7, 1, 5)
        connection = await asyncpg.connect(await own.start())
        await drained(store)
        assert await connection.fetchval("SELECT count(*) FROM orders") == 5
        await connection.close()
        await stop(only)
