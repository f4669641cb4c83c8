"""Worker processes of the fault tests."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import asyncpg

from core.ledger.pool import Pool
from core.settings import Settings

Process = asyncio.subprocess.Process
Spawn = Callable[[str, Settings], Awaitable[Process]]  # the kind of worker, its settings


async def die(child: Process) -> None:
    """By SIGKILL."""
    child.kill()
    assert await child.wait() == -signal.SIGKILL


async def stop(child: Process) -> None:
    """Gracefully."""
    child.terminate()
    assert await child.wait() == 0


async def at_work(ledger: asyncpg.Connection | Pool, kind: str) -> bool:
    """A worker of this kind asks the ledger a second after it connected: by then it has gone its rounds.

    Which statement was its last one nobody can see: behind each the pool resets the connection by another one.
    """
    return bool(
        await ledger.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE $1 AND query_start > backend_start + interval '1 second')",
            f"rushgate-{kind}%",
        )
    )
