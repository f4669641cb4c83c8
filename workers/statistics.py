"""What the ledger's planner believes of our tables, kept from being grossly wrong.

Prepared statements keep their plans. Those made while the tables are empty take any index that begins with the shard,
and read all of the shard for every order: some hundred times the work once a sale has begun. Autovacuum would notice,
a minute later by default, and a flash sale is over by then. ANALYZE makes every session plan anew.
"""

import asyncio
import logging
from functools import partial

import asyncpg

from core.errors import LedgerUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query

logger = logging.getLogger("rushgate.statistics")

# The large ones. Others may keep tables of their own beside ours.
TABLES = ["orders", "order_items", "order_events", "outbox", "deliveries", "payments", "refunds", "dead_messages"]
LOOK_S = 1.0  # between two looks; the ledger itself counts changes once a second
AWAY_S = 5.0  # between two looks while the ledger is away, or does not let us


class Statistics:
    """Analyses tables that have changed by half. The pool is the caller's; several of them do no harm."""

    def __init__(self, ledger: Pool) -> None:
        self._ledger = ledger
        self.analysed = 0  # tables, by this process

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until `stopping`, through every absence of the ledger."""
        while not stopping.is_set():
            pause_s = LOOK_S
            try:
                await self.step()
            except (LedgerUnavailable, asyncpg.PostgresError) as exc:
                logger.debug("statistics wait", extra={"why": str(exc)})
                pause_s = AWAY_S
            try:
                await asyncio.wait_for(stopping.wait(), pause_s)
            except TimeoutError:
                continue

    async def step(self) -> int:
        """Tables that changed much are analysed. Returns how many.

        Raises: LedgerUnavailable; asyncpg.PostgresError if the ledger does not let us.
        """
        rows = await ask(lambda: self._ledger.fetch(query("stale_tables"), TABLES))
        for row in rows:
            await ask(partial(self._ledger.execute, f"ANALYZE {row['name']}"))
        self.analysed += len(rows)
        return len(rows)
