"""Brings the ledger's schema to where this program wants it, one numbered file after another.

Files: `migrations/NNNN_pre_name.sql` run before the new code, `NNNN_post_name.sql` after; both versions of the code
work in between. An applied file is never changed.
"""

from dataclasses import dataclass
from importlib import resources

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from core.errors import SchemaMismatch

_JOURNAL = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer NOT NULL CONSTRAINT schema_migrations_pkey PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True)
class Migration:
    """One file: its number, its name with the ending, its statements."""

    number: int
    name: str
    text: str


def known() -> list[Migration]:
    """All migrations of this program, by number, which are 1, 2, 3 ... without a gap."""
    files = [f for f in resources.files("core.ledger.migrations").iterdir() if f.name.endswith(".sql")]
    found = sorted((Migration(int(f.name[:4]), f.name, f.read_text("utf-8")) for f in files), key=lambda m: m.number)
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise SchemaMismatch(f"migration numbers have a gap or a double: {[m.name for m in found]}")
    return found


Connection = asyncpg.Connection | PoolConnectionProxy


async def applied(connection: Connection) -> int:
    """The number of the newest migration that the ledger has; 0 = none.

    Raises: SchemaMismatch if it is newer than this program knows.
    """
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    number = int(await connection.fetchval("SELECT coalesce(max(number), 0) FROM schema_migrations"))
    newest = len(known())
    if number > newest:
        raise SchemaMismatch(f"the ledger's schema is at {number}, this program knows {newest}: use a newer program")
    return number


async def migrate(connection: Connection) -> list[str]:
    """The schema is the newest; safe to run by several processes at once. Returns the names applied by this call.

    Raises: SchemaMismatch if the ledger's schema is newer than this program knows.
    """
    async with connection.transaction():
        # CREATE IF NOT EXISTS alone can still collide with another process's.
        await connection.execute("SELECT pg_advisory_xact_lock(7262347)")
        await connection.execute(_JOURNAL)
    done = []
    for migration in known():
        async with connection.transaction():
            await connection.execute("LOCK TABLE schema_migrations IN EXCLUSIVE MODE")
            if migration.number <= await applied(connection):
                continue
            await connection.execute(migration.text)
            await connection.execute(
                "INSERT INTO schema_migrations (number, name) VALUES ($1, $2)",
                migration.number,
                migration.name,
            )
            done.append(migration.name)
    return done


async def require_current(connection: Connection) -> None:
    """Raises SchemaMismatch unless the schema is exactly the newest that this program knows."""
    number, newest = await applied(connection), len(known())
    if number < newest:
        raise SchemaMismatch(f"the ledger's schema is at {number}, this program needs {newest}: run `rushgate migrate`")
