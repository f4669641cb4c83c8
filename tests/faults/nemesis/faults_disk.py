"""Faults of the disks under store and ledger: full, and slow to sync."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
from redis.exceptions import RedisError

from ops.embedded import ServiceFailed
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.faults.nemesis.faults import Scene, Skipped, fault, launched_with, mono_s, until
from tests.faults.nemesis.slow_disk import SlowDisk
from tests.faults.nemesis.small_disk import fill
from tests.faults.nemesis.stack import STORE_TIMEOUT_S

FULL = b"No space left on device"
FELT_S = 5.0  # a full disk is felt at the next page that is new
SERVED_S = 5.0
BACK_S = 60.0  # the ledger's recovery, once there is room
SYNC_MS = (20, 200, 1_500)  # the last one is beyond the time that the gateway waits for the store
ENOUGH = 0.8  # of the wait that was asked for, as measured


@fault("ledger")
async def ledger_disk_full(scene: Scene) -> AsyncIterator[None]:
    """The disk of the ledger is full, half of the times with its log at the end of a segment: then it ends, and is
    started again when there is room."""
    ledger = scene.stack.ledger
    if scene.stack.ledger.dir not in scene.stack.small_disks:
        raise Skipped("the ledger is not on a small disk of its own: no right to mount a tmpfs")
    ballast = ledger.dir / "ballast"
    seen = ledger.log.stat().st_size
    await asyncio.to_thread(fill, ballast)
    try:
        if scene.draw.random() < 0.5:
            with contextlib.suppress(asyncpg.PostgresError, OSError):
                connection = await asyncpg.connect(ledger.dsn, timeout=10)
                try:
                    await connection.execute("SELECT pg_switch_wal()")
                finally:
                    connection.terminate()
        is_felt = await until(lambda: FULL in ledger.log.read_bytes()[seen:], FELT_S)
        yield
    finally:
        ballast.unlink()
        await running(ledger)
    if not is_felt:
        raise Skipped(f"the ledger needed no new page in {FELT_S} s")


async def running(ledger: EmbeddedLedger) -> None:
    """It answers, whether it was down, on its way down or in recovery."""
    until_s = mono_s() + BACK_S
    while True:
        try:
            await ledger.start()
            connection = await asyncpg.connect(ledger.dsn, timeout=10)
            await connection.close()
            return
        except (asyncpg.PostgresError, OSError, ServiceFailed):
            if mono_s() > until_s:
                raise
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _slow_sync(
    scene: Scene, server: EmbeddedStore | EmbeddedLedger, name: str, ms: int, write: Callable[[], Awaitable[object]]
) -> AsyncIterator[None]:
    """Each sync takes `ms` longer, as `write` can tell. The server is restarted for it, once."""
    disk = SlowDisk(scene.stack.folder, name)
    await disk.make()
    if not disk.is_under(server.pid):
        await server.stop()
        before = scene.load.definite
        with launched_with(server, disk.environment):
            await server.start()
        await until(lambda: scene.load.definite > before, SERVED_S)  # the slow disk is the fault, not the restart
    disk.set(ms)
    try:
        began_s = mono_s()
        await write()
        took_ms = (mono_s() - began_s) * 1_000
        assert took_ms >= ENOUGH * ms, f"a write took {took_ms:.0f} ms although each sync should wait for {ms} ms"
        yield
    finally:
        disk.set(0)


@fault("store")
async def store_slow_fsync(scene: Scene) -> AsyncIterator[None]:
    """Each fsync of the store takes 20, 200 or 1,500 ms: answers within the time limit, 503 beyond it, never none."""
    ms = scene.draw.choice(SYNC_MS)

    async def write() -> None:
        async with scene.redis() as store:
            with contextlib.suppress(RedisError):
                await store.set("nemesis", "1", px=1)

    before = scene.load.answers["order: none"]
    async with _slow_sync(scene, scene.stack.store, "store", ms, write):
        yield
    if ms < STORE_TIMEOUT_S * 1_000 / 2 and scene.faults == 1:  # longer ones are waited for one after another
        assert scene.load.answers["order: none"] == before, f"orders without any answer at {ms} ms per fsync"


@fault("ledger")
async def ledger_slow_fsync(scene: Scene) -> AsyncIterator[None]:
    """Each fsync of the ledger takes 20, 200 or 1,500 ms: commits are late, orders are accepted as ever."""
    ms = scene.draw.choice(SYNC_MS)

    async def write() -> None:
        connection = await asyncpg.connect(scene.stack.ledger.dsn, timeout=30)
        try:
            await connection.execute("SELECT pg_logical_emit_message(true, 'nemesis', 'x')")
        finally:
            connection.terminate()

    async with _slow_sync(scene, scene.stack.ledger, "ledger", ms, write):
        yield
