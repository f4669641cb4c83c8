"""The expiry worker: orders whose time to pay has passed are expired, to the second, in bounded batches.

Any number of them share the work: rows that one works on are passed over by the others.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from core.errors import LedgerUnavailable
from core.flows import FLOWS
from core.flows.table import Step
from core.ledger.pool import Pool, ask
from core.ledger.queries import query

logger = logging.getLogger("rushgate.expiry")

BATCH = 500  # orders in one transaction
LOOK_S = 0.2  # between two looks when nothing is due
AWAY_S = 1.0  # between two looks while the ledger is away


def expiry_step() -> Step:
    """The step that all flows have in common. Raises ValueError if they have not."""
    steps = {flow.step(flow.first, "expire") for flow in FLOWS.values()}
    if len(steps) != 1 or None in steps:
        raise ValueError("the flows differ in how an order expires")
    [step] = steps
    assert step is not None  # noqa: S101 - for the type checker
    return step


class ExpiryWorker:
    """Expires orders of all shards."""

    def __init__(self, ledger: Pool, shards: Sequence[int]) -> None:
        self._ledger = ledger
        self._shards = list(shards)
        self._step = expiry_step()
        self._stopping = asyncio.Event()
        self.expired = 0  # orders, by this worker
        self.late_s = 0.0  # of the latest order, since the start

    def stop(self) -> None:
        """The run ends after the batch in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until `stop`, through every absence of the ledger."""
        while not self._stopping.is_set():
            try:
                expired = await self.step()
                pause_s = 0.0 if expired else LOOK_S
            except LedgerUnavailable as exc:
                logger.warning("expiry waits", extra={"why": exc.detail})
                pause_s = AWAY_S
            if pause_s:
                try:
                    await asyncio.wait_for(self._stopping.wait(), pause_s)
                except TimeoutError:
                    continue

    async def step(self) -> int:
        """One round over the shards that have something due, a batch each. Returns the orders expired by it.

        Raises: LedgerUnavailable; what was expired stays so.
        """
        total = 0
        rows = await ask(lambda: self._ledger.fetch(query("due_shards"), self._shards))
        for row in rows:
            if self._stopping.is_set():
                break
            total += await ask(partial(self._expire, row["shard"]))
        self.expired += total
        return total

    async def _expire(self, shard: int) -> int:
        step = self._step
        row = await self._ledger.fetchrow(
            query("expire_orders"), shard, BATCH, step.to, step.action, "system", step.reason, list(step.messages)
        )
        if row is None:
            return 0
        self.late_s = max(self.late_s, row["late_s"])
        return int(row["expired"])
