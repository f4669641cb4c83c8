"""A campaign on several shards: stock follows demand, so "sold out" means sold out on all of them.

A transfer withdraws units from the richest shard and adds them to the poor one under the same move id; the source
keeps a note until both are done, so whoever meets the note after a crash can finish the transfer, and twice is once.
"""

import asyncio
import uuid
from enum import Enum
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from gateway.catalogue import Sale
from lua.connection import SharedConnection
from lua.scripts import Reading, RestockCode, Scripts


class Found(Enum):
    """What a search for units on the other shards came to."""

    HERE = "here"  # units are on the asking shard now: ask again
    NOTHING = "nothing"  # no shard has one, none is on its way
    TOO_FEW = "too few"  # all shards together have fewer than wanted
    BUSY = "busy"  # others moved the units while we looked: ask again


class Search(NamedTuple):
    """The result, for a refusal when its first question was sent, and for NOTHING the marks and the shortest lease of
    all shards, from then on."""

    found: Found
    mark: bytes = b""
    lease_ms: int = 0
    sent_s: float = 0.0


class Balancer:
    """Moves units between the shards of a campaign; one search per campaign, shard, SKU and wish at a time."""

    def __init__(self, store: SharedConnection) -> None:
        self._store = store
        self._scripts = Scripts(store)
        self._searches: dict[tuple[str, int, int, str, int], asyncio.Task[Search]] = {}

    async def seek(self, sale: Sale, slot: int, sku: str, wanted: int) -> Search:
        """`wanted` units of `sku` are on the shard of `slot`, if all shards have so many. Raises StoreUnavailable.

        That there are none is true of a moment after this call: a search that was under way may have read a shard
        before units came back to it, and its refusal is not ours.
        """
        which = (sale.campaign, sale.epoch, slot, sku, wanted)
        asked_s = asyncio.get_running_loop().time()
        while True:
            task = self._searches.get(which)
            if task is None or task.done():
                task = asyncio.get_running_loop().create_task(self._seek(sale, slot, sku, wanted))
                self._searches[which] = task
                task.add_done_callback(lambda t: self._ended(which, t))
            search = await asyncio.shield(task)
            if search.found in (Found.HERE, Found.BUSY) or search.sent_s >= asked_s:
                return search

    def _ended(self, which: tuple[str, int, int, str, int], task: asyncio.Task[Search]) -> None:
        if self._searches.get(which) is task:
            del self._searches[which]
        if not task.cancelled():
            task.exception()  # whoever asked has it; nobody may be there any more

    async def _seek(self, sale: Sale, slot: int, sku: str, wanted: int) -> Search:
        sent_s = asyncio.get_running_loop().time()
        readings = await self._scripts.audit(sale.keys)
        if any(r.meta.get("epoch") != str(sale.epoch) for r in readings):
            raise StoreUnavailable(f"not all shards hold campaign {sale.campaign} at epoch {sale.epoch}")
        finished = await self._finish_moves(sale, sku, readings)
        left = [r.on_sale(sku) for r in readings]
        if left[slot] >= wanted:
            return Search(Found.HERE)
        if finished:
            return Search(Found.BUSY)
        waits_ms = readings[slot].waits_ms(sku)
        if waits_ms and sum(left) >= wanted:
            # Units that came here now would wait too: ask again when this shard sells again, a lease at most.
            await asyncio.sleep(waits_ms / 1000)
            return Search(Found.BUSY)
        if sum(left) < wanted:
            return await self._verdict(sale, sku, readings, sent_s)
        missing = wanted - left[slot]
        rich_first = sorted((n for n in range(len(left)) if n != slot), key=lambda n: -left[n])
        for other in rich_first:
            # Half of what is there, so that two poor shards do not play ping-pong with the same units.
            units = min(left[other], max(missing, left[other] // 2))
            if units and await self._transfer(sale, other, slot, sku, units):
                missing -= units
            if missing <= 0:
                return Search(Found.HERE)
        return Search(Found.BUSY)

    async def _verdict(self, sale: Sale, sku: str, first: list[Reading], sent_s: float) -> Search:
        """A second reading shows whether units were moved while the first one went from shard to shard."""
        again = await self._scripts.audit(sale.keys)
        if [_moved(r, sku) for r in first] != [_moved(r, sku) for r in again]:
            return Search(Found.BUSY)
        if any(r.on_sale(sku) for r in first):
            return Search(Found.TOO_FEW, sent_s=sent_s)
        mark = b"|".join((("w" if r.waits_ms(sku) else "") + r.meta.get(f"r:{sku}", "0")).encode() for r in first)
        lease_ms = min(r.waits_ms(sku) or int(r.meta["lease_ms"]) for r in first)
        return Search(Found.NOTHING, mark, lease_ms, sent_s)

    async def _transfer(self, sale: Sale, source: int, target: int, sku: str, units: int) -> bool:
        move_id = f"x.{uuid.uuid4().hex}"
        code, _ = await self._scripts.restock(sale.keys[source], sale.epoch, move_id, sku, -units, sale.shards[target])
        if code is not RestockCode.DONE:
            return False
        await self._arrive(sale, source, target, move_id, sku, units)
        return True

    async def _arrive(self, sale: Sale, source: int, target: int, move_id: str, sku: str, units: int) -> None:
        code, _ = await self._scripts.restock(sale.keys[target], sale.epoch, move_id, sku, units, sale.shards[source])
        if code not in (RestockCode.DONE, RestockCode.REPEATED):
            raise StoreUnavailable(f"transfer {move_id} did not arrive: {code.name}")
        [reply] = await self._store.exchange([("HDEL", sale.keys[source].moves, move_id)])
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"the store answers {reply}")

    async def _finish_moves(self, sale: Sale, sku: str, readings: list[Reading]) -> bool:
        """Transfers that somebody began are finished; True if there were any of this SKU."""
        any_moved = False
        for source, reading in enumerate(readings):
            for move_id, (to, moved, units) in reading.moves.items():
                if moved == sku:
                    await self._arrive(sale, source, sale.shards.index(to), move_id, moved, units)
                    any_moved = True
        return any_moved


def _moved(reading: Reading, sku: str) -> tuple[int | None, bool]:
    """What a transfer changes on its source and on its target."""
    return reading.allocation.get(sku), any(moved == sku for _, moved, _ in reading.moves.values())
