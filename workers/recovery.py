"""Watches over the life of the store beside the audits: one started anew is judged at once, not a round later."""

import asyncio
import logging
import time

from core.desk.recovery import Recovery
from core.errors import LedgerUnavailable, StoreUnavailable

logger = logging.getLogger("rushgate.recovery")

LOOK_S = 0.1  # between two looks at the store


class RecoveryWatch:
    """Runs within the reconcile worker."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery

    async def run(self, stopping: asyncio.Event) -> None:
        """A store that may be admitted is, soon after it answers. Ends when `stopping` is set."""
        waits_since_s: float | None = None
        while not stopping.is_set():
            try:
                if await self._recovery.step() and waits_since_s is not None:
                    waited_s = round(time.monotonic() - waits_since_s, 2)
                    logger.info("store is served again", extra={"waited_s": waited_s})
                    waits_since_s = None
            except (StoreUnavailable, LedgerUnavailable) as exc:
                if waits_since_s is None:
                    waits_since_s = time.monotonic()
                    logger.warning("recovery waits", extra={"why": exc.detail})
            try:
                await asyncio.wait_for(stopping.wait(), LOOK_S)
            except TimeoutError:
                continue
