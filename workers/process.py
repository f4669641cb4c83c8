"""The worker processes: build their parts, work, and stop gracefully."""

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable
from typing import Protocol

import uvloop

from core.errors import ConfigInvalid, LedgerUnavailable
from core.ledger.deployment import claim_deployment
from core.ledger.migrate import require_current
from core.ledger.pool import Pool, ask, close_pool, open_pool
from core.metrics_server import MetricsServer
from core.settings import Settings
from core.trace_sinks import tracer_of
from core.tracing import Tracer
from lua.connection import SharedConnection, StoreConnection
from lua.durability import Level
from lua.life import AdmittedConnection
from workers.access_keeper import AccessKeeper
from workers.expiry import ExpiryWorker
from workers.ledger import BLOCK_MS, LedgerWorker
from workers.metrics import WorkerMetrics
from workers.partners import partners_of
from workers.reconcile import ReconcileWorker
from workers.relay import RelayWorker
from workers.signs import sign_of
from workers.writer import LedgerWriter

logger = logging.getLogger("rushgate.worker")


async def _schema_is_current(ledger: Pool) -> None:
    async with ledger.acquire() as connection:
        await require_current(connection)


async def _wait_for_ledger(ledger: Pool, shards: int, stopping: asyncio.Event) -> None:
    """The ledger has this program's schema and number of shards. Raises SchemaMismatch, ConfigInvalid; waits while
    the ledger is away."""
    while not stopping.is_set():
        try:
            await ask(lambda: _schema_is_current(ledger))
            await claim_deployment(ledger, shards)
            return
        except LedgerUnavailable as exc:
            logger.warning("worker waits for the ledger", extra={"why": str(exc)})
            try:
                await asyncio.wait_for(stopping.wait(), 1.0)
            except TimeoutError:
                continue


class Worker(Protocol):
    """What every worker can do."""

    def stop(self) -> None: ...
    async def run(self) -> None: ...


def _ledger_worker(settings: Settings, ledger: Pool, name: str, tracer: Tracer | None) -> LedgerWorker:
    # A read waits for entries up to BLOCK_MS before the store answers; the time limit is for what comes on top.
    connection = _store(settings, name, settings.store_timeout_s + BLOCK_MS / 1000)
    shards = range(settings.shards)
    writer = LedgerWriter(ledger)
    drain = settings.drain_orders, settings.claim_idle_ms, settings.drain_pause_ms
    return LedgerWorker(connection, writer, shards, name, *drain, tracer=tracer)


def _expiry_worker(settings: Settings, ledger: Pool, name: str, tracer: Tracer | None) -> ExpiryWorker:
    return ExpiryWorker(ledger, range(settings.shards), tracer)


def _relay_worker(settings: Settings, ledger: Pool, name: str, tracer: Tracer | None) -> RelayWorker:
    partners = partners_of(settings.partners_url, settings.partner_secrets, tracer)
    # An older copy of the store may have units left that are sold.
    store = AdmittedConnection(settings.store_url, Level.of(settings), settings.store_timeout_s, name)
    return RelayWorker(ledger, store, range(settings.shards), partners)


def _reconcile_worker(settings: Settings, ledger: Pool, name: str, tracer: Tracer | None) -> ReconcileWorker:
    store = SharedConnection(settings.store_url, Level.of(settings), settings.store_timeout_s, name)
    auto = settings.recovery == "auto"
    every_s, lease_ms = settings.reconcile_every_s, settings.sold_out_lease_ms
    own = SharedConnection(settings.store_url, Level.of(settings), settings.store_timeout_s, f"{name}-access")
    access = AccessKeeper(own, ledger)
    return ReconcileWorker(store, ledger, settings.shards, lease_ms, every_s, auto, name, access)


def _store(settings: Settings, name: str, timeout_s: float) -> StoreConnection:
    return StoreConnection(settings.store_url, Level.of(settings), timeout_s, name)


KINDS: dict[str, Callable[[Settings, Pool, str, Tracer | None], Worker]] = {
    "ledger": _ledger_worker,
    "expiry": _expiry_worker,
    "relay": _relay_worker,
    "reconcile": _reconcile_worker,
}
# To the ledger, if not 1: a relay claims and records at the same time, a reconcile worker audits, analyses, watches and
# counts.
CONNECTIONS = {"relay": 2, "reconcile": 4}


async def serve(settings: Settings, kind: str) -> None:
    """A worker of this kind until SIGTERM or SIGINT; then what is in hand is finished."""
    if not settings.store_url or not settings.ledger_dsn:
        raise ConfigInvalid("RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN must be set (`rushgate up` brings its own)")
    # The random part keeps a restarted process with the same pid from answering for its predecessor's entries.
    name = f"{kind}-{os.getpid()}-{secrets.token_hex(4)}"
    ledger = await open_pool(
        settings.ledger_dsn, f"rushgate-{name}", settings.ledger_timeout_s, size=CONNECTIONS.get(kind, 1)
    )
    stopping = asyncio.Event()
    tracer = tracer_of(settings, kind, name) if kind != "reconcile" else None  # which works on no order of its own
    worker = KINDS[kind](settings, ledger, name, tracer)
    metrics = WorkerMetrics(settings, worker, ledger, kind, name) if settings.metrics_listen else None
    if metrics is not None and tracer is not None:
        metrics.book.add(tracer.rows)
    scraped = MetricsServer(metrics.book, settings.metrics_listen) if metrics else None
    sign = sign_of(settings, worker, ledger, kind, name, lambda: scraped.url if scraped else "")

    def stop() -> None:
        stopping.set()
        worker.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if metrics is not None and scraped is not None:
        metrics.start()
        await scraped.start()
    sign.start()
    try:
        await _wait_for_ledger(ledger, settings.shards, stopping)
        logger.info("worker runs", extra={"worker": name})
        await worker.run()
    finally:
        await sign.stop()
        if metrics is not None and scraped is not None:
            await scraped.stop()
            await metrics.stop()
        await close_pool(ledger)
        if tracer is not None:
            tracer.close()
    logger.info("worker stopped", extra={"worker": name})


def run(settings: Settings, kind: str) -> None:
    """The process from start to end; `kind` is one of KINDS."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, kind))
