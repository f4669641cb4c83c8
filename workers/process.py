"""The worker processes: build their parts, work, and stop gracefully."""

import asyncio
import logging
import os
import secrets
import signal

import uvloop

from core.errors import ConfigInvalid, LedgerUnavailable
from core.ledger.migrate import require_current
from core.ledger.pool import Pool, ask, open_pool
from core.settings import Settings
from lua.connection import StoreConnection
from workers.ledger import BLOCK_MS, LedgerWorker
from workers.writer import LedgerWriter

logger = logging.getLogger("rushgate.worker")


async def _schema_is_current(ledger: Pool) -> None:
    async with ledger.acquire() as connection:
        await require_current(connection)


async def _wait_for_schema(ledger: Pool, stopping: asyncio.Event) -> None:
    """The ledger has this program's schema. Raises SchemaMismatch; waits while the ledger is away."""
    while not stopping.is_set():
        try:
            return await ask(lambda: _schema_is_current(ledger))
        except LedgerUnavailable as exc:
            logger.warning("worker waits for the ledger", extra={"why": str(exc)})
            try:
                await asyncio.wait_for(stopping.wait(), 1.0)
            except TimeoutError:
                continue


async def serve_ledger(settings: Settings) -> None:
    """A ledger worker until SIGTERM or SIGINT; then the batch in hand is finished."""
    if not settings.store_url or not settings.ledger_dsn:
        raise ConfigInvalid("RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN must be set (`rushgate up` brings its own)")
    # The random part keeps a restarted process with the same pid from answering for its predecessor's entries.
    name = f"ledger-{os.getpid()}-{secrets.token_hex(4)}"
    # A read waits for entries up to BLOCK_MS before the store answers; the time limit is for what comes on top.
    timeout_s = settings.store_timeout_s + BLOCK_MS / 1000
    connection = StoreConnection(settings.store_url, settings.durability, timeout_s, name)
    ledger = await open_pool(settings.ledger_dsn, f"rushgate-{name}", settings.ledger_timeout_s, size=1)
    stopping = asyncio.Event()
    worker = LedgerWorker(
        connection,
        LedgerWriter(ledger),
        range(settings.shards),
        name,
        settings.drain_orders,
        settings.claim_idle_ms,
    )

    def stop() -> None:
        stopping.set()
        worker.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await _wait_for_schema(ledger, stopping)
        logger.info("ledger worker runs", extra={"worker": name})
        await worker.run()
    finally:
        await connection.close()
        ledger.terminate()
    logger.info("ledger worker stopped", extra={"worker": name, "orders": worker.written, "dead": worker.dead})


def run_ledger(settings: Settings) -> None:
    """The process from start to end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_ledger(settings))
