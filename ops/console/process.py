"""The console process: builds its parts, serves, and stops gracefully. Nothing of it runs in a gateway."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator

import uvicorn
import uvloop
from starlette.types import ASGIApp

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.listing import Listing
from core.desk.room import RoomDesk
from core.errors import ConfigInvalid
from core.ledger.pool import Pool, close_pool, open_pool
from core.metrics import Book
from core.metrics_server import MetricsServer
from core.settings import Settings
from gateway.catalogue import Catalogue
from gateway.edge import Edge
from gateway.http import BoundedProtocol
from gateway.lookup import Lookup
from gateway.stopping import StoppableServer
from gateway.tls import reload_at_sighup, server_context
from lua.connection import SharedConnection, StoreConnection
from lua.durability import Level
from lua.registry import Sign, SignOfLife, Work, read_signs
from ops.console.access import AccessLists
from ops.console.address import listening
from ops.console.app import BASE, Console, application
from ops.console.books import Books
from ops.console.campaigns import Campaigns
from ops.console.gathered import Gathered
from ops.console.guard import Guard
from ops.console.live import Live
from ops.console.orders import Orders
from ops.console.outbox import Outbox
from ops.console.search import Search
from ops.console.sessions import Sessions
from ops.console.static_files import Files
from ops.console.workers import Workers
from ops.desk import Desk

logger = logging.getLogger("rushgate.console")

LEDGER_CONNECTIONS = 4
CONNECTIONS_MAX = 128  # at once, open pages among them
KEEP_ALIVE_S = 30
EXCHANGE_S = 2.0  # for the signs of life


class Server(StoppableServer):
    """uvicorn's server that lets the open pages go before it waits for what is in flight."""

    def __init__(self, config: uvicorn.Config, live: Live) -> None:
        super().__init__(config)
        self._live = live

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._live.stop()
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[tuple[ASGIApp, Live]]:
    """The application with its connections; afterwards all is closed. Store and ledger may be away.

    Raises: ConfigInvalid.
    """
    if not settings.store_url or not settings.ledger_dsn:
        raise ConfigInvalid("RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN must be set (`rushgate up` brings its own)")
    if not settings.admin_token:
        raise ConfigInvalid("RUSHGATE_ADMIN_TOKEN must be set: the console lets nobody in without it")
    name = f"console-{os.getpid()}"
    level = Level.of(settings)
    # Two to the store: the sampler's second must not wait for an operator's audit.
    store = SharedConnection(settings.store_url, level, settings.store_timeout_s, name)
    watched = SharedConnection(settings.store_url, level, settings.store_timeout_s, f"{name}-live")
    signs = StoreConnection(settings.store_url, "memory", EXCHANGE_S, f"{name}-signs")
    tuning = StoreConnection(settings.store_url, "memory", EXCHANGE_S, f"{name}-tune")
    ledger = await open_pool(settings.ledger_dsn, f"rushgate-{name}", settings.ledger_timeout_s, LEDGER_CONNECTIONS)
    desk = _desk(store, ledger, settings)
    books = Books(_desk(watched, ledger, settings), settings.shards)
    gathered = Gathered(watched.exchange)

    async def living() -> list[Sign]:
        return (await read_signs(signs.exchange))[0]

    guard = Guard(Sessions(settings.admin_token, settings.console_session_s))
    live = Live(settings, books, gathered.text, living)
    lookup = Lookup(Catalogue(store, ledger, settings.shards), store, ledger)
    listing = Listing(ledger, desk.campaigns, settings.shards)
    rooms = RoomDesk(desk.campaigns, store, ledger, settings.shards, settings.ticket_ttl_s)
    channels = sorted({name.partition(".")[0] for name in settings.channel_keys})
    app = application(
        Console(settings, guard, live, gathered, Files(BASE)),
        Campaigns(guard, desk, books, live, rooms),
        Outbox(guard, desk, live),
        Search(guard, desk, books, live, lookup, listing, settings.shards, channels),
        Orders(guard, desk, settings.shards),
        Workers(guard, settings, tuning),
        AccessLists(guard, desk, channels),
    )
    scraped = MetricsServer(Book("console"), settings.metrics_listen)
    sign = SignOfLife(
        settings.store_url, "console", name, lambda: Work(0), reads="all, for operators", metrics=lambda: scraped.url
    )
    await scraped.start()
    sign.start()
    live.start()
    try:
        yield app, live
    finally:
        await live.stop()
        await sign.stop()
        await scraped.stop()
        await lookup.stop()
        for connection in (store, watched, signs, tuning):
            await connection.close()
        await close_pool(ledger)


def _desk(store: SharedConnection, ledger: Pool, settings: Settings) -> Desk:
    campaigns = CampaignDesk(store, ledger, settings.shards, settings.sold_out_lease_ms)
    return Desk(campaigns, Auditor(campaigns, store, ledger, settings.shards), store, ledger)


async def serve(settings: Settings, sock: socket.socket) -> None:
    """Serves on `sock` until SIGTERM or SIGINT."""
    edge = Edge(CONNECTIONS_MAX, 0, settings.request_timeout_s, KEEP_ALIVE_S, settings.retry_after_s)
    context = server_context(settings)
    async with build(settings) as (app, live):
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=type("Protocol", (BoundedProtocol,), {"edge": edge}),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_context_factory=None if context is None else lambda *_: context,
            timeout_graceful_shutdown=max(1, int(settings.grace_s) - 2),
        )
        reload_at_sighup(context, settings)
        edge.start()
        logger.info("console serves", extra={"port": sock.getsockname()[1], "pid": os.getpid()})
        await Server(config, live).serve(sockets=[sock])
        await edge.stop()
    logger.info("console stopped", extra={"pid": os.getpid()})


def run(settings: Settings, fd: int | None = None) -> None:
    """The process from start to end. `fd`: a listening socket from the parent."""
    if fd is not None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
    else:
        sock = listening(settings, or_free=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, sock))
