"""Who rebuilds a campaign: one at a time, for as long as it gives signs of life. A courtesy, so that nobody works for
nothing: what keeps two from harming each other is that each has an epoch of its own."""

import asyncio
import contextlib
import logging
from types import TracebackType
from typing import Self

from core.desk.campaigns import Campaign
from core.errors import LedgerUnavailable, Refused
from core.ledger.pool import Pool, ask
from core.ledger.queries import query

logger = logging.getLogger("rushgate.rebuild")

LEASE_S = 10.0  # after so long without a sign another one may take over
RENEW_S = 2.0


class Lease:
    """Of a campaign whose rebuild has begun under `known.epoch`. In its context the lease is renewed, however long a
    single step takes; afterwards anybody may rebuild."""

    def __init__(self, ledger: Pool, first: int, known: Campaign, who: str) -> None:
        """`first`: the campaign's first shard."""
        self._ledger = ledger
        self._known = known
        self._values = (first, known.campaign, known.epoch, who)
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raises Refused if somebody else has taken over."""
        if self._lost:
            raise Refused(f"campaign {self._known.campaign} is being rebuilt by somebody else")

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._keep(), name="rebuild lease")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await ask(lambda: self._ledger.execute(query("leave_rebuild"), *self._values))
        except LedgerUnavailable:  # then the lease runs out
            logger.warning("rebuild left without a farewell", extra={"campaign": self._known.campaign})

    async def _keep(self) -> None:
        while not self._lost:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(LedgerUnavailable):  # tried again; if it runs out, the epoch still guards
                renewed = await ask(lambda: self._ledger.fetchval(query("renew_rebuild"), *self._values, LEASE_S))
                # end_rebuild gives it up too, and then nobody asks any more.
                self._lost = renewed is None
