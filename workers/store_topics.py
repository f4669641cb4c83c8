"""The store's topics: holds that end, sold units that come back. Set-at-a-time, and idempotent by order id."""

import logging
import random
import time
from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from itertools import groupby

from asyncpg.pgproto.pgproto import UUID

from core.errors import StoreUnavailable
from core.ids import text_of
from core.ledger.pool import ask
from core.ledger.queries import query
from lua.keys import sale_keys
from lua.scripts import MAX_ENDED, GivebackCode, Scripts, Sold
from workers.outbox import Message, Outbox, backoff_s

logger = logging.getLogger("rushgate.relay")

TOPICS = ("settle", "release", "restock")
BATCH = 500  # messages in one claim
LEASE_S = 30.0  # after so long another relay takes over


class StoreTopics:
    """Carries what the outbox has for the store."""

    def __init__(self, outbox: Outbox, scripts: Scripts) -> None:
        self._outbox = outbox
        self._scripts = scripts
        self.delivered = 0

    async def serve(self, shard: int, topic: str) -> int:
        """A batch of one shard and topic: claimed, carried to the store, finished or put off. Returns the claimed.

        Raises: LedgerUnavailable; what was claimed comes back when its lease has passed.
        """
        claimed = await self._outbox.claim(shard, topic, BATCH, LEASE_S)
        messages = sorted(claimed, key=lambda m: (m.campaign, m.epoch))
        for (campaign, epoch), group in groupby(messages, key=lambda m: (m.campaign, m.epoch)):
            alike = list(group)
            for n in range(0, len(alike), MAX_ENDED):
                await self._carry(shard, topic, campaign, epoch, alike[n : n + MAX_ENDED])
        return len(messages)

    async def _carry(self, shard: int, topic: str, campaign: str, epoch: int, messages: list[Message]) -> None:
        began_s = time.monotonic()
        keys, ids = sale_keys(shard, campaign), [m.order_id.bytes for m in messages]
        codes: Sequence[IntEnum] | None
        try:
            if topic == "settle":
                codes = await self._scripts.settle(keys, epoch, ids)
            elif topic == "release":
                codes = await self._scripts.release(keys, epoch, ids)
            else:
                codes = await self._give_back(shard, campaign, epoch, messages)
        except StoreUnavailable as exc:
            return await self._put_off(shard, topic, messages, exc.detail)
        if codes is None:
            return await self._put_off(shard, topic, messages, f"the store does not hold {campaign}, epoch {epoch}")
        worked_ms = int((time.monotonic() - began_s) * 1000)
        outcomes = [code.name.lower() for code in codes]
        await self._outbox.finish(shard, topic, messages, [worked_ms] * len(messages), outcomes)
        self.delivered += len(messages)
        return None

    async def _give_back(
        self, shard: int, campaign: str, epoch: int, messages: list[Message]
    ) -> list[GivebackCode] | None:
        """Journalled first, then done, then marked as done: broken off anywhere, it is taken up again by its ids."""
        ledger = self._outbox.ledger
        wanted = [m.order_id for m in messages]
        rows = await ask(lambda: ledger.fetch(query("sold_orders"), shard, wanted))
        orders: dict[UUID, Sold] = {}
        for row in rows:
            who = (row["order_id"].bytes, row["buyer_id"], row["client_ip"], row["device_id"])
            orders.setdefault(row["order_id"], Sold(*who, {})).units[row["sku"]] = row["units"]
        moves = [
            (f"return.{text_of(m.order_id.bytes)}.{m.version}.{sku}", sku, units)
            for m in messages
            for sku, units in orders[m.order_id].units.items()
        ]
        ids, skus, units = (list(column) for column in zip(*moves, strict=True))
        journal = (query("put_move"), [shard] * len(ids), campaign, ids, skus, "return", units)
        await ask(partial(ledger.execute, *journal))
        codes = await self._scripts.giveback(sale_keys(shard, campaign), epoch, [orders[i] for i in wanted])
        if codes is not None:
            if GivebackCode.UNKNOWN in codes:
                raise StoreUnavailable(f"the store does not hold all SKUs of {campaign}")
            await ask(lambda: ledger.execute(query("end_moves"), shard, campaign, ids))
        return codes

    async def _put_off(self, shard: int, topic: str, messages: list[Message], why: str) -> None:
        logger.warning("messages put off", extra={"topic": topic, "shard": shard, "count": len(messages), "why": why})
        waits_s = [backoff_s(m.attempts, random.random()) for m in messages]  # noqa: S311 - spreads, hides nothing
        await self._outbox.put_off(shard, topic, messages, waits_s, [why] * len(messages))
