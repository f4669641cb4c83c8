"""The schema: where the migrations lead, what its keys begin with, and who may work with it."""

import asyncio
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from core.errors import SchemaMismatch
from core.ledger import migrate as migrations
from core.ledger.migrate import applied, known, migrate, require_current
from tests.conftest import Services, database_dsn
from tests.support import fresh

CATALOGUES = {
    "columns": """
        SELECT table_name, column_name, ordinal_position, data_type, udt_name, is_nullable, column_default
        FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 3""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype <> 'n' ORDER BY 1, 2""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
    "sequences": "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1",
}


@pytest.fixture
async def blank(services: Services) -> AsyncIterator[str]:
    """A database without a table."""
    name = fresh("blank").replace("-", "_")
    admin = await asyncpg.connect(services.ledger_dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    yield database_dsn(services.ledger_dsn, name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def connection(blank: str) -> AsyncIterator[asyncpg.Connection]:
    found = await asyncpg.connect(blank)
    yield found
    await found.close()


async def catalogue(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that makes the schema, but the migrations' own journal."""
    return {
        kind: [tuple(r) for r in await connection.fetch(text) if r[0] != "schema_migrations"]
        for kind, text in CATALOGUES.items()
    }


async def test_schema_file_equals_what_the_migrations_make(connection: asyncpg.Connection, dsn: str) -> None:
    await connection.execute((resources.files("core.ledger") / "schema.sql").read_text("utf-8"))
    migrated = await asyncpg.connect(dsn)
    made, written = await catalogue(migrated), await catalogue(connection)
    await migrated.close()
    assert made == written
    assert len(made["columns"]) > 50  # the comparison saw the tables


async def test_schema_comparison_sees_one_changed_default(connection: asyncpg.Connection) -> None:
    """Control: if this fails, the comparison above proves nothing."""
    await migrate(connection)
    before = await catalogue(connection)
    await connection.execute("ALTER TABLE orders ALTER COLUMN version SET DEFAULT 1")
    after = await catalogue(connection)
    assert before["columns"] != after["columns"]
    assert before["constraints"] == after["constraints"]


async def test_keys_of_all_tables_begin_with_shard(connection: asyncpg.Connection) -> None:
    await migrate(connection)
    rows = await connection.fetch("""
        SELECT i.indrelid::regclass::text AS table, i.indexrelid::regclass::text AS key, a.attname AS first
        FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace) AND i.indisunique
    """)
    keys = {r["key"]: r["first"] for r in rows if r["table"] != "schema_migrations"}
    assert set(keys.values()) == {"shard"}
    tables = {r["table"] for r in rows}
    assert tables == {r[0] for r in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname='public'")}


async def test_constraints_are_all_named_by_us(connection: asyncpg.Connection) -> None:
    await migrate(connection)
    ours = "\n".join([m.text for m in known()] + [migrations._JOURNAL])
    rows = await connection.fetch(
        "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'"
    )
    assert len(rows) > 10
    assert [r["conname"] for r in rows if f"CONSTRAINT {r['conname']} " not in ours] == []


async def test_migrate_twice_changes_nothing(connection: asyncpg.Connection) -> None:
    assert await migrate(connection) == [m.name for m in known()]
    before = await connection.fetch("SELECT * FROM schema_migrations")
    assert await migrate(connection) == []
    assert await connection.fetch("SELECT * FROM schema_migrations") == before
    await require_current(connection)


async def test_migrate_at_once_by_several_applies_each_file_once(blank: str) -> None:
    connections = [await asyncpg.connect(blank) for _ in range(4)]
    done = await asyncio.gather(*(migrate(c) for c in connections))
    assert sorted(name for names in done for name in names) == [m.name for m in known()]
    for connection in connections:
        await require_current(connection)
        await connection.close()


async def test_migrate_of_a_newer_schema_is_refused(connection: asyncpg.Connection) -> None:
    await migrate(connection)
    newer = len(known()) + 1
    await connection.execute("INSERT INTO schema_migrations (number, name) VALUES ($1, 'from the future')", newer)
    with pytest.raises(SchemaMismatch, match=f"at {newer}"):
        await migrate(connection)
    with pytest.raises(SchemaMismatch, match="newer program"):
        await require_current(connection)


async def test_require_current_of_an_older_schema_is_refused(connection: asyncpg.Connection) -> None:
    assert await applied(connection) == 0
    with pytest.raises(SchemaMismatch, match="run `rushgate migrate`"):
        await require_current(connection)


@pytest.mark.parametrize("numbers", [(1, 3), (2,), (1, 1), (0, 1)])
def test_known_of_files_with_a_gap_or_a_double_is_refused(
    numbers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, number in enumerate(numbers):
        (tmp_path / f"{number:04}_pre_file{n}.sql").write_text("SELECT 1;")
    (tmp_path / "notes.txt").write_text("no migration")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(SchemaMismatch, match="gap or a double"):
        known()


async def test_migrate_with_a_failing_file_leaves_the_schema_before_it(
    connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*known(), migrations.Migration(len(known()) + 1, "bad", "CREATE TABLE half (n int); SELECT 1/0;")]
    monkeypatch.setattr(migrations, "known", lambda: files)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(connection)
    assert await applied(connection) == len(files) - 1
    assert await connection.fetchval("SELECT to_regclass('half')") is None
