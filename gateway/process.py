"""The gateway process: builds its parts, serves, and stops gracefully."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable

import msgspec
import uvicorn
import uvloop

from core.desk.access_books import AccessBooks
from core.desk.audit import Auditor
from core.desk.blocks import BlockDesk
from core.desk.campaigns import CampaignDesk
from core.desk.channels import ChannelDesk
from core.desk.listing import Listing
from core.desk.orders import OrderDesk
from core.desk.refunds import RefundDesk
from core.errors import ConfigInvalid, Fault, LedgerUnavailable
from core.ledger.deployment import claim_deployment
from core.ledger.pool import close_pool, open_pool
from core.metrics_server import MetricsServer
from core.rates import parse_rates
from core.settings import Settings
from core.signing import Signer
from core.trace_sinks import tracer_of
from gateway.access import Access
from gateway.access_admin import AccessAdmin
from gateway.access_watch import AccessWatch
from gateway.admin import Admin
from gateway.app import Application, rest
from gateway.balance import Balancer
from gateway.batch import BatchEndpoint
from gateway.catalogue import Catalogue
from gateway.cors import Cors, CorsApplication
from gateway.edge import Edge, open_files
from gateway.http import BoundedProtocol, overloaded
from gateway.intake import Intake
from gateway.lifecycle import Lifecycle
from gateway.lifecycle_watch import Watcher
from gateway.line_parts import LineParts, busy
from gateway.lookup import Lookup
from gateway.metrics import GatewayMetrics
from gateway.openapi import document
from gateway.orders import OrderEndpoint
from gateway.pressure import Pressure
from gateway.rates import Limiter
from gateway.short import ShortWay
from gateway.soldout import SoldOut
from gateway.stopping import StoppableServer
from gateway.take import Taker
from gateway.tls import handshakes_within, reload_at_sighup, server_context
from gateway.traced_calls import TracedCalls
from gateway.views import Views
from gateway.watch import StoreWatch, WatchedConnection
from gateway.witness import Witness
from lua.connection import StoreConnection
from lua.durability import Level
from lua.life import AdmittedConnection, AdmittedSharedConnection
from lua.registry import Lag, SignOfLife, Work

logger = logging.getLogger("rushgate.gateway")

LEDGER_CONNECTIONS = 4  # status look-ups and admin calls; intake needs none
BACKLOG = 4_096
KEEP_ALIVE_S = 75  # of a connection on which nothing comes
LINGER_S = 0.5  # how long a stopping gateway still answers on open connections
FLUSH_S = 1.0  # of the grace period, kept for the queue after the last connection has gone
GC_THRESHOLD = 50_000  # new objects between two collections of the youngest


class Server(StoppableServer):
    """uvicorn's server with our order of stopping: first not ready, then what is in flight, then the store."""

    def __init__(self, config: uvicorn.Config, views: Views) -> None:
        super().__init__(config)
        self._views = views

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connections; then every answer says that it is its connection's last; then the rest are closed.

        uvicorn's own closes idle connections at once, and with them requests that were on the wire already.
        """
        self._views.stopping = True
        for server in self.servers:
            server.close()
        # In place: the requests under way hold this very list.
        self.server_state.default_headers.append((b"connection", b"close"))
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LINGER_S
        while self.server_state.connections and loop.time() < until_s:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[tuple[Application, Views]]:
    """The application with its connections; afterwards all that was queued is answered and all is closed."""
    if not settings.store_url or not settings.ledger_dsn:
        raise ConfigInvalid("RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN must be set (`rushgate up` brings its own)")
    name = f"gateway-{os.getpid()}"
    tracer = tracer_of(settings, "gateway", name)
    level = Level.of(settings)

    def connection(kind: type[StoreConnection], what: str) -> StoreConnection:
        return kind(settings.store_url, level, settings.store_timeout_s, f"{name}-{what}")

    watch = StoreWatch()
    store = WatchedConnection(settings.store_url, level, settings.store_timeout_s, f"{name}-shared", watch)
    owned = [connection(AdmittedConnection, f"intake-{n}") for n in range(settings.store_connections)]
    units = AdmittedSharedConnection(settings.store_url, level, settings.store_timeout_s, f"{name}-units")
    ledger = await open_pool(settings.ledger_dsn, f"rushgate-{name}", settings.ledger_timeout_s, LEDGER_CONNECTIONS)

    def signer(given: tuple[str, ...], place: str) -> Signer | None:
        return Signer(given, place) if given else None

    access = Access(settings.channel_keys, settings.admin_token, settings.ticket_secrets, settings.signing_secrets)
    books = AccessBooks(store, ledger)
    access_watch = AccessWatch(access, store, books)
    catalogue = Catalogue(store, ledger, settings.shards)
    intake = Intake(owned, settings.queue_orders, settings.reserve_batch, watch, settings.queue_ms)
    limiter = Limiter(
        connection(AdmittedConnection, "rates"), intake, access, parse_rates(settings.rates), settings.queue_orders,
        settings.queue_ms, watch,
    )  # fmt: skip
    witness = Witness(ledger)
    intake.on_seq = witness.note
    for one in (*owned, store, units):
        one.greet = witness.meet
    pressure = Pressure(store, catalogue, intake, settings, witness)
    sold_out = SoldOut(units)
    taker = Taker(catalogue, intake, sold_out, Balancer(units), tracer)
    taker.limiter = limiter
    limiter.on_limited = catalogue.look_again  # no answer of a reservation tells that the rates have changed
    lookup = Lookup(catalogue, store, ledger)
    metrics = GatewayMetrics(intake, sold_out, catalogue, watch) if settings.metrics_listen else None
    if metrics is not None and tracer is not None:
        metrics.book.add(tracer.rows)
    scraped = MetricsServer(metrics.book, settings.metrics_listen) if metrics else None
    desk = CampaignDesk(store, ledger, settings.shards, settings.sold_out_lease_ms)
    auditor = Auditor(desk, store, ledger, settings.shards)
    openapi = msgspec.json.encode(document())
    exposition = metrics.book.exposition if metrics else None
    views = Views(access, catalogue, store, level, settings.retry_after_s, openapi, exposition)
    watcher = Watcher(ledger, lambda: views.stopping)
    orders = OrderDesk(ledger, settings.shards)
    lifecycle = Lifecycle(
        access, orders, RefundDesk(ledger, settings.shards),
        Listing(ledger, desk, settings.shards), lookup, watcher,
        signer(settings.payment_secrets, "RUSHGATE_PAYMENT_SECRETS"),
        signer(settings.partner_secrets, "RUSHGATE_PARTNER_SECRETS"), settings.retry_after_s,
    )  # fmt: skip
    admin = Admin(access, desk, auditor, catalogue, settings.retry_after_s)
    access_admin = AccessAdmin(
        access, ChannelDesk(books, settings.signing_secrets), BlockDesk(books), access_watch, settings.retry_after_s
    )
    rooms = AdmittedSharedConnection(settings.store_url, level, settings.store_timeout_s, f"{name}-rooms")
    rooms.greet = witness.meet
    lines = LineParts(
        settings, access, catalogue, desk, ledger, rooms, limiter, lambda: busy(intake, pressure),
        lambda: views.stopping,
    )  # fmt: skip
    routes = lifecycle.routes() + views.routes() + admin.routes() + access_admin.routes() + lines.calls.routes()
    everything_else = rest(routes, settings.retry_after_s)
    application = Application(
        OrderEndpoint(settings, access, taker),
        BatchEndpoint(settings, access, taker),
        everything_else if tracer is None else TracedCalls(everything_else, tracer, orders),
        intake.full,
        ShortWay(settings, access, taker) if settings.short_way == "on" else None,
        metrics,
    )
    application.line = lines.line
    if metrics is not None:
        metrics.limiter, metrics.rooms = limiter, lines.line.rooms
    try:
        await claim_deployment(ledger, settings.shards)
    except LedgerUnavailable as exc:
        logger.warning("gateway starts without the ledger", extra={"why": exc.detail})
    with contextlib.suppress(Fault):  # a reconcile worker judges the store, if this cannot be told now
        await desk.admit_fresh()
    await access_watch.start()
    sign = _sign(settings, name, taker, intake, lambda: scraped.url if scraped else "")
    if scraped is not None:
        await scraped.start()
    intake.start()
    limiter.start()
    pressure.start()
    sign.start()
    try:
        yield application, views
    finally:
        await sign.stop()
        if scraped is not None:
            await scraped.stop()
        await access_watch.stop()
        await lines.stop()
        await pressure.stop()
        await witness.stop()
        with contextlib.suppress(TimeoutError):  # of a store that does not answer now
            await asyncio.wait_for(_flush(limiter, intake), FLUSH_S)
        await limiter.stop()
        await intake.stop()
        await sold_out.stop()
        await units.close()
        await watcher.stop()
        await lookup.stop()
        await store.close()
        await close_pool(ledger)
        if tracer is not None:
            tracer.close()


async def _flush(limiter: Limiter, intake: Intake) -> None:
    """All that was queued has its answer."""
    await limiter.flush()
    await intake.flush()


def _sign(settings: Settings, name: str, taker: Taker, intake: Intake, metrics: Callable[[], str]) -> SignOfLife:
    """The sign of life of this gateway. It is as busy as its CPU time tells: one event loop does all the work."""

    def work() -> Work:
        totals = {"accepted": float(intake.accepted), "asked": float(intake.asked), "batches": float(intake.batches)}
        facts = {"refuses": intake.refusal.why if intake.refusal else ""}
        return Work(intake.asked + taker.gone, None, totals, facts)

    async def lag(_: StoreConnection) -> Lag:
        return Lag(intake.waiting)

    return SignOfLife(settings.store_url, "gateway", name, work, lag, reads="requests", metrics=metrics)


def listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    """A bound, listening socket. Raises ConfigInvalid with the setting to change if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise ConfigInvalid(
            f"port {port} on {host} cannot be used ({exc.strerror}): set RUSHGATE_PORT (or --port) to another one"
        ) from exc
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


