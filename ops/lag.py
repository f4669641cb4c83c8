"""How far the ledger is behind the store during a rush, sampled beside it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import NamedTuple

from core.errors import Fault
from core.ledger.pool import ask
from core.ledger.queries import query
from lua.keys import sale_keys
from lua.scripts import Scripts
from ops.desk import Desk

SAMPLE_S = 0.025
DRAIN_S = 120.0  # longest wait for the ledger after the rush


class Sample(NamedTuple):
    """Orders accepted by the store, and of these in the ledger, at one moment."""

    at_s: float
    accepted: int
    persisted: int

    @property
    def lag(self) -> int:
        return self.accepted - self.persisted


class LagWatch:
    """Samples of one campaign. The spike ends with the last order that was accepted."""

    def __init__(self, desk: Desk, campaign: str, home: list[int]) -> None:
        self._desk = desk
        self._scripts = Scripts(desk.store)
        self._campaign = campaign
        self._home = home
        self.samples: list[Sample] = []

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Samples are taken while inside; leaving waits until the ledger has all, at most DRAIN_S."""
        task = asyncio.create_task(self._watch())
        try:
            yield
            until_s = asyncio.get_running_loop().time() + DRAIN_S
            while (await self._sample()).lag and asyncio.get_running_loop().time() < until_s:  # noqa: ASYNC110
                await asyncio.sleep(SAMPLE_S)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(Fault):  # a sample that cannot be had is not taken
                await self._sample()
            await asyncio.sleep(SAMPLE_S)

    async def _sample(self) -> Sample:
        readings = await self._scripts.audit([sale_keys(shard, self._campaign) for shard in self._home])
        persisted = 0
        for shard, reading in zip(self._home, readings, strict=True):
            where = (shard, self._campaign, int(reading.meta.get("epoch", "0")), reading.seq, reading.base)
            row = await ask(partial(self._desk.ledger.fetchrow, query("audit_orders"), *where))
            persisted += row["persisted"] + row["dead"] if row else 0
        sample = Sample(asyncio.get_running_loop().time(), sum(r.seq for r in readings), persisted)
        self.samples.append(sample)
        return sample

    def rows(self) -> list[tuple[str, str]]:
        """The lag in words: at its most, when the last order was accepted, and the time from then until it was 0."""
        if not self.samples:
            return []
        final = max(s.accepted for s in self.samples)
        end = next(s for s in self.samples if s.accepted == final)
        drained = next((s for s in self.samples if s.accepted == final and not s.lag), None)
        took = f"{drained.at_s - end.at_s:.2f} s" if drained else f"not within {DRAIN_S:.0f} s"
        return [
            ("ledger lag at its most", f"{max(s.lag for s in self.samples):,} orders"),
            ("ledger lag at the end of the spike", f"{end.lag:,} orders"),
            ("time to drain it", took),
        ]
