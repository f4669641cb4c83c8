"""Level `replicated`: what is answered is confirmed by a replica, whoever wrote it; a replica here stands still."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from core.errors import StoreNotAsPromised, StoreUnavailable
from core.settings import Settings
from gateway.catalogue import Sale
from gateway.intake import Intake
from lua.connection import SharedConnection, StoreConnection
from lua.durability import Level, Unconfirmed
from lua.reserve import Answers, ReserveCode
from lua.scripts import AllocateCode, ReleaseCode, RestockCode, Scripts, SettleCode
from lua.source import LuaSource
from ops.embedded_store import EmbeddedStore
from tests.support import StoreSale, eventually, fresh, raw_reserve, spec, tell

WAIT_MS = 100
LEVEL = Level("replicated", 1, WAIT_MS)


class Pair(NamedTuple):
    """A primary and its replica."""

    primary: EmbeddedStore
    replica: EmbeddedStore

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The replica stands still for the while."""
        assert self.replica.pid
        os.kill(self.replica.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.replica.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="rushgate-test-") as folder:
        primary = EmbeddedStore(folder)
        found = Pair(primary, EmbeddedStore(folder, replica_of=primary, name="replica-1"))

        async def start() -> None:
            await primary.start()
            await found.replica.start()

        async def stop() -> None:
            await found.replica.stop()
            await primary.stop()

        try:
            asyncio.run(start())
            yield found
        finally:
            asyncio.run(stop())