async def serve(settings: Settings, sock: socket.socket) -> None:
    """Serves on `sock` until SIGTERM or SIGINT; then not ready, in-flight requests finished, queue flushed, closed."""
    edge = Edge(
        settings.max_connections, settings.address_connections, settings.request_timeout_s, KEEP_ALIVE_S,
        settings.retry_after_s,
    )  # fmt: skip
    files = open_files(settings.max_connections)
    if files < settings.max_connections:
        logger.warning("fewer files than connections: raise the limit", extra={"files": files})
    context = server_context(settings)
    async with build(settings) as (application, views):
        parts = {
            "edge": edge,
            "full": staticmethod(application.full),
            "refused": overloaded(settings.retry_after_s),
            "short_way": application.short_way,
            "tally": application.metrics.tally if application.metrics else None,
        }
        config = uvicorn.Config(
            CorsApplication(application, Cors(settings.cors_origins)) if settings.cors_origins else application,
            loop="uvloop",
            http=type("Protocol", (BoundedProtocol,), parts),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_context_factory=None if context is None else lambda *_: context,
            timeout_graceful_shutdown=max(1, int(settings.grace_s - LINGER_S - FLUSH_S)),
            backlog=BACKLOG,
        )
        # What is alive now stays alive, and requests leave no cycles behind them: the collector may come rarely.
        # It was a tenth of the gateway's CPU (py-spy, 128 connections).
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 100)
        reload_at_sighup(context, settings)
        if context is not None:
            handshakes_within(settings.request_timeout_s)
        edge.start()
        logger.info("gateway serves", extra={"port": sock.getsockname()[1]})
        server = Server(config, views)
        if application.metrics is not None:
            application.metrics.edge, application.metrics.served = edge, server.server_state
        await server.serve(sockets=[sock])
        await edge.stop()
    logger.info("gateway stopped")


def run(settings: Settings, fd: int | None = None) -> None:
    """The process from start to end. `fd`: a listening socket from the parent; otherwise processes share the port."""
    if fd is not None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
    else:
        sock = listen(settings.host, settings.port, reuse_port=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, sock))
