"""The ledger worker does several things at once: what that may change, and what not."""

import asyncio
from collections.abc import Sequence

from core.errors import LedgerUnavailable
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import Command, Reply, SharedConnection, StoreConnection
from tests.ledger.support import add_orders, counts, drained, intake, make_worker, pending, running, whole
from tests.support import eventually
from workers.copies import Copies
from workers.entries import DeadLetter, OrderRow
from workers.ledger import COPIED_ORDERS
from workers.writer import LedgerWriter

SHARD = 3


class Gated(LedgerWriter):
    """Each batch is announced, and written when it is let in. `commits` False: the ledger is away instead."""

    def __init__(self, ledger: Pool) -> None:
        super().__init__(ledger)
        self.sizes: list[int] = []
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self.commits = True
        self.at_once = 0

    async def write(
        self, rows: list[OrderRow], letters: list[DeadLetter], copies: Copies | None = None
    ) -> tuple[int, int]:
        self.at_once += 1
        assert self.at_once == 1
        self.sizes.append(len(rows))
        self.reached.set()
        async with asyncio.timeout(20):  # a test that fails ends
            await self.go.wait()
        self.at_once -= 1
        if not self.commits:
            raise LedgerUnavailable("the test says so")
        return await super().write(rows, letters, copies)


class Acks(StoreConnection):
    """Counts the exchanges that acknowledge, and the calls in them."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "fsync", 5.0, "acks")
        self.calls: list[int] = []

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        if str(commands[0][0]).startswith("EVAL"):
            self.calls.append(len(commands))
        return await super().exchange(commands)


async def test_worker_reads_on_while_the_ledger_writes_and_acknowledges_nothing_before_its_commit(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    writer = Gated(ledger)
    await fill(store)
    worker = make_worker(settings, ledger, writer=writer, drain_orders=40)
    async with running(worker):
        await eventually(lambda: both_read(store))
        assert writer.sizes == [40]  # one transaction at a time
        assert (await intake(store), await counts(ledger)) == (16, whole(0))
        writer.go.set()
        await drained(store)
    assert writer.sizes == [40, 40]
    assert await counts(ledger) == whole(80)


async def fill(store: SharedConnection) -> None:
    """Two reads of a worker that has just begun, each 40 orders."""
    for n in range(16):
        await add_orders(store, SHARD, 1 + 5 * n, 5)


async def both_read(store: SharedConnection) -> bool:
    return await pending(store) == {"one": 16}


async def test_worker_whose_ledger_fails_with_the_next_batch_read_writes_both_once(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    writer = Gated(ledger)
    writer.commits = False
    await fill(store)
    worker = make_worker(settings, ledger, writer=writer, drain_orders=40)
    async with running(worker):
        await eventually(lambda: both_read(store))
        writer.reached.clear()
        writer.go.set()
        await writer.reached.wait()  # it tries again, from what is pending under its name
        assert await intake(store) == 16
        writer.commits = True
        await drained(store)
    assert worker.written == 80
    assert await counts(ledger) == whole(80)


async def test_worker_without_a_backlog_waits_for_company(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    """What comes while a batch is written and in the pause after it is one transaction."""
    writer = Gated(ledger)
    worker = make_worker(settings, ledger, writer=writer, drain_pause_ms=50)
    async with running(worker):
        await add_orders(store, SHARD, 1, 1)
        await writer.reached.wait()
        for n in range(5):
            await add_orders(store, n, 10 + n, 2)
        assert await pending(store) == {"one": 1}
        writer.go.set()
        await drained(store)
    assert writer.sizes == [1, 10]
    assert await counts(ledger) == whole(11)


async def test_worker_acknowledges_all_shards_in_one_exchange(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    for shard in range(20):
        await add_orders(store, shard, 1, 3)
    connection = Acks(settings.store_url)
    worker = make_worker(settings, ledger, connection=connection)
    assert await worker.step() == 20
    assert max(connection.calls) == 20
    assert len(connection.calls) <= 2  # the second one if the store did not know the script
    assert (await intake(store), await pending(store)) == (0, {})
    worker.stop()
    await worker.run()
    assert await counts(ledger) == whole(60)


async def test_worker_copies_new_entries_and_states_those_that_may_be_written_already(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    writer = LedgerWriter(ledger)
    worker = make_worker(settings, ledger, writer=writer)
    await add_orders(store, SHARD, 1, COPIED_ORDERS)
    assert await worker.step() == 1
    assert (writer.copied, writer.refused) == (1, 0)
    await add_orders(store, SHARD, 1_001, COPIED_ORDERS - 1)  # too few to be worth it
    assert await worker.step() == 1
    assert writer.copied == 1
    worker.stop()
    await worker.run()
    gone = Gated(ledger)  # a worker that dies with orders in hand
    dead = make_worker(settings, ledger, "dead", writer=gone)
    await add_orders(store, SHARD, 2_001, COPIED_ORDERS)
    task = asyncio.create_task(dead.run())
    await gone.reached.wait()
    task.cancel()
    await asyncio.wait([task])
    heir = make_worker(settings, ledger, "heir", writer=writer, claim_idle_ms=100)
    async with running(heir):
        await drained(store)
    assert heir.claimed == 1
    assert (writer.copied, writer.refused) == (1, 0)
    assert await counts(ledger) == whole(3 * COPIED_ORDERS - 1)


async def test_worker_makes_no_pause_while_its_reads_are_full(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    """Many entries of one order each are a backlog too. The pause, ten minutes here, does not keep a stop waiting."""
    for n in range(250):
        await add_orders(store, SHARD, 1 + n, 1)
    async with running(make_worker(settings, ledger, drain_pause_ms=600_000)):
        await drained(store)
    assert await counts(ledger) == whole(250)