class Ends:
    """Connections to the pair's primary, closed afterwards."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: list[StoreConnection] = []

    def connection(self, level: Level = LEVEL) -> StoreConnection:
        """A new one, which has written nothing."""
        made = StoreConnection(self._url, level, 10.0, fresh("test"))
        self._made.append(made)
        return made

    def plain(self) -> StoreConnection:
        """One that asks no replica: for what a test prepares and looks at."""
        return self.connection(Level("fsync"))

    async def close(self) -> None:
        for connection in self._made:
            await connection.close()


@pytest.fixture
async def ends(pair: Pair) -> AsyncIterator[Ends]:
    found = Ends(pair.primary.url)
    await tell(found.plain(), "FLUSHALL")
    yield found
    await found.close()


async def until_confirmed(connection: StoreConnection, sale: StoreSale) -> None:
    """The replica has caught up."""

    async def done() -> bool:
        try:
            await connection.confirm(sale.keys.meta)
        except Unconfirmed:
            return False
        return True

    await eventually(done)


async def test_reserve_is_confirmed_by_the_replica(pair: Pair, ends: Ends) -> None:
    sale = await StoreSale.open(ends.connection(), {"red": 1})
    ask = sale.ask("a")
    answers = await sale.reserve(ends.connection(), ask)
    assert answers.outcomes[0].code is ReserveCode.ACCEPTED
    replica = SharedConnection(pair.replica.url, "fsync", 10.0, fresh("test"))
    try:
        with pytest.raises(StoreUnavailable, match="slave, not a primary"):
            await replica.connect()
    finally:
        await replica.close()


async def test_control_wait_after_a_read_confirms_what_no_replica_has(pair: Pair, ends: Ends) -> None:
    """Control: without a write of its own a connection is told that all is well. If it fails, `touch` is not needed."""
    plain = ends.plain()
    sale = await StoreSale.open(plain, {"red": 1})
    await until_confirmed(ends.connection(), sale)
    ask = sale.ask("a")
    with pair.paused():
        assert (await sale.reserve(plain, ask)).outcomes[0].code is ReserveCode.ACCEPTED
        stranger = ends.plain()
        [_] = await raw_reserve(stranger, sale, [[ask]])  # a replay: it writes nothing
        assert await tell(stranger, "WAIT", 1, WAIT_MS) == 1
        assert await tell(plain, "WAIT", 1, WAIT_MS) == 0


async def test_reserve_unconfirmed_is_not_accepted_nor_its_repetition_until_the_replica_has_it(
    pair: Pair, ends: Ends
) -> None:
    sale = await StoreSale.open(ends.connection(), {"red": 1})
    ask, again = sale.ask("a", key="k"), sale.ask("a", key="k")
    with pair.paused():
        with pytest.raises(Unconfirmed, match=f"confirmed by 0 of 1 replicas in {WAIT_MS} ms"):
            await sale.reserve(ends.connection(), ask)
        for _ in range(3):
            with pytest.raises(Unconfirmed):  # a connection that has written nothing yet
                await sale.reserve(ends.connection(), again)
    answers: list[Answers] = []

    async def answered() -> bool:
        try:
            answers.append(await sale.reserve(ends.connection(), again))
        except Unconfirmed:
            return False
        return True

    await eventually(answered)
    [outcome] = answers[0].outcomes
    assert (outcome.code, outcome.order_id) == (ReserveCode.REPLAYED, ask.order_id)


async def test_connection_is_of_use_after_an_unconfirmed_batch(pair: Pair, ends: Ends) -> None:
    own = ends.connection()
    sale = await StoreSale.open(own, {"red": 2})
    client_id = await tell(own, "CLIENT", "ID")
    with pair.paused(), pytest.raises(Unconfirmed):
        await sale.reserve(own, sale.ask("a"))
    await until_confirmed(own, sale)
    assert (await sale.reserve(own, sale.ask("b"))).outcomes[0].code is ReserveCode.ACCEPTED
    assert await tell(own, "CLIENT", "ID") == client_id


@pytest.mark.parametrize("verb", ["release", "settle", "restock", "allocate"])
async def test_repeated_call_that_writes_nothing_is_confirmed_too(pair: Pair, ends: Ends, verb: str) -> None:
    """A relay that repeats what another one did may call it done only when the replica has it."""
    sale = await StoreSale.open(ends.connection(), {"red": 5}, at_payment=1 if verb == "allocate" else 0)
    ask = sale.ask("a")
    await sale.reserve(ends.connection(), ask)

    async def call() -> object:
        scripts = Scripts(ends.connection())
        if verb == "release":
            return await scripts.release(sale.keys, 1, [ask.order_id])
        if verb == "settle":
            return await scripts.settle(sale.keys, 1, [ask.order_id])
        if verb == "allocate":
            return await scripts.allocate(sale.keys, 1, [ask.order_id])
        return (await scripts.restock(sale.keys, 1, "move", "red", 1))[0]

    repeated = {
        "release": [ReleaseCode.NOTHING],
        "settle": [SettleCode.NOTHING],
        "allocate": [AllocateCode.ALLOCATED],
        "restock": RestockCode.REPEATED,
    }
    with pair.paused():
        for _ in range(2):
            with pytest.raises(Unconfirmed):
                await call()
    await until_confirmed(ends.connection(), sale)
    assert await call() == repeated[verb]


async def test_full_store_still_confirms_what_ends_holds(pair: Pair, ends: Ends) -> None:
    """With a write that a full store refuses, WAIT would be told that all is well, or nothing would end any more."""
    plain = ends.plain()
    sale = await StoreSale.open(ends.connection(), {"red": 5})
    asks = [sale.ask("a"), sale.ask("b")]
    await sale.reserve(ends.connection(), *asks)
    await tell(plain, "CONFIG", "SET", "maxmemory", 1)
    try:
        scripts = Scripts(ends.connection())
        assert await scripts.release(sale.keys, 1, [asks[0].order_id]) == [ReleaseCode.RELEASED]
        with pytest.raises(StoreUnavailable, match=r"OutOfMemory|OOM"):
            await sale.reserve(ends.connection(), sale.ask("c"))
        with pair.paused(), pytest.raises(Unconfirmed):
            await scripts.settle(sale.keys, 1, [asks[1].order_id])
    finally:
        await tell(plain, "CONFIG", "SET", "maxmemory", 0)


async def test_reading_and_acknowledging_wait_for_no_replica(pair: Pair, ends: Ends) -> None:
    sale = await StoreSale.open(ends.connection(), {"red": 1})
    scripts = Scripts(ends.connection())
    with pair.paused():
        await tell(ends.plain(), "SET", "unconfirmed", "1")
        [found] = await scripts.audit([sale.keys])
        assert found.left == {"red": 1}
        assert await scripts.ack(sale.keys.intake, "ledger", [b"1-1"]) == 0
        assert (await scripts.backlog([sale.shard]))[sale.shard].entries == 0


async def test_script_flush_leaves_the_confirmation_exact(pair: Pair, ends: Ends) -> None:
    own = ends.connection()
    sale = await StoreSale.open(own, {"red": 9})
    flushes: list[tuple[str, ...]] = [("SCRIPT", "FLUSH"), ("SCRIPT", "FLUSH")]
    for flush in flushes:
        await tell(ends.plain(), *flush)
        assert (await sale.reserve(own, sale.ask(fresh("b")))).outcomes[0].code is ReserveCode.ACCEPTED
    # Only `reserve` is missing: its WAIT must still be behind a write of this very exchange.
    await tell(ends.plain(), "SCRIPT", "FLUSH")
    await tell(ends.plain(), "SCRIPT", "LOAD", LuaSource.read("touch").text)
    ask = sale.ask("z")
    with pair.paused():
        await sale.reserve(ends.plain(), ask)
        await tell(ends.plain(), "SCRIPT", "FLUSH")
        await tell(ends.plain(), "SCRIPT", "LOAD", LuaSource.read("touch").text)
        with pytest.raises(Unconfirmed):
            await sale.reserve(ends.connection(), ask)


async def test_connect_wants_as_many_replicas_as_must_confirm(pair: Pair, ends: Ends) -> None:
    with pytest.raises(StoreNotAsPromised, match="1 replicas are connected, durability 'replicated' needs 2"):
        await ends.connection(Level("replicated", 2, WAIT_MS)).connect()
    await ends.connection().connect()


async def test_connect_without_a_replica_is_refused_with_the_reason(store: SharedConnection) -> None:
    alone = StoreConnection(store._url, LEVEL, 10.0, fresh("test"))
    with pytest.raises(StoreNotAsPromised, match="0 replicas are connected, durability 'replicated' needs 1"):
        await alone.connect()


async def test_connect_wants_the_disk_as_fsync_does(pair: Pair, ends: Ends) -> None:
    plain = ends.plain()
    await tell(plain, "CONFIG", "SET", "appendfsync", "everysec")
    try:
        with pytest.raises(StoreNotAsPromised, match=r"^appendfsync is 'everysec', durability 'replicated' needs"):
            await ends.connection().connect()
    finally:
        await tell(plain, "CONFIG", "SET", "appendfsync", "always")


async def test_intake_asks_an_unconfirmed_batch_once_and_tells_who_waits_behind_it(pair: Pair, ends: Ends) -> None:
    """No second wait on a new connection: it would only make the queue's longer."""
    store_sale = await StoreSale.open(ends.connection(), {"red": 9})
    sale = Sale(store_sale.campaign, 1, 1, spec({"red": 9}), 64)
    intake = Intake([ends.connection()], 100, 1)
    intake.start()
    calls = ("INFO", "commandstats")

    async def waits() -> int:
        info = (await tell(ends.plain(), *calls)).decode()
        return int(info.partition("cmdstat_wait:calls=")[2].partition(",")[0] or 0)

    try:
        with pair.paused():
            before = await waits()
            futures = [intake.submit(sale, 0, store_sale.ask(f"b{n}")) for n in range(5)]
            results = await asyncio.gather(*futures, return_exceptions=True)
            assert all(isinstance(r, Unconfirmed) for r in results), results
            assert await waits() == before + 1
    finally:
        await intake.stop()


def test_level_of_settings_has_numbers_only_where_replicas_confirm() -> None:
    wanted = Settings(durability="replicated", replicas=2, replica_wait_ms=50)
    assert Level.of(wanted) == Level("replicated", 2, 50)
    assert Level.of(Settings(replicas=2)) == Level("fsync")


async def test_touch_leaves_one_empty_key_a_shard(pair: Pair, ends: Ends) -> None:
    sale = await StoreSale.open(ends.connection(), {"red": 9})
    for n in range(3):
        await sale.reserve(ends.connection(), sale.ask(f"b{n}"))
    assert await tell(ends.plain(), "KEYS", "*touch*") == [b"{s%d}:touch" % sale.shard]
    assert await tell(ends.plain(), "STRLEN", f"{{s{sale.shard}}}:touch") == 0
