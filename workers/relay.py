"""The relay worker: carries messages from the outbox to where they belong, again and again until they are done.

At least once, and every effect idempotent. A claim is a lease, not a lock: nothing in the ledger is held while another
system works. The store's topics are served set-at-a-time, the partners' (workers/partners.py) many at a time.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from core.desk.orders import OrderDesk
from core.errors import LedgerUnavailable
from core.ledger.pool import Pool
from lua.connection import StoreConnection
from lua.scripts import Scripts
from workers.idle import Idle
from workers.outbox import Outbox, backoff_s
from workers.partners import Partners
from workers.pulse import Pulse
from workers.store_topics import TOPICS, StoreTopics

__all__ = ["RelayWorker", "backoff_s"]

logger = logging.getLogger("rushgate.relay")

LOOK_S = 0.1  # between two looks when nothing is due
AWAY_S = 1.0  # between two looks while the ledger is away


class RelayWorker:
    """Serves all topics of all shards of the deployment; those of partners only if there are any.

    Made in a running event loop.
    """

    def __init__(
        self,
        ledger: Pool,
        connection: StoreConnection,
        shards: Sequence[int],
        partners: Callable[[Outbox], Partners] | None = None,
    ) -> None:
        self.outbox = Outbox(ledger)
        self._connection = connection
        self._store = StoreTopics(self.outbox, Scripts(connection), OrderDesk(ledger, len(shards)))
        self.partners = partners(self.outbox) if partners else None
        self._wake = self.partners.roomier if self.partners else asyncio.Event()
        self._shards = list(shards)
        self._stopping = False
        self.idle = Idle()
        self.pulse = Pulse()

    @property
    def delivered(self) -> int:
        """Messages, by this worker."""
        return self._store.delivered + (self.partners.delivered if self.partners else 0)

    def stop(self) -> None:
        """The run ends after what is in hand."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Works until `stop`, through every absence of store, ledger and partners."""
        while not self._stopping:
            self._wake.clear()
            try:
                pause_s = 0.0 if await self.step() else LOOK_S
                self.pulse.beat()
            except LedgerUnavailable as exc:
                logger.warning("relay waits", extra={"why": exc.detail})
                pause_s = AWAY_S
            if pause_s and not self._stopping:
                with self.idle.waiting(), contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause_s)
        await self.run_down()

    async def run_down(self) -> None:
        """What is on its way is finished, the connections are closed."""
        if self.partners:
            await self.partners.stop()
        await self._connection.close()

    async def step(self) -> int:
        """One round over the topics and the shards that have something due. Returns the messages claimed.

        Raises: LedgerUnavailable; what was claimed comes back when its lease has passed.
        """
        topics = [*TOPICS, *(self.partners.topics() if self.partners else [])]
        total = 0
        for topic, shard in await self.outbox.due(self._shards, topics):
            if self._stopping:
                break
            if topic in TOPICS:
                total += await self._store.serve(shard, topic)
            elif self.partners:
                total += await self.partners.serve(shard, topic)
        return total
