"""The relay worker: carries messages from the outbox to where they belong, again and again until they are done.

At least once, and every effect idempotent. A claim is a lease, not a lock: nothing in the ledger is held while another
system works. This one serves the store's topics: `release` and `settle`, set-at-a-time.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from asyncpg.pgproto.pgproto import UUID

from core.errors import LedgerUnavailable, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from lua.connection import StoreConnection
from lua.keys import sale_keys
from lua.scripts import MAX_ENDED, ReleaseCode, Scripts, SettleCode

logger = logging.getLogger("rushgate.relay")

TOPICS = ("settle", "release")
BATCH = 500  # messages in one claim
LEASE_S = 30.0  # after so long another relay takes over
LOOK_S = 0.1  # between two looks when nothing is due
AWAY_S = 1.0  # between two looks while the ledger is away
BACKOFF_S = (0.2, 30.0)  # of a message: first wait, longest wait


class Message(NamedTuple):
    """A claimed message of one shard and topic."""

    order_id: UUID
    version: int
    attempts: int
    waited_ms: int
    campaign: str
    epoch: int


def backoff_s(attempts: int, draw: float) -> float:
    """The wait before the next attempt: doubling, bounded, between half and the whole of it as `draw` (0 to 1) says."""
    whole = min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(attempts - 1, 30))
    return float(whole * (0.5 + draw / 2))


class RelayWorker:
    """Serves the store's topics of all shards."""

    def __init__(self, ledger: Pool, connection: StoreConnection, shards: Sequence[int]) -> None:
        self._ledger = ledger
        self._connection = connection
        self._scripts = Scripts(connection)
        self._shards = list(shards)
        self._stopping = asyncio.Event()
        self.delivered = 0  # messages, by this worker

    def stop(self) -> None:
        """The run ends after the batch in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until `stop`, through every absence of store and ledger."""
        while not self._stopping.is_set():
            try:
                pause_s = 0.0 if await self.step() else LOOK_S
            except LedgerUnavailable as exc:
                logger.warning("relay waits", extra={"why": exc.detail})
                pause_s = AWAY_S
            if pause_s:
                try:
                    await asyncio.wait_for(self._stopping.wait(), pause_s)
                except TimeoutError:
                    continue
        await self.run_down()

    async def run_down(self) -> None:
        """The connection is closed."""
        await self._connection.close()

    async def step(self) -> int:
        """One round over the topics and the shards that have something due. Returns the messages claimed.

        Raises: LedgerUnavailable; what was claimed comes back when its lease has passed.
        """
        total = 0
        for topic in TOPICS:
            rows = await ask(partial(self._ledger.fetch, query("outbox_shards"), self._shards, topic))
            for row in rows:
                if self._stopping.is_set():
                    return total
                total += await self._serve(row["shard"], topic)
        return total

    async def _serve(self, shard: int, topic: str) -> int:
        """A batch of one shard and topic: claimed, carried to the store, finished or put off."""
        rows = await ask(lambda: self._ledger.fetch(query("claim_messages"), shard, topic, BATCH, LEASE_S))
        messages = sorted((Message(**dict(r)) for r in rows), key=lambda m: (m.campaign, m.epoch))
        for (campaign, epoch), group in groupby(messages, key=lambda m: (m.campaign, m.epoch)):
            alike = list(group)
            for n in range(0, len(alike), MAX_ENDED):
                await self._carry(shard, topic, campaign, epoch, alike[n : n + MAX_ENDED])
        return len(messages)

    async def _carry(self, shard: int, topic: str, campaign: str, epoch: int, messages: list[Message]) -> None:
        began_s = time.monotonic()
        keys, ids = sale_keys(shard, campaign), [m.order_id.bytes for m in messages]
        codes: Sequence[ReleaseCode | SettleCode] | None
        try:
            if topic == "settle":
                codes = await self._scripts.settle(keys, epoch, ids)
            else:
                codes = await self._scripts.release(keys, epoch, ids)
        except StoreUnavailable as exc:
            return await self._put_off(shard, topic, messages, exc.detail)
        if codes is None:
            return await self._put_off(shard, topic, messages, f"the store does not hold {campaign}, epoch {epoch}")
        worked_ms = int((time.monotonic() - began_s) * 1000)
        columns: list[Any] = [
            [m.order_id for m in messages],
            [m.version for m in messages],
            [m.waited_ms for m in messages],
            [m.attempts for m in messages],
            worked_ms,
            [code.name.lower() for code in codes],
        ]
        await ask(lambda: self._ledger.execute(query("finish_messages"), shard, topic, *columns))
        self.delivered += len(messages)
        return None

    async def _put_off(self, shard: int, topic: str, messages: list[Message], why: str) -> None:
        logger.warning("messages put off", extra={"topic": topic, "shard": shard, "count": len(messages), "why": why})
        columns: list[Any] = [
            [m.order_id for m in messages],
            [m.version for m in messages],
            [backoff_s(m.attempts, random.random()) for m in messages],  # noqa: S311 - spreads, hides nothing
            why,
        ]
        await ask(lambda: self._ledger.execute(query("retry_messages"), shard, topic, *columns))
