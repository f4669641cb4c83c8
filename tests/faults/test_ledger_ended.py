"""A connection that the ledger ends between two statements: found by the nemesis; a ledger worker died of it."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from core.errors import LedgerUnavailable
from core.ledger.pool import Pool, ask, open_pool
from tests.faults.nemesis.proxy import Link


@pytest.fixture
async def link(dsn: str) -> AsyncIterator[Link]:
    """A proxy to the ledger, which shows its clients the end of a connection when it is told to."""
    parts = urlsplit(dsn)
    where = parse_qs(parts.query)
    folder, port = where.get("host", [""])[0], where.get("port", ["5432"])[0]
    target = f"{folder}/.s.PGSQL.{port}" if folder else (parts.hostname or "127.0.0.1", parts.port or 5432)
    found = Link("ledger", target)
    await found.start()
    yield found
    await found.stop()


async def test_connection_ended_between_two_statements_is_an_absence_of_the_ledger(
    link: Link, ledger: Pool, dsn: str
) -> None:
    """G13. Why it was ended has arrived, the end itself has not: asyncpg raises what is none of its usual errors."""
    parts = urlsplit(dsn)
    credentials = parts.netloc.rpartition("@")[0] or "postgres"
    pool = await open_pool(
        f"postgresql://{credentials}@127.0.0.1:{link.port}{parts.path}?sslmode=disable", "ended", 5, 1
    )
    link.keeps_open = True

    async def work() -> None:
        async with pool.acquire() as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            await ledger.execute("SELECT pg_terminate_backend($1)", pid)
            await asyncio.wait_for(link.far_ended.wait(), 10)
            # The words of the end are in asyncpg's socket; nothing tells when it has read them.
            await asyncio.sleep(0.05)
            await connection.fetchval("SELECT 1")

    with pytest.raises(LedgerUnavailable) as caught:
        await ask(work)
    assert type(caught.value.__cause__) is asyncpg.InternalClientError
    link.keeps_open = False
    assert await ask(lambda: pool.fetchval("SELECT 1")) == 1
    pool.terminate()
