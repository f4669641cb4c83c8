"""Embedded services that died by themselves are started again, on the same address and the same data."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

import asyncpg

from core.errors import Fault
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore

logger = logging.getLogger("rushgate.ops")

LOOK_S = 0.5

Service = EmbeddedStore | EmbeddedLedger


@contextlib.asynccontextmanager
async def kept(services: Sequence[Service]) -> AsyncIterator[None]:
    """While inside, a service that is gone is started again within a second or so; a failed start is tried again."""
    # Each by itself: a replica that waits for its primary's data must not keep the primary from being started.
    tasks = [asyncio.create_task(_keep(service)) for service in services]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep(service: Service) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        if service.pid is None:
            logger.error("embedded service died, it is started again", extra={"log": str(service.log)})
            try:
                await service.start()
            except (Fault, OSError, asyncpg.PostgresError):  # a full disk, say: the next look tries again
                logger.exception("embedded service does not start")
