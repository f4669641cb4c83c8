"""Faults of the ledger: killed, restarted, locked, out of connections, its statements cancelled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg

from tests.faults.nemesis.faults import Scene, fault, meanwhile
from tests.faults.nemesis.stack import LEDGER_TIMEOUT_S

OURS = "application_name LIKE 'rushgate-%' AND application_name NOT LIKE 'rushgate-command-%'"


@fault("ledger")
async def ledger_kill(scene: Scene) -> AsyncIterator[None]:
    """kill -9 of the ledger."""
    await scene.stack.ledger.kill()
    try:
        yield
    finally:
        await scene.stack.ledger.start()


@fault("ledger")
async def ledger_restart(scene: Scene) -> AsyncIterator[None]:
    """An orderly stop, and a start."""
    await scene.stack.ledger.stop()
    try:
        yield
    finally:
        await scene.stack.ledger.start()


@contextlib.asynccontextmanager
async def _connection(scene: Scene) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(scene.stack.ledger.dsn, timeout=10)
    try:
        yield connection
    finally:
        connection.terminate()


@fault("ledger")
async def ledger_lock(scene: Scene) -> AsyncIterator[None]:
    """The orders are locked for longer than any statement may wait."""
    async with _connection(scene) as admin, admin.transaction():
        await admin.execute("LOCK TABLE orders")
        await asyncio.sleep(LEDGER_TIMEOUT_S)
        yield


@fault("ledger")
async def ledger_connections(scene: Scene) -> AsyncIterator[None]:
    """Every connection that the ledger has is used up by others, and ours are ended."""
    held: list[asyncpg.Connection] = []
    async with _connection(scene) as admin:
        try:
            await admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")  # noqa: S608
            with contextlib.suppress(asyncpg.PostgresError):
                while True:
                    held.append(await asyncpg.connect(scene.stack.ledger.dsn, timeout=10))
            yield
        finally:
            for connection in held:
                connection.terminate()


@contextlib.asynccontextmanager
async def _every_backend(scene: Scene, function: str, every_s: float) -> AsyncIterator[None]:
    async with _connection(scene) as admin:

        async def act() -> None:
            await admin.execute(f"SELECT {function}(pid) FROM pg_stat_activity WHERE {OURS}")  # noqa: S608 - constants

        async with meanwhile(act, every_s):
            yield


@fault("ledger")
async def ledger_cancel(scene: Scene) -> AsyncIterator[None]:
    """Every statement that runs is cancelled, 20 times a second, as by a statement timeout."""
    async with _every_backend(scene, "pg_cancel_backend", 0.05):
        yield


@fault("ledger")
async def ledger_terminate(scene: Scene) -> AsyncIterator[None]:
    """Every connection of ours is ended, 5 times a second."""
    async with _every_backend(scene, "pg_terminate_backend", 0.2):
        yield
