"""The ledger worker in this process: what it reads, sets aside, takes over, and how it outlives absences."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from core.ledger.pool import Pool, open_pool
from core.settings import Settings
from core.wire import encode
from lua.connection import Command, Reply, SharedConnection, StoreConnection
from lua.keys import intake_key
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.ledger.support import (
    add_entry,
    add_orders,
    consumers,
    counts,
    drain,
    drained,
    header,
    intake,
    make_worker,
    order_id,
    pending,
    placed,
    running,
    spare_ledger,
    whole,
)
from tests.support import SHARDS, eventually
from workers.copies import Copies
from workers.entries import DeadLetter, Entry, OrderRow, read_entry
from workers.ledger import GROUP
from workers.writer import LedgerWriter

SHARD = 3


class Stalling(LedgerWriter):
    """Writes when `go` is set; `reached` says that a batch has come so far."""

    def __init__(self, ledger: Pool) -> None:
        super().__init__(ledger)
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def write(
        self, rows: list[OrderRow], letters: list[DeadLetter], copies: Copies | None = None
    ) -> tuple[int, int]:
        self.reached.set()
        await self.go.wait()
        return await super().write(rows, letters, copies)


class Watched(StoreConnection):
    """Keeps what each read of new entries asked for and brought, in entries and orders."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "fsync", 5.0, "watched")
        self.reads: list[tuple[int, int, int]] = []

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        replies = await super().exchange(commands)
        if commands[0][0] == "XREADGROUP" and "BLOCK" in commands[0]:
            entries = [e for _, found in replies[0] or [] for e in found]
            orders = sum(len(fields) // 2 - 1 for _, fields in entries)
            self.reads.append((int(commands[0][5]), len(entries), orders))
        return replies


async def read_as(store: StoreConnection, name: str, count: int = 100) -> int:
    """Another consumer reads entries of SHARD and is never heard of again."""
    key = intake_key(SHARD)
    await store.exchange([("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")])
    [reply] = await store.exchange([("XREADGROUP", "GROUP", GROUP, name, "COUNT", count, "STREAMS", key, ">")])
    return sum(len(entries) for _, entries in reply or [])


async def test_worker_drains_all_shards_also_what_came_before_it(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    for n, shard in enumerate((0, 1, 31, 63)):
        for entry in range(3):
            await add_orders(store, shard, 1 + 4 * entry + 100 * n, 4)
    worker = make_worker(settings, ledger)
    await drain(store, worker)
    assert await counts(ledger) == whole(48)
    assert (worker.written, worker.dead, worker.claimed) == (48, 0, 0)
    assert await pending(store) == {}


async def test_worker_heals_after_the_store_was_emptied(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    worker = make_worker(settings, ledger)
    async with running(worker):
        await add_orders(store, SHARD, 1, 2)
        await drained(store)
        await store.exchange([("FLUSHALL",)])
        await add_orders(store, SHARD, 3, 2)
        await drained(store)
    assert await counts(ledger) == whole(4)


POISON = {
    "no header": ([b"x", b"1"], -1, "does not begin with a header"),
    "header without orders, cut off": ([b"h", b"1|sale|1"], -1, "header cannot be read"),
    "wrong version": ([b"h", header(50, version=3)], -1, "this worker reads"),
    "header of text": ([b"h", b"1|sale|one|2|3|4"], -1, "header cannot be read"),
    "header that is no ASCII": ([b"h", b"1|\xff|1|2|3|4"], -1, "header cannot be read"),
    "header with a NUL": ([b"h", b"1|sa\0le|1|2|3|4"], -1, "header out of range"),
    "epoch beyond integer": ([b"h", b"1|sale|%d|2|3|4" % 2**31], -1, "header out of range"),
    "sequence beyond bigint": ([b"h", b"1|sale|1|2|3|%d" % 2**63], -1, "header out of range"),
    "garbage payload": ([b"h", header(50), order_id(SHARD), b"\xc1garbage"], 0, "cannot be read"),
    "payload of another type": ([b"h", header(50), order_id(SHARD), msgspec.msgpack.encode([1])], 0, "cannot be read"),
    "text that is no UTF-8": (
        [b"h", header(50), order_id(SHARD), encode(placed(buyer_id="anna")).replace(b"anna", b"\xff\xfe\xfd\xfc")],
        0, "cannot be read",
    ),
    "order without items": ([b"h", header(50), order_id(SHARD), encode(placed(items=[]))], 0, "without items"),
    "order of another shard": ([b"h", header(50), order_id(4), encode(placed())], 0, "order of shard 4"),
    "order id of 5 bytes": ([b"h", header(50), b"abcde", encode(placed())], 0, "order id of 5 bytes"),
    "number beyond its column": ([b"h", header(50), order_id(SHARD), encode(placed(amount=2**63))], 0, "int64"),
}  # fmt: skip


@pytest.mark.parametrize("case", POISON)
async def test_worker_poison_is_set_aside_and_the_good_orders_written(
    case: str, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    fields, place, why = POISON[case]
    await add_orders(store, SHARD, 1, 2)
    if place >= 0:  # a good order in the same entry
        fields = [*fields, order_id(SHARD), encode(placed())]
    poisoned = await add_entry(store, SHARD, *fields)
    await add_orders(store, SHARD, 3, 2)
    worker = make_worker(settings, ledger)
    await drain(store, worker)
    good = 4 + (place >= 0)
    assert await counts(ledger) == whole(good, letters=1)
    letter = await ledger.fetchrow("SELECT * FROM dead_letters")
    assert letter is not None
    assert (letter["shard"], letter["entry_id"], letter["place"]) == (SHARD, poisoned.decode(), place)
    assert why in letter["reason"]
    kept = msgspec.msgpack.decode(letter["payload"]) if place < 0 else letter["payload"]
    assert kept == (fields if place < 0 else fields[3])
    assert letter["seq"] == (50 if place >= 0 else None)
    assert await pending(store) == {}


def test_read_entry_with_odd_fields_is_one_letter() -> None:
    """The store itself refuses such an entry."""
    rows, letters = read_entry(Entry(SHARD, b"1-0", [b"h", header(1), order_id(SHARD)]))
    assert rows == []
    assert [(one.place, one.reason[:20]) for one in letters] == [(-1, "not an entry of ours")]


async def test_worker_same_entry_twice_writes_its_orders_once(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    fields = [b"h", header(1), order_id(SHARD), encode(placed()), order_id(SHARD), encode(placed())]
    for _ in range(2):
        await add_entry(store, SHARD, *fields)
    await drain(store, make_worker(settings, ledger))
    await add_entry(store, SHARD, *fields)  # and once more, to a worker that knows nothing of it
    await drain(store, make_worker(settings, ledger, "two"))
    assert await counts(ledger) == whole(2)


async def test_worker_leaves_the_entries_of_another_alone_before_their_time(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    await add_orders(store, SHARD, 1, 2)
    assert await read_as(store, "busy") == 1
    worker = make_worker(settings, ledger, claim_idle_ms=60_000)
    assert await worker.step() == 0
    assert await pending(store) == {"busy": 1}
    assert await counts(ledger) == whole(0)
    worker.stop()
    await worker.run()


async def test_worker_claims_the_entries_of_a_silent_one(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    for n in range(40):  # more than one round of XAUTOCLAIM
        await add_orders(store, SHARD, 1 + 2 * n, 2)
    assert await read_as(store, "dead") == 40
    worker = make_worker(settings, ledger, claim_idle_ms=200)
    async with running(worker):
        await drained(store)
    assert worker.claimed == 40
    assert await counts(ledger) == whole(80)


async def test_worker_claim_of_deleted_entries_only_forgets_them(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    await add_orders(store, SHARD, 1, 2)
    gone = await add_entry(store, SHARD, b"h", header(3), order_id(SHARD), encode(placed()))
    assert await read_as(store, "dead") == 2
    await store.exchange([("XDEL", intake_key(SHARD), gone)])
    worker = make_worker(settings, ledger, claim_idle_ms=100)
    async with running(worker):
        await drained(store)
    assert await counts(ledger) == whole(2)


async def test_worker_after_a_break_finishes_what_it_had_read(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    await add_orders(store, SHARD, 1, 2)
    gone = await add_entry(store, SHARD, b"h", header(3), order_id(SHARD), encode(placed()))
    assert await read_as(store, "one") == 2  # under the worker's own name
    await store.exchange([("XDEL", intake_key(SHARD), gone)])
    worker = make_worker(settings, ledger, "one", claim_idle_ms=60_000)
    await worker.step()
    assert (await intake(store), await pending(store)) == (0, {})
    assert await counts(ledger) == whole(2)
    worker.stop()
    await worker.run()


async def test_worker_two_at_once_share_the_work(settings: Settings, store: SharedConnection, ledger: Pool) -> None:
    for n in range(100):
        await add_orders(store, SHARD, 1 + 3 * n, 3)
    one, two = make_worker(settings, ledger, "one"), make_worker(settings, ledger, "two")
    assert await one.step() > 0
    assert await two.step() > 0
    async with running(one, two):
        await drained(store)
    assert one.written + two.written == 300
    assert min(one.written, two.written) > 0
    assert await counts(ledger) == whole(300)


async def test_worker_zombie_that_wakes_after_its_entries_were_claimed_changes_nothing(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    for n in range(5):
        await add_orders(store, SHARD, 1 + 2 * n, 2)
    bad = order_id(SHARD)
    await add_entry(store, SHARD, b"h", header(11), bad, b"garbage", order_id(SHARD), encode(placed(amount=-1)))
    stalling = Stalling(ledger)
    zombie = make_worker(settings, ledger, "zombie", writer=stalling)
    living = make_worker(settings, ledger, "living", claim_idle_ms=200)
    async with running(zombie):
        await stalling.reached.wait()
        async with running(living):
            await drained(store)
        assert living.claimed == 6
        finished = await counts(ledger)
        await ledger.execute("UPDATE orders SET state = 'paid', version = 2")
        stalling.go.set()
    assert finished == await counts(ledger) == whole(10, letters=2)
    assert zombie.written == 0
    assert await ledger.fetchval("SELECT count(*) FROM orders WHERE state = 'paid'") == 10
    assert (await intake(store), await pending(store)) == (0, {})


async def test_worker_stopped_finishes_its_batch_and_leaves_the_group(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    await add_orders(store, SHARD, 1, 5)
    stalling = Stalling(ledger)
    worker = make_worker(settings, ledger, "one", writer=stalling)
    task = asyncio.create_task(worker.run())
    await stalling.reached.wait()
    assert await consumers(store, SHARD) == {"one"}
    worker.stop()
    stalling.go.set()
    await task
    assert await counts(ledger) == whole(5)
    assert (await intake(store), await pending(store)) == (0, {})
    assert await consumers(store, SHARD) == set()


async def test_worker_stopped_with_work_it_cannot_finish_leaves_it_to_be_claimed(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    """Its consumer stays: to delete it would take its entries out of everybody's reach."""
    await add_orders(store, SHARD, 1, 5)
    nowhere = await open_pool("postgresql://nobody@127.0.0.1:1/none", "test", 5.0, size=1)
    stuck = make_worker(settings, nowhere, "stuck")
    async with running(stuck):
        await eventually(lambda: pending(store))
    nowhere.terminate()
    assert await pending(store) == {"stuck": 1}
    living = make_worker(settings, ledger, "living", claim_idle_ms=100)
    async with running(living):
        await drained(store)
    assert await counts(ledger) == whole(5)


async def test_worker_reads_fewer_entries_when_they_are_large(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    for n in range(60):
        await add_orders(store, SHARD, 1 + 50 * n, 50)
    watched = Watched(settings.store_url)
    await drain(store, make_worker(settings, ledger, connection=watched, drain_orders=50))
    asked = [count for count, _, _ in watched.reads]
    assert asked[:4] == [8, 4, 2, 2]
    assert max(orders for _, _, orders in watched.reads[2:]) <= 100
    assert await counts(ledger) == whole(3_000)


async def test_worker_reads_more_entries_when_they_are_small(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    for n in range(250):
        await add_orders(store, SHARD, 1 + n, 1)
    watched = Watched(settings.store_url)
    await drain(store, make_worker(settings, ledger, connection=watched, drain_orders=1_000))
    assert [count for count, _, _ in watched.reads] == [8, 16, 32, 64, 128, 128]
    assert await counts(ledger) == whole(250)


async def test_worker_batches_do_not_exceed_what_a_transaction_wants(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    class Counting(LedgerWriter):
        sizes: list[int] = []  # noqa: RUF012 - one object

        async def write(
            self, rows: list[OrderRow], letters: list[DeadLetter], copies: Copies | None = None
        ) -> tuple[int, int]:
            self.sizes.append(len(rows))
            return await super().write(rows, letters, copies)

    for n in range(8):
        await add_orders(store, SHARD, 1 + 30 * n, 30)
    await drain(store, make_worker(settings, ledger, writer=Counting(ledger), drain_orders=50))
    assert Counting.sizes == [60, 60, 60, 60]


@pytest.fixture
async def own_store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    """A store of this test's own, to be stopped and started."""
    embedded = EmbeddedStore(tmp_path / "store")
    await embedded.start()
    yield embedded
    await embedded.stop()


@pytest.fixture
async def own_ledger() -> AsyncIterator[EmbeddedLedger]:
    """A ledger server of this test's own, to be stopped and started."""
    async with spare_ledger() as embedded:
        yield embedded


async def test_worker_outlives_the_ledger_being_away(
    settings: Settings, store: SharedConnection, own_ledger: EmbeddedLedger
) -> None:
    pool = await open_pool(own_ledger.dsn, "test", 5.0, size=2)
    worker = make_worker(settings, pool)
    async with running(worker):
        await add_orders(store, SHARD, 1, 2)
        await drained(store)
        await own_ledger.stop()
        for n in range(5):
            await add_orders(store, n, 10 + n, 1)
        await eventually(lambda: pending(store))  # it goes on reading and trying
        assert await intake(store) == 5
        assert worker.written == 2
        await own_ledger.start()
        await drained(store)
    assert await counts(pool) == whole(7)
    pool.terminate()


async def test_worker_outlives_the_store_being_away(settings: Settings, own_store: EmbeddedStore, ledger: Pool) -> None:
    store = SharedConnection(own_store.url, "fsync", 10.0, "test")
    worker = make_worker(settings.with_values(store_url=own_store.url), ledger)
    async with running(worker):
        await add_orders(store, SHARD, 1, 2)
        await drained(store)
        await store.close()
        await own_store.kill()
        await own_store.start()
        await add_orders(store, SHARD, 3, 2)
        await drained(store)
        await store.exchange([("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")])
        await add_orders(store, SHARD, 5, 2)
        await drained(store)
    await store.close()
    assert await counts(ledger) == whole(6)
    assert worker.written == 6


async def test_worker_cut_off_between_commit_and_acknowledge_writes_nothing_twice(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    """The store kills all connections after the commit and before the acknowledgement; the worker goes on."""

    class Cutting(LedgerWriter):
        cuts = 3

        async def write(
            self, rows: list[OrderRow], letters: list[DeadLetter], copies: Copies | None = None
        ) -> tuple[int, int]:
            result = await super().write(rows, letters, copies)
            if self.cuts:
                self.cuts -= 1
                await store.exchange([("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")])
            return result

    for n in range(4):
        await add_orders(store, SHARD, 1 + 2 * n, 2)
    writer = Cutting(ledger)
    worker = make_worker(settings, ledger, writer=writer)
    async with running(worker):
        await drained(store)
    assert writer.cuts == 0
    assert worker.written == 8
    assert await counts(ledger) == whole(8)


def test_worker_tests_use_shards_that_exist() -> None:
    assert SHARDS > 63 > SHARD
