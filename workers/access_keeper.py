"""Sees to it that the gateways hear of every change of channels, keys and blocks, also one whose maker could not tell
the store."""

import asyncio
import contextlib
import logging

from core.desk.access_books import AccessBooks
from core.errors import Fault
from core.ledger.pool import Pool
from lua.connection import SharedConnection

logger = logging.getLogger("rushgate.reconcile")

EVERY_S = 2.0


class AccessKeeper:
    """One per reconcile worker; any number of them may work."""

    def __init__(self, store: SharedConnection, ledger: Pool) -> None:
        """`store`: its own connection: what it writes may wait for as long as a store takes no writes."""
        self._store = store
        self._books = AccessBooks(store, ledger)

    async def run(self, stopping: asyncio.Event) -> None:
        """Looks until `stopping`, through every absence of store and ledger, of which others tell."""
        while not stopping.is_set():
            try:
                if await self._books.renew():
                    logger.info("channels published again")
            except Fault as exc:
                logger.debug("channels not compared", extra={"why": exc.detail})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), EVERY_S)
        await self._store.close()
