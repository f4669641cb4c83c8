"""Real services for the tests: one embedded Valkey and one embedded Postgres a session.

Each test gets an empty store and a ledger database of its own. With RUSHGATE_TEST_STORE_URL and
RUSHGATE_TEST_LEDGER_DSN the tests run on those instead (`make test-debian`).
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from redis.exceptions import RedisError

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.ledger.migrate import migrate
from core.ledger.pool import Pool, open_pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.scripts import Scripts
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.support import LEASE_MS, SHARDS, fresh

TEMPLATE = "rushgate_test_template"
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
PLENTY = 6 << 30  # bytes; two processes of tests use some 2 GiB each


class Services(NamedTuple):
    """Where the session's store and ledger server are."""

    store_url: str
    ledger_dsn: str


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Running services; a database template with the newest schema stands ready."""
    given = os.environ.get("RUSHGATE_TEST_STORE_URL"), os.environ.get("RUSHGATE_TEST_LEDGER_DSN")
    if given[0] and given[1]:
        found = Services(given[0], given[1])
        asyncio.run(_make_template(found.ledger_dsn))
        yield found
        return
    # Not in pytest's own folder: every pytest of root that starts shuts that to others, the ledger's user among them.
    folder = tempfile.TemporaryDirectory(prefix="rushgate-test-", dir=_memory())
    data = Path(folder.name)
    store, ledger = EmbeddedStore(data), EmbeddedLedger(data)
    try:
        found = Services(asyncio.run(store.start()), asyncio.run(ledger.start()))
        asyncio.run(_make_template(found.ledger_dsn))
        yield found
    finally:
        asyncio.run(store.stop())
        asyncio.run(ledger.stop())
        folder.cleanup()


def _memory() -> Path | None:
    """A file system in memory, if there is plenty of it: a test's database is made there in a hundredth of a second, on
    a disk in a tenth, and nine hundred tests want one. None: the usual place does."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        free = min(shutil.disk_usage(MEMORY).free, int(facts["MemAvailable"].split()[0]) << 10)
    except (OSError, KeyError):
        return None
    return MEMORY if free >= PLENTY and os.access(MEMORY, os.W_OK) else None


def database_dsn(dsn: str, database: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


async def _make_template(dsn: str) -> None:
    admin = await asyncpg.connect(dsn)
    await admin.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
    await admin.execute(f"CREATE DATABASE {TEMPLATE}")
    await admin.close()
    connection = await asyncpg.connect(database_dsn(dsn, TEMPLATE))
    await migrate(connection)
    await connection.close()


@pytest.fixture
async def store(services: Services) -> AsyncIterator[SharedConnection]:
    """A connection to the store, which is empty."""
    connection = SharedConnection(services.store_url, "fsync", 10.0, "test")
    [reply] = await connection.exchange([("FLUSHALL",)])
    assert not isinstance(reply, RedisError)
    yield connection
    await connection.close()


@pytest.fixture
def scripts(store: SharedConnection) -> Scripts:
    return Scripts(store)


@pytest.fixture
async def dsn(services: Services) -> AsyncIterator[str]:
    """A ledger database of this test's own, with the newest schema."""
    name = fresh("t").replace("-", "_")
    admin = await asyncpg.connect(services.ledger_dsn)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")  # quicker than by the log
    yield database_dsn(services.ledger_dsn, name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def ledger(dsn: str) -> AsyncIterator[Pool]:
    pool = await open_pool(dsn, "test", 30.0, size=8)
    yield pool
    pool.terminate()


@pytest.fixture
def desk(store: SharedConnection, ledger: Pool) -> CampaignDesk:
    return CampaignDesk(store, ledger, SHARDS, LEASE_MS)


@pytest.fixture
def auditor(desk: CampaignDesk, store: SharedConnection, ledger: Pool) -> Auditor:
    return Auditor(desk, store, ledger, SHARDS)


@pytest.fixture
def settings(services: Services, dsn: str) -> Settings:
    """Settings of processes that work on this test's store and ledger."""
    return Settings(
        store_url=services.store_url,
        ledger_dsn=dsn,
        admin_token="test-admin-token-0",
        channel_keys={"app": "test-app-key-00000", "web": "test-web-key-00000"},
        sold_out_lease_ms=LEASE_MS,
        port=0,
    )
