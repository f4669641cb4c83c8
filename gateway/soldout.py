"""Sold out from memory: for as long as the store has promised that nothing of a SKU will be on sale.

The promise is a lease (lua/reserve.lua): units that come back to an empty SKU wait one lease before they are on sale,
so "sold out" is exact for the whole lease. What must still reach the store is a repeated key that was accepted before:
the accepted keys are fetched once a flag is wanted, and cannot grow for this SKU until its mark changes, which it does
when units come back and again when they are on sale.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from gateway.catalogue import Sale
from lua.connection import SharedConnection
from lua.life import QUESTIONS, read

logger = logging.getLogger("rushgate.gateway")

MAX_KEYS = 500_000  # accepted keys remembered by one process, some 60 bytes each; beyond it the store is asked
SCAN = 1_000
FORGET_S = 60.0  # keys of a campaign none of whose flags was wanted for so long are dropped
TOO_MANY_S = 10.0  # after so long it is looked again whether the keys have room

Life = tuple[str, int]  # campaign, epoch


class Flag:
    """One SKU. Up until `until_s`, and only if the campaign's keys were read after `since_s`."""

    __slots__ = ("mark", "since_s", "until_s")

    def __init__(self, mark: bytes, since_s: float, until_s: float) -> None:
        self.mark = mark  # of the period in which it has been empty
        self.since_s = since_s  # when we first knew it to be empty in this period
        self.until_s = until_s


class Keys(NamedTuple):
    """Hashes of the accepted request fields of a campaign, all that were there at `read_s`; some later ones too."""

    hashes: set[int]
    read_s: float


class SoldOut:
    """The flags of one gateway process."""

    def __init__(self, store: SharedConnection) -> None:
        self._store = store
        self.flags: dict[Life, dict[str, Flag]] = {}
        self._keys: dict[Life, Keys] = {}
        self._too_many_s: dict[Life, float] = {}
        self._loading: dict[Life, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop  # kept: asking for it costs a getpid() each time in Python 3.11

    def holds(self, sale: Sale, skus: Iterable[str], field: bytes) -> str:
        """The one of `skus` that is surely sold out for a request that surely was not accepted before, or ''."""
        life = sale.life
        flags, keys = self.flags.get(life), self._keys.get(life)
        if flags is None or keys is None or hash(field) in keys.hashes:
            return ""
        for sku in skus:
            flag = flags.get(sku)
            if flag is not None and flag.since_s <= keys.read_s and flag.until_s > self._loop.time():
                return sku
        return ""

    def raise_flag(self, sale: Sale, sku: str, ms: int, mark: bytes, sent_s: float) -> None:
        """`sku` is sold out on all shards of `sale` for `ms` from `sent_s` on, the moment the question was sent."""
        if ms <= 0:
            return
        self._loop = asyncio.get_running_loop()
        now_s = self._loop.time()
        life = sale.life
        flags = self.flags.setdefault(life, {})
        flag = flags.get(sku)
        if flag is None or flag.mark != mark:
            flag = flags[sku] = Flag(mark, now_s, sent_s + ms / 1000)
        flag.until_s = max(flag.until_s, sent_s + ms / 1000)
        keys = self._keys.get(life)
        stale = keys is None or keys.read_s < flag.since_s
        if stale and life not in self._loading and self._too_many_s.get(life, 0.0) < now_s:
            self._loading[life] = self._loop.create_task(self._load(life, sale))
            self._loading[life].add_done_callback(lambda _: self._loading.pop(life, None))

    async def _load(self, life: Life, sale: Sale) -> None:
        """The campaign's accepted keys of now are known."""
        loop = asyncio.get_running_loop()
        read_s = loop.time()
        self._forget_old(read_s)
        known = self._keys.get(life)
        found = known.hashes if known else set()
        others = sum(len(k.hashes) for k in self._keys.values()) - len(found)
        try:
            served_by = await self._served_by(sale)
            for keys in sale.keys:
                cursor = b"0"
                while True:
                    [reply] = await self._store.exchange([("HSCAN", keys.requests, cursor, "COUNT", SCAN)])
                    if isinstance(reply, RedisError):
                        raise StoreUnavailable(str(reply))
                    cursor, pairs = reply
                    found.update(map(hash, pairs[::2]))
                    if others + len(found) > MAX_KEYS:
                        self._keys.pop(life, None)
                        self._too_many_s[life] = loop.time() + TOO_MANY_S
                        return
                    if cursor == b"0":
                        break
            # The same server and epoch on all shards from before the first key to after the last: a store that was
            # emptied or replaced meanwhile has no keys, and a flag would refuse whoever should find an order again.
            if await self._served_by(sale) != served_by:
                raise StoreUnavailable("the store was started anew meanwhile")
        except StoreUnavailable as exc:
            logger.warning("accepted keys not read", extra={"campaign": life[0], "why": exc.detail})
            return
        self._keys[life] = Keys(found, read_s)

    async def _served_by(self, sale: Sale) -> str:
        """The run of the server that has this very campaign on all its shards. Raises: StoreUnavailable."""
        epochs = [("HGET", keys.meta, "epoch") for keys in sale.keys]
        replies = await self._store.exchange([*QUESTIONS, *epochs])
        seen = read(replies[: len(QUESTIONS)])
        if not seen.admitted or any(reply != b"%d" % sale.epoch for reply in replies[len(QUESTIONS) :]):
            raise StoreUnavailable(f"the store does not hold campaign {sale.campaign} as it should")
        return seen.run_id

    def _forget_old(self, now_s: float) -> None:
        """Campaigns whose last flag fell long ago leave nothing behind."""
        for life, flags in list(self.flags.items()):
            if all(f.until_s < now_s - FORGET_S for f in flags.values()):
                del self.flags[life]
                self._keys.pop(life, None)
                self._too_many_s.pop(life, None)

    def up(self) -> int:
        """How many flags are up now."""
        if not self.flags:
            return 0
        now_s = self._loop.time()
        return sum(flag.until_s > now_s for flags in self.flags.values() for flag in flags.values())

    async def stop(self) -> None:
        """No task of it runs."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
