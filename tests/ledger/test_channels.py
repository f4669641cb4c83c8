"""Channels, keys and blocks in the ledger: what is kept of a key, what a change publishes, and who comes first."""

import asyncio
import time
from typing import Any

import asyncpg
import pytest

from core.desk import blocks as block_module
from core.desk import channels as channel_module
from core.desk.access_books import AccessBooks
from core.desk.blocks import BlockDesk, BlockSpec
from core.desk.channels import (
    MAX_LIVE,
    ChannelChange,
    ChannelDesk,
    ChannelSpec,
    ChannelUnknown,
    NewKey,
    Rotation,
    signing_key,
)
from core.errors import ConfigInvalid, Invalid, Refused, SchemaMismatch
from core.ledger.pool import Pool, open_pool
from gateway.access import Access
from gateway.access_watch import AccessWatch
from lua.access import AccessCopy, publish, published, published_version
from lua.connection import SharedConnection
from lua.keys import access_key
from tests.conftest import Services
from tests.support import eventually, tell
from workers.access_keeper import AccessKeeper

MASTER = "signing-secret-of-tests"


@pytest.fixture
def books(store: SharedConnection, ledger: Pool) -> AccessBooks:
    return AccessBooks(store, ledger)


@pytest.fixture
def channels(books: AccessBooks) -> ChannelDesk:
    return ChannelDesk(books, (MASTER,))


@pytest.fixture
def blocks(books: AccessBooks) -> BlockDesk:
    return BlockDesk(books)


class Gate:
    """What a gateway process knows, after a look."""

    def __init__(self, store: SharedConnection, books: AccessBooks, master: str = MASTER) -> None:
        self.access = Access({}, "", (), (master,))
        self.watch = AccessWatch(self.access, store, books)

    async def opens(self, key: NewKey) -> bool:
        await self.watch.look()
        if key.kind == "signing":
            return key.key_id.encode() in self.access._signers
        return self.access.caller(b"Bearer " + key.key.encode()) is not None


@pytest.fixture
def gate(store: SharedConnection, books: AccessBooks) -> Gate:
    return Gate(store, books)


def one(name: str, **fields: Any) -> ChannelSpec:
    return ChannelSpec(name, **fields)


