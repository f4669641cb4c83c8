"""The pool's end: what a cancelled task gives back is not torn away under it."""

import asyncio
import contextlib
import gc
import os
import signal
from typing import Any

import asyncpg
import pytest

from core.ledger.pool import Pool, close_pool
from tests.conftest import Services


async def errors_of_an_end(dsn: str, *, torn: bool) -> list[dict[str, Any]]:
    """What the event loop is told when a pool ends while it takes a connection back from a cancelled task."""
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    # Not of open_pool: asyncpg's own asks the server something at each release, which makes the moment long enough.
    pool: Pool = await asyncpg.create_pool(dsn, min_size=0, max_size=1)
    connection = await pool.acquire()
    backend = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(backend, signal.SIGSTOP)  # whatever the release asks of it is not answered before SIGCONT
    try:
        release = asyncio.ensure_future(pool.release(connection))
        for _ in range(5):
            await asyncio.sleep(0)
        release.cancel()
        await asyncio.gather(release, return_exceptions=True)
        loop.call_later(0.1, os.kill, backend, signal.SIGCONT)
        if torn:
            pool.terminate()
        else:
            await close_pool(pool)
        await asyncio.sleep(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended with its connection
            os.kill(backend, signal.SIGCONT)
    gc.collect()
    return told


@pytest.mark.parametrize("torn", [False, True], ids=["closed", "control: torn away"])
async def test_no_error_is_left_unawaited_when_a_task_was_cancelled(services: Services, torn: bool) -> None:
    told = await errors_of_an_end(services.ledger_dsn, torn=torn)
    assert any("never retrieved" in str(t["message"]) for t in told) is torn
