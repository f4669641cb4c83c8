"""Channels, keys and blocks in the ledger, and how the gateways hear of a change: one turn, one version, one copy."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import asyncpg
import msgspec

from core.errors import SchemaMismatch, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from lua.access import AccessCopy, BlockCopy, ChannelCopy, KeyCopy, publish, published_version
from lua.connection import StoreConnection

T = TypeVar("T")


class AccessBooks:
    """One per process; the store connection and the pool are the caller's."""

    def __init__(self, store: StoreConnection, ledger: Pool) -> None:
        self._store = store
        self._ledger = ledger

    async def change(self, work: Callable[[Any], Awaitable[T]]) -> tuple[T, bool]:
        """What `work(connection)` gives, in one transaction, and whether the store has it too.

        Changes go one after another. Raises: what `work` raises, and then nothing is changed; LedgerUnavailable,
        SchemaMismatch.
        """
        value, copy = await self._ask(partial(self._change, work))
        try:
            await publish(self._store, copy)  # False: a later change was faster, and its copy has this one in it
        except StoreUnavailable:
            return value, False
        return value, True

    async def read(self, name: str) -> list[Any]:
        """The rows of a query without parameters. Raises: LedgerUnavailable, SchemaMismatch."""
        return await self._ask(lambda: self._ledger.fetch(query(name)))

    async def copy(self) -> AccessCopy:
        """All as the ledger has it. Raises: LedgerUnavailable, SchemaMismatch."""
        return await self._ask(self._copy)

    async def renew(self) -> bool:
        """The store's copy is as new as the ledger; whether it had to be written.

        Raises: LedgerUnavailable, StoreUnavailable, SchemaMismatch.
        """
        rows = await self.read("access_version")
        there = await published_version(self._store)
        if there is not None and there >= (rows[0]["version"] if rows else 0):
            return False
        return await publish(self._store, await self.copy())

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await ask(call)
        except asyncpg.UndefinedTableError as exc:
            raise SchemaMismatch("the ledger's schema is missing or old: run `rushgate migrate`") from exc

    async def _change(self, work: Callable[[Any], Awaitable[T]]) -> tuple[T, AccessCopy]:
        async with self._ledger.acquire() as connection, connection.transaction():
            version = await connection.fetchval(query("next_access_version"))
            value = await work(connection)
            return value, await _read_copy(connection, version)

    async def _copy(self) -> AccessCopy:
        # One snapshot: a change in between would leave the copy half old under a version that is none of its own.
        async with self._ledger.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            version = await connection.fetchval(query("access_version"))
            return await _read_copy(connection, version or 0)


async def _read_copy(connection: Any, version: int) -> AccessCopy:
    channels = [
        ChannelCopy(
            r["channel"],
            r["state"] == "active",
            None if r["campaigns"] is None else msgspec.json.decode(r["campaigns"], type=list[str]),
            msgspec.json.decode(r["rates"], type=dict[str, str]),
        )
        for r in await connection.fetch(query("list_channels"))
    ]
    now_ms = int(time.time() * 1000)
    keys = [
        KeyCopy(r["key_id"], r["channel"], r["kind"] == "signing", r["digest"], _ms(r["expires_at"]))
        for r in await connection.fetch(query("list_channel_keys"))
        if r["revoked_at"] is None and not 0 < _ms(r["expires_at"]) <= now_ms
    ]
    blocks = [
        BlockCopy(r["kind"], r["value"], _ms(r["until_at"])) for r in await connection.fetch(query("list_blocks"))
    ]
    return AccessCopy(version, channels, keys, blocks)


def _ms(at: Any) -> int:
    return 0 if at is None else int(at.timestamp() * 1000)
