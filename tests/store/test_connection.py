"""The connection to the store: what it demands at connect, and that no reply is ever taken for another's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import RedisError, ResponseError

from core.errors import StoreNotAsPromised, StoreUnavailable
from lua.connection import LocalLevel, SharedConnection, StoreConnection
from lua.durability import broken_promises
from lua.reserve import ReserveCode
from lua.source import LuaSource
from tests.conftest import Services
from tests.support import StoreSale, eventually, fresh, tell


@asynccontextmanager
async def connection(
    services: Services, timeout_s: float = 10.0, durability: LocalLevel = "fsync"
) -> AsyncIterator[StoreConnection]:
    made = StoreConnection(services.store_url, durability, timeout_s, fresh("test"))
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def store_set(store: SharedConnection, name: str, value: str) -> AsyncIterator[None]:
    """The store has another setting for the while."""
    _, old = await tell(store, "CONFIG", "GET", name)
    await tell(store, "CONFIG", "SET", name, value)
    try:
        yield
    finally:
        await eventually(lambda: _no_rewrite(store))
        await tell(store, "CONFIG", "SET", name, old)
        await eventually(lambda: _no_rewrite(store))


async def _no_rewrite(store: SharedConnection) -> bool:
    """Switching the log on begins with a rewrite."""
    info = await tell(store, "INFO", "persistence")
    return b"aof_rewrite_in_progress:0" in info and b"aof_rewrite_scheduled:0" in info


async def blocked(store: SharedConnection, client_id: int) -> bool:
    return b"cmd=blpop" in await tell(store, "CLIENT", "LIST", "ID", client_id)


BROKEN = [
    ("appendfsync", "everysec"),
    ("appendfsync", "no"),
    ("no-appendfsync-on-rewrite", "yes"),
    ("maxmemory-policy", "allkeys-lru"),
    ("appendonly", "no"),
]


@pytest.mark.parametrize(("name", "value"), BROKEN)
async def test_connect_refuses_a_store_that_is_not_as_promised(
    services: Services, store: SharedConnection, name: str, value: str
) -> None:
    async with store_set(store, name, value), connection(services) as fresh_one:
        for _ in range(2):  # and goes on refusing
            with pytest.raises(StoreNotAsPromised, match=f"^{name} is '{value}'"):
                await fresh_one.exchange([("PING",)])
    async with connection(services) as fresh_one:
        assert await tell(fresh_one, "PING") == b"PONG"


async def test_connect_names_every_broken_promise(services: Services, store: SharedConnection) -> None:
    async with (
        store_set(store, "appendfsync", "everysec"),
        store_set(store, "maxmemory-policy", "allkeys-lru"),
        connection(services) as fresh_one,
    ):
        with pytest.raises(StoreNotAsPromised) as caught:
            await fresh_one.connect()
    assert "appendfsync" in caught.value.detail
    assert "maxmemory-policy" in caught.value.detail


async def test_connect_for_memory_needs_no_disk_but_no_eviction(services: Services, store: SharedConnection) -> None:
    async with store_set(store, "appendfsync", "no"), connection(services, durability="memory") as fresh_one:
        assert await tell(fresh_one, "PING") == b"PONG"
    async with store_set(store, "maxmemory-policy", "volatile-ttl"), connection(services, 10.0, "memory") as fresh_one:
        with pytest.raises(StoreNotAsPromised, match="maxmemory-policy"):
            await fresh_one.connect()


def test_broken_promises_of_a_silent_store_are_all() -> None:
    assert len(broken_promises({}, "fsync")) == 4
    assert all("'unknown'" in text for text in broken_promises({}, "fsync"))


async def test_connect_to_a_replica_is_refused(services: Services, store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    async with connection(services) as old_one, connection(services) as new_one:
        await old_one.connect()
        await tell(store, "REPLICAOF", "127.0.0.1", 1)
        try:
            with pytest.raises(StoreUnavailable, match="slave, not a primary"):
                await new_one.connect()
            with pytest.raises(StoreUnavailable, match=r"ReadOnly|READONLY"):
                await sale.reserve(old_one, sale.ask("a"))
        finally:
            await tell(store, "REPLICAOF", "NO", "ONE")
        assert (await sale.reserve(old_one, sale.ask("a"))).outcomes[0].code is ReserveCode.ACCEPTED


async def test_connect_where_nobody_listens_is_unavailable() -> None:
    nowhere = StoreConnection("redis://127.0.0.1:1/0", "fsync", 1.0, "test")
    with pytest.raises(StoreUnavailable):
        await nowhere.exchange([("PING",)])


async def test_connect_with_a_wrong_password_is_unavailable_and_does_not_tell_it(services: Services) -> None:
    port = services.store_url.rpartition(":")[2]
    stranger = StoreConnection(f"redis://:not-the-password@127.0.0.1:{port}", "fsync", 1.0, "test")
    with pytest.raises(StoreUnavailable) as caught:
        await stranger.connect()
    assert "not-the-password" not in caught.value.detail


async def test_connect_to_a_silent_server_ends_in_time() -> None:
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(StoreUnavailable, match=r"^the store cannot be reached: timeout$"):
            await StoreConnection(f"redis://127.0.0.1:{port}", "fsync", 0.1, "test").connect()
        await left.wait()  # hung up, not left open


async def test_connect_with_a_missing_file_of_authorities_says_which_parameter_names_it() -> None:
    url = "rediss://127.0.0.1:1/0?ssl_ca_certs=/no/such/ca.pem"
    with pytest.raises(StoreUnavailable, match=r"^the store cannot be reached: the file of ssl_ca_certs cannot be"):
        await StoreConnection(url, "fsync", 5.0, "test").connect()


async def test_run_sends_the_text_only_to_calls_that_miss_it(services: Services, store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 9})
    source = LuaSource.read("audit")
    keys = sale.keys
    call = (7, keys.meta, keys.stock, keys.requests, keys.holds, keys.moves, keys.intake, keys.used)
    async with connection(services) as own:
        await tell(store, "SCRIPT", "FLUSH")
        replies = await own.run(source, [call, call])
        assert [len(r) for r in replies] == [8, 8]
        assert await tell(store, "SCRIPT", "EXISTS", source.sha) == [1]


async def test_exchange_keeps_replies_and_errors_in_their_places(services: Services, store: SharedConnection) -> None:
    async with connection(services) as own:
        replies = await own.exchange([("ECHO", "a"), ("HGET", "k"), ("ECHO", b"\r\n\0\xff"), ("EVALSHA", "0" * 40, 0)])
        assert (replies[0], replies[2]) == (b"a", b"\r\n\0\xff")
        assert isinstance(replies[1], ResponseError)
        assert isinstance(replies[3], RedisError)
        assert await own.exchange([]) == []


async def test_exchange_killed_in_the_middle_is_unknown_and_the_next_one_works(
    services: Services, store: SharedConnection
) -> None:
    async with connection(services) as own:
        client_id = await tell(own, "CLIENT", "ID")
        asking = asyncio.create_task(own.exchange([("SET", "k", "1"), ("BLPOP", "never", 0), ("SET", "k", "2")]))
        await eventually(lambda: blocked(store, client_id))
        assert await tell(store, "CLIENT", "KILL", "ID", client_id) == 1
        with pytest.raises(StoreUnavailable):
            await asking
        assert await tell(own, "GET", "k") == b"1"
        assert await tell(own, "CLIENT", "ID") != client_id


async def test_exchange_on_a_connection_killed_while_idle_is_unknown_once(
    services: Services, store: SharedConnection
) -> None:
    async with connection(services) as own:
        await tell(store, "CLIENT", "KILL", "ID", await tell(own, "CLIENT", "ID"))
        with pytest.raises(StoreUnavailable):
            await own.exchange([("ECHO", "a")])
        assert await tell(own, "ECHO", "b") == b"b"


async def test_exchange_after_a_loss_checks_the_promises_again(services: Services, store: SharedConnection) -> None:
    async with connection(services) as own:
        await tell(store, "CLIENT", "KILL", "ID", await tell(own, "CLIENT", "ID"))
        async with store_set(store, "appendfsync", "everysec"):
            with pytest.raises(StoreUnavailable):
                await own.exchange([("PING",)])
            with pytest.raises(StoreNotAsPromised):
                await own.exchange([("PING",)])


async def test_exchange_out_of_time_never_hands_its_reply_to_the_next_one(
    services: Services, store: SharedConnection
) -> None:
    async with connection(services, timeout_s=0.1) as own:
        client_id = await tell(own, "CLIENT", "ID")
        with pytest.raises(StoreUnavailable):
            await own.exchange([("ECHO", "stale"), ("BLPOP", "late", 0), ("ECHO", "stale")])
        await tell(store, "LPUSH", "late", "stale")
        for n in range(5):
            assert await tell(own, "ECHO", f"mine-{n}") == b"mine-%d" % n
        assert await tell(own, "CLIENT", "ID") != client_id


async def test_exchange_with_a_store_that_stands_still_is_unavailable_until_it_moves(
    services: Services, store: SharedConnection
) -> None:
    async with connection(services, timeout_s=0.1) as own:
        await own.connect()
        await tell(store, "CLIENT", "PAUSE", 400, "ALL")
        with pytest.raises(StoreUnavailable, match=r"^the store did not answer: timeout$"):
            await own.exchange([("ECHO", "stale")])

        async def answered() -> bytes | None:
            try:
                return bytes(await tell(own, "ECHO", "mine"))
            except StoreUnavailable:
                return None

        assert await eventually(answered) == b"mine"


async def test_exchange_cancelled_leaves_no_reply_behind(services: Services, store: SharedConnection) -> None:
    async with connection(services) as own:
        client_id = await tell(own, "CLIENT", "ID")
        asking = asyncio.create_task(own.exchange([("ECHO", "stale"), ("BLPOP", "late", 0), ("ECHO", "stale")]))
        await eventually(lambda: blocked(store, client_id))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await tell(store, "LPUSH", "late", "stale")
        assert await tell(own, "ECHO", "mine") == b"mine"
        assert await tell(own, "CLIENT", "ID") != client_id


async def test_exchange_after_a_cancelled_one_checks_the_promises_again(
    services: Services, store: SharedConnection
) -> None:
    """redis-py would connect again by itself, without looking."""
    async with connection(services) as own:
        client_id = await tell(own, "CLIENT", "ID")
        asking = asyncio.create_task(own.exchange([("BLPOP", "late", 0)]))
        await eventually(lambda: blocked(store, client_id))
        asking.cancel()
        await asyncio.wait([asking])
        async with store_set(store, "appendfsync", "everysec"):
            with pytest.raises(StoreNotAsPromised):
                await own.exchange([("PING",)])


async def test_shared_connection_gives_each_task_its_own_reply(services: Services, store: SharedConnection) -> None:
    names = [fresh("echo") for _ in range(100)]
    assert await asyncio.gather(*(tell(store, "ECHO", n) for n in names)) == [n.encode() for n in names]


async def test_shared_connection_one_cancelled_task_does_not_disturb_the_others(
    services: Services, store: SharedConnection
) -> None:
    shared = SharedConnection(services.store_url, "fsync", 10.0, fresh("test"))
    try:
        client_id = await tell(shared, "CLIENT", "ID")
        first = asyncio.create_task(shared.exchange([("ECHO", "stale"), ("BLPOP", "late", 0)]))
        await eventually(lambda: blocked(store, client_id))
        others = [asyncio.create_task(tell(shared, "ECHO", f"mine-{n}")) for n in range(5)]
        others[2].cancel()
        first.cancel()
        done = await asyncio.gather(*others, return_exceptions=True)
        assert [d for n, d in enumerate(done) if n != 2] == [b"mine-%d" % n for n in (0, 1, 3, 4)]
        assert isinstance(done[2], asyncio.CancelledError)
    finally:
        await shared.close()
