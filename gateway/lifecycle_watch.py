"""Waiting for orders to change: any number of waiters, one question to the ledger per tick for all of them."""

import asyncio
from collections.abc import Callable
from functools import partial

from asyncpg.pgproto.pgproto import UUID

from core.errors import LedgerUnavailable, Overloaded
from core.ids import shard_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query

TICK_S = 0.1  # between two questions: how late a change is seen
AWAY_S = 1.0  # between two questions while the ledger is away
MAX_WAITERS = 20_000


class Watcher:
    """One per process; its task runs while anybody waits."""

    def __init__(self, ledger: Pool, stopping: Callable[[], bool]) -> None:
        """`stopping`: whether the process stops; then nobody is kept waiting."""
        self._ledger = ledger
        self.stopping = stopping
        self._waiters: dict[bytes, dict[asyncio.Future[int], int]] = {}
        self._count = 0
        self._task: asyncio.Task[None] | None = None

    async def newer(self, order_id: bytes, version: int, wait_s: float) -> int:
        """The order's version once it is beyond `version`; `version` itself if it is not so in time, or we stop.

        Raises: Overloaded if too many wait already.
        """
        if self._count >= MAX_WAITERS:
            raise Overloaded("too many wait for orders to change")
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(order_id, {})[answer] = version
        self._count += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())
        try:
            return await asyncio.wait_for(answer, wait_s)
        except TimeoutError:
            return version
        finally:
            self._count -= 1
            here = self._waiters[order_id]
            del here[answer]
            if not here:
                del self._waiters[order_id]

    async def stop(self) -> None:
        """No task of it runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while self._waiters:
            if self.stopping():
                self._answer(dict.fromkeys(self._waiters, None))
            else:
                pause_s = TICK_S
                ids = list(self._waiters)
                try:
                    columns = [shard_of(i) for i in ids], [UUID(i) for i in ids]
                    rows = await ask(partial(self._ledger.fetch, query("order_versions"), *columns))
                    self._answer({r["order_id"].bytes: r["version"] for r in rows})
                except LedgerUnavailable:
                    pause_s = AWAY_S
            await asyncio.sleep(pause_s if not self.stopping() else TICK_S)

    def _answer(self, versions: "dict[bytes, int | None]") -> None:
        """Those who wait for less than is there hear of it; None: whatever they wait for."""
        for order_id, there in versions.items():
            for answer, known in self._waiters.get(order_id, {}).items():
                if not answer.done() and (there is None or there > known):
                    answer.set_result(known if there is None else there)
