"""Sold out from memory: for as long as the store has promised that nothing of a SKU will be on sale.

The promise is a lease (lua/reserve.lua): units that come back to an empty SKU wait one lease before they are on sale,
so "sold out" is exact for the whole lease. What must still reach the store is a repeated key that was accepted before:
the accepted keys are fetched once per flag, and cannot grow for this SKU while the flag stands.
"""

import asyncio
import logging
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from gateway.catalogue import Sale
from lua.connection import SharedConnection

logger = logging.getLogger("rushgate.gateway")

MAX_KEYS = 500_000  # accepted keys remembered by one process, some 60 bytes each; beyond it the store is asked
SCAN = 1_000

Which = tuple[str, int, str]  # campaign, epoch, SKU


class Flag(NamedTuple):
    """`mark` names the period without returned units; `keys` are hashes of the accepted request fields."""

    mark: bytes
    keys: frozenset[int]


class SoldOut:
    """The flags of one gateway process."""

    def __init__(self, store: SharedConnection) -> None:
        self._store = store
        self._until_s: dict[Which, float] = {}
        self._flags: dict[Which, Flag] = {}
        self._loading: dict[Which, asyncio.Task[None]] = {}

    def holds(self, sale: Sale, lines: tuple[str | int, ...], field: bytes) -> str:
        """The SKU of `lines` that is surely sold out for a request that surely was not accepted before, or ''."""
        if not self._until_s:
            return ""
        for sku in lines[::2]:
            which = (sale.campaign, sale.epoch, str(sku))
            until_s = self._until_s.get(which)
            if until_s is None:
                continue
            if until_s <= asyncio.get_running_loop().time():
                del self._until_s[which]
            elif hash(field) not in self._flags[which].keys:
                return which[2]
        return ""

    def raise_flag(self, sale: Sale, sku: str, ms: int, mark: bytes, sent_s: float) -> None:
        """`sku` is sold out on all shards of `sale` for `ms` from `sent_s` on, the moment the question was sent."""
        which = (sale.campaign, sale.epoch, sku)
        flag = self._flags.get(which)
        if flag is not None and flag.mark == mark:
            self._until_s[which] = sent_s + ms / 1000
        elif which not in self._loading and ms > 0:
            task = asyncio.get_running_loop().create_task(self._load(which, sale, mark))
            self._loading[which] = task
            task.add_done_callback(lambda _: self._loading.pop(which, None))

    def standing(self) -> int:
        """How many flags stand now."""
        now_s = asyncio.get_running_loop().time()
        return sum(until_s > now_s for until_s in self._until_s.values())

    async def _load(self, which: Which, sale: Sale, mark: bytes) -> None:
        """The accepted keys are known; the next lease with this mark raises the flag."""
        self._flags.pop(which, None)
        self._until_s.pop(which, None)
        room = MAX_KEYS - sum(len(f.keys) for f in self._flags.values())
        found: set[int] = set()
        try:
            for keys in sale.keys:
                cursor = b"0"
                while True:
                    [reply] = await self._store.exchange([("HSCAN", keys.requests, cursor, "COUNT", SCAN)])
                    if isinstance(reply, RedisError):
                        raise StoreUnavailable(str(reply))
                    cursor, pairs = reply
                    found.update(map(hash, pairs[::2]))
                    if len(found) > room:
                        return
                    if cursor == b"0":
                        break
        except StoreUnavailable:
            logger.warning("accepted keys not read", extra={"campaign": which[0], "sku": which[2]})
            return
        self._flags[which] = Flag(mark, frozenset(found))

    async def stop(self) -> None:
        """No task of it runs."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