async def everything(ledger: Pool) -> str:
    """All that the ledger holds, as text."""
    tables = [r[0] for r in await ledger.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    rows = [str(r[0]) for t in tables for r in await ledger.fetch(f"SELECT to_jsonb(t)::text FROM {t} t")]  # noqa: S608
    return "\n".join(rows)


async def test_ledger_and_store_hold_no_key_of_any_kind(
    channels: ChannelDesk, ledger: Pool, store: SharedConnection, gate: Gate
) -> None:
    keys = [await channels.add(one("shop")), await channels.add(one("server", kind="signing"))]
    assert [await gate.opens(k) for k in keys] == [True, True]
    held = (await everything(ledger)).encode() + (await tell(store, "HGET", access_key(), "copy"))
    for key in keys:
        assert key.key_id.encode() in held  # the look finds what is there
        assert key.key.encode() not in held
        assert key.key.split("_", 2)[2].encode() not in held  # what is random of it; that may hold a _ too
        assert channel_module.digest(key.key).hex().encode() in held


async def test_signing_key_comes_from_the_secret_and_its_id_alone(channels: ChannelDesk) -> None:
    key = await channels.add(one("server", kind="signing"))
    assert key.key == signing_key(MASTER, "server", key.key_id)


async def test_signing_key_without_a_secret_is_refused_and_leaves_nothing(books: AccessBooks) -> None:
    desk = ChannelDesk(books, ())
    with pytest.raises(ConfigInvalid, match="RUSHGATE_SIGNING_SECRETS"):
        await desk.add(one("server", kind="signing"))
    assert await desk.list() == []


async def test_rotated_keys_both_open_until_the_old_one_ends(channels: ChannelDesk, gate: Gate) -> None:
    old = await channels.add(one("shop"))
    new = await channels.rotate("shop", Rotation(keep_s=60))
    assert (await gate.opens(old), await gate.opens(new)) == (True, True)
    gate.access.expire(int((time.time() + 61) * 1000))
    assert gate.access.caller(b"Bearer " + old.key.encode()) is None
    assert gate.access.caller(b"Bearer " + new.key.encode()) is not None
    states = {k.key_id: k.state for k in (await channels.show("shop")).keys}
    assert states == {old.key_id: "expiring", new.key_id: "active"}


async def test_rotation_that_keeps_nothing_ends_the_old_key_at_once(channels: ChannelDesk, gate: Gate) -> None:
    old = await channels.add(one("shop"))
    new = await channels.rotate("shop", Rotation(keep_s=0, kind="signing"))
    assert (await gate.opens(old), await gate.opens(new), new.kind) == (False, True, "signing")


async def test_rotation_never_gives_an_old_key_more_time(channels: ChannelDesk) -> None:
    old = await channels.add(one("shop"))
    await channels.rotate("shop", Rotation(keep_s=60))
    first = next(k.expires_at for k in (await channels.show("shop")).keys if k.key_id == old.key_id)
    await channels.rotate("shop", Rotation(keep_s=6_000))
    assert next(k.expires_at for k in (await channels.show("shop")).keys if k.key_id == old.key_id) == first


async def test_keys_of_a_channel_are_bounded(channels: ChannelDesk) -> None:
    await channels.add(one("shop"))
    for _ in range(MAX_LIVE - 1):
        await channels.rotate("shop", Rotation())
    with pytest.raises(Refused, match="8 keys"):
        await channels.rotate("shop", Rotation())
    for _ in range(channel_module.KEPT + 3):
        await channels.rotate("shop", Rotation(keep_s=0))
    assert len((await channels.show("shop")).keys) == channel_module.KEPT + 1


async def test_revoked_key_opens_nothing_and_its_sister_does(channels: ChannelDesk, gate: Gate) -> None:
    old = await channels.add(one("shop"))
    new = await channels.rotate("shop", Rotation())
    for _ in range(2):  # again, it is so already
        shown = await channels.revoke("shop", old.key_id)
    assert {k.key_id: k.state for k in shown.keys} == {old.key_id: "revoked", new.key_id: "active"}
    assert (await gate.opens(old), await gate.opens(new)) == (False, True)


async def test_revoked_channel_comes_back_with_a_new_key_only(channels: ChannelDesk, gate: Gate) -> None:
    old = await channels.add(one("shop"))
    assert (await channels.revoke("shop", None)).state == "revoked"
    assert not await gate.opens(old)
    with pytest.raises(Refused, match="was revoked"):
        await channels.rotate("shop", Rotation())
    new = await channels.add(one("shop"))
    assert (await gate.opens(old), await gate.opens(new)) == (False, True)


async def test_key_of_another_channel_is_not_revoked_by_its_id(channels: ChannelDesk, gate: Gate) -> None:
    mine, other = await channels.add(one("shop")), await channels.add(one("web"))
    with pytest.raises(Invalid, match="has no key"):
        await channels.revoke("shop", other.key_id)
    assert await gate.opens(mine)
    assert await gate.opens(other)


async def test_unknown_channel_is_told_by_every_call(channels: ChannelDesk) -> None:
    for call in (
        channels.show("x"), channels.rotate("x", Rotation()), channels.revoke("x", None),
        channels.set("x", ChannelChange(campaigns=None)), channels.show("x' OR true --"),
    ):  # fmt: skip
        with pytest.raises(ChannelUnknown):
            await call


async def test_what_a_channel_may_do_is_changed_part_by_part(channels: ChannelDesk, gate: Gate) -> None:
    key = await channels.add(one("shop", campaigns=["b", "a", "b"], rates={"channel": "5/s"}))
    assert (await channels.show("shop")).campaigns == ["a", "b"]
    assert (await channels.set("shop", ChannelChange(rates={}))).campaigns == ["a", "b"]
    shown = await channels.set("shop", ChannelChange(campaigns=None))
    assert (shown.campaigns, shown.rates) == (None, {})
    await channels.set("shop", ChannelChange(campaigns=[], rates={"channel": "500/s:1000"}))
    assert await gate.opens(key)
    caller = gate.access.caller(b"Bearer " + key.key.encode())
    assert caller is not None
    assert (caller.policy.campaigns, dict(caller.policy.rates)) == (frozenset(), {"channel": "500/s:1000"})
    for bad in ({"channel": "many"}, {"planet": "5/s"}):
        with pytest.raises(Invalid):
            await channels.set("shop", ChannelChange(rates=bad))


async def test_many_changes_at_once_leave_the_newest_copy_in_the_store(
    channels: ChannelDesk, books: AccessBooks, store: SharedConnection
) -> None:
    names = [f"c{n}" for n in range(20)]
    await asyncio.gather(*(channels.add(one(name)) for name in names))
    copy = await published(store)
    assert copy is not None
    assert sorted(c.channel for c in copy.channels) == sorted(names)
    assert copy == await books.copy()
    assert not await books.renew()  # nothing to do


async def test_older_copy_never_replaces_a_newer_one(store: SharedConnection) -> None:
    newer, older = AccessCopy(2, [], [], []), AccessCopy(1, [], [], [])
    assert await publish(store, newer)
    assert not await publish(store, older)
    assert await publish(store, newer)  # repeated
    assert await published(store) == newer


async def test_store_that_lost_its_copy_gets_it_again_from_a_gateway(
    channels: ChannelDesk, store: SharedConnection, gate: Gate
) -> None:
    key = await channels.add(one("shop"))
    assert await gate.opens(key)
    await tell(store, "FLUSHALL")
    assert await gate.opens(key)  # its own copy was in force all the while
    assert await published_version(store) == gate.access.version


async def test_older_copy_of_the_store_does_not_open_again_what_was_revoked(
    channels: ChannelDesk, store: SharedConnection, gate: Gate
) -> None:
    key = await channels.add(one("shop"))
    [old] = await store.exchange([("DUMP", access_key())])
    await channels.revoke("shop", None)
    assert not await gate.opens(key)
    await store.exchange([("RESTORE", access_key(), 0, old, "REPLACE")])
    assert not await gate.opens(key)
    assert await published_version(store) == gate.access.version


async def test_ledger_away_and_store_empty_leaves_the_last_copy_in_force(
    channels: ChannelDesk, store: SharedConnection, books: AccessBooks, gate: Gate, services: Services
) -> None:
    key = await channels.add(one("shop"))
    nowhere = await open_pool("postgresql://x@127.0.0.1:1/x", "test", 1.0, size=1)
    lone = Gate(store, AccessBooks(store, nowhere))
    assert await lone.opens(key)
    await tell(store, "FLUSHALL")
    assert await lone.opens(key)
    assert await published_version(store) is None
    fresh = Gate(store, AccessBooks(store, nowhere))
    assert not await fresh.opens(key)
    assert fresh.access.version is None  # so a stranger is told 503
    assert await gate.opens(key)  # whose ledger is there
    assert await fresh.opens(key)
    nowhere.terminate()


async def test_copy_that_cannot_be_read_leaves_the_last_one_in_force(
    channels: ChannelDesk, store: SharedConnection, gate: Gate
) -> None:
    key = await channels.add(one("shop"))
    assert await gate.opens(key)
    await tell(store, "HSET", access_key(), "version", str(2**52), "copy", "nonsense")
    assert await gate.opens(key)
    await tell(store, "SET", access_key(), "no hash")
    assert await gate.opens(key)


async def test_change_that_the_store_did_not_hear_of_is_published_by_the_keeper(
    store: SharedConnection, ledger: Pool, gate: Gate
) -> None:
    away = SharedConnection("redis://127.0.0.1:1/0", "fsync", 0.2, "test")
    key = await ChannelDesk(AccessBooks(away, ledger), ()).add(one("shop"))
    assert not key.in_force
    await publish(store, AccessCopy(1, [], [], []))  # as it was before: no gateway asks the ledger then
    assert not await gate.opens(key)
    stopping = asyncio.Event()
    task = asyncio.create_task(AccessKeeper(store, ledger).run(stopping))
    await eventually(lambda: gate.opens(key))
    stopping.set()
    await task


async def test_blocks_end_by_themselves_and_are_bounded(
    blocks: BlockDesk, gate: Gate, monkeypatch: pytest.MonkeyPatch, ledger: Pool
) -> None:
    monkeypatch.setattr(block_module, "MAX_BLOCKS", 2)
    await blocks.put(BlockSpec("buyer", "eve", 60.0, "resells"))
    await blocks.put(BlockSpec("ip", "10.1.2.3/8"))
    await blocks.put(BlockSpec("buyer", "eve", 30.0))  # the same one: no more of them
    with pytest.raises(Refused):
        await blocks.put(BlockSpec("buyer", "mallory"))
    await gate.watch.look()
    assert "eve" in gate.access.blocks.buyers
    assert gate.access.blocks.has_address("10.9.9.9")
    gate.access.expire(int((time.time() + 31) * 1000))
    assert "eve" not in gate.access.blocks.buyers
    await ledger.execute("UPDATE blocks SET until_at = now() - interval '1 s' WHERE value = 'eve'")
    assert [b.value for b in await blocks.list()] == ["10.0.0.0/8"]
    await blocks.put(BlockSpec("buyer", "mallory"))  # there is room again
    assert await blocks.drop("ip", "10.255.0.0/8") == (True, True)
    assert await blocks.drop("ip", "10.255.0.0/8") == (False, True)


async def test_ledger_without_the_tables_is_told_as_an_old_schema(books: AccessBooks, ledger: Pool, gate: Gate) -> None:
    await ledger.execute("DROP TABLE channels")
    with pytest.raises(SchemaMismatch):
        await books.copy()
    await gate.watch.look()  # goes on without


async def test_control_changes_without_a_turn_publish_a_copy_that_lacks_one(
    channels: ChannelDesk, ledger: Pool, dsn: str
) -> None:
    """Control: why `next_access_version` is a turn. Without it the copies of two changes at once miss each other."""
    await channels.add(one("first"))
    two = [await asyncpg.connect(dsn) for _ in range(2)]
    seen = []
    for n, connection in enumerate(two):
        await connection.execute("BEGIN")
        await connection.execute("INSERT INTO channels (shard, channel, state) VALUES (0, $1, 'active')", f"x{n}")
    for connection in two:
        seen.append(len(await connection.fetch("SELECT FROM channels")))
        await connection.execute("COMMIT")
        await connection.close()
    assert min(seen) < 3
