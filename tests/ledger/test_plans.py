"""The statements: each documented and used, the hot ones on the index that they are meant for."""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from core.ledger.pool import Pool
from core.ledger.queries import query
from tests.ledger.support import row
from workers.entries import columns

ROOT = Path(__file__).parents[2]
FILES = sorted(f.name[:-4] for f in resources.files("core.ledger.sql").iterdir() if f.name.endswith(".sql"))
PRODUCT = [p for folder in ("core", "gateway", "lua", "ops", "workers") for p in (ROOT / folder).rglob("*.py")]
USED = {name for p in PRODUCT for name in re.findall(r'query\("(\w+)"\)', p.read_text("utf-8"))}

# A sale on one shard; a third of the orders is being released, a third was. And what sales before it have left there.
FILL = (
    """INSERT INTO orders
       SELECT 3, ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'sale', 1, n, 'app', 'key' || n,
           'buyer' || n, '', '', 'accepted', 1, 100, 'CNY', now(), now(), NULL
       FROM generate_series(1, {orders}) n""",
    "INSERT INTO order_items SELECT shard, order_id, 0, 'red', 1, 100 FROM orders",
    """INSERT INTO order_events (shard, order_id, version, at, action, to_state, actor)
       SELECT shard, order_id, 1, now(), 'allocated', 'paid', 'system' FROM orders""",
    """INSERT INTO outbox (shard, order_id, version, topic, at)
       SELECT shard, order_id, 2, 'release', now() FROM orders WHERE seq % 3 = 0""",
    """INSERT INTO deliveries (shard, order_id, version, topic, waited_ms, worked_ms, attempts, outcome)
       SELECT shard, order_id, 2, 'release', 0, 0, 1, 'done' FROM orders WHERE seq % 3 = 1""",
    """INSERT INTO deliveries (shard, order_id, version, topic, waited_ms, worked_ms, attempts, outcome)
       SELECT 3, ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, 2, 'release', 0, 0, 1, 'done'
       FROM generate_series(1, 50 * {orders}) n""",
)


@pytest.fixture
async def filled(ledger: Pool) -> Pool:
    """20,000 orders of four campaigns on eight shards, and their items, with statistics."""
    await ledger.execute("""
        INSERT INTO orders
        SELECT n % 8, ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'sale' || n % 4, 1, n,
            'app', 'key' || n, 'buyer' || n % 5000, '', '', 'accepted', 1, 100, 'CNY', now(), now(), NULL
        FROM generate_series(1, 20000) n""")
    await ledger.execute("INSERT INTO order_items SELECT shard, order_id, 0, 'red', 1, 100 FROM orders")
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await ledger.execute("INSERT INTO order_traces SELECT shard, order_id, $1 FROM orders", trace)
    await ledger.execute("INSERT INTO dead_letters SELECT shard, n::text, 0, 'sale1', 1, n, NULL, '', '' "
                         "FROM generate_series(1, 8) n, generate_series(0, 7) shard")  # fmt: skip
    await ledger.execute("ANALYZE")
    return ledger


async def plan(ledger: Pool, name: str, *params: object) -> list[dict[str, Any]]:
    """The nodes of the generic plan, as a worker's prepared statement has it from its sixth execution on."""
    async with ledger.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        text = await connection.fetchval("EXPLAIN (FORMAT JSON) " + query(name), *params)
        await connection.execute("RESET plan_cache_mode")
    return _nodes(text)


def _nodes(text: str) -> list[dict[str, Any]]:
    """All nodes of a plan, as EXPLAIN tells it in JSON."""
    found: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        found.append(node)
        for child in node.get("Plans", []):
            walk(child)

    walk(json.loads(text)[0]["Plan"])
    return found


def indexes(nodes: list[dict[str, Any]]) -> set[str]:
    return {n["Index Name"] for n in nodes if "Index Name" in n}


def whole_scans(nodes: list[dict[str, Any]]) -> list[str]:
    return [n["Relation Name"] for n in nodes if n["Node Type"] == "Seq Scan"]


async def test_find_orders_uses_the_primary_keys(filled: Pool) -> None:
    ids = [r[0] for r in await filled.fetch("SELECT order_id FROM orders WHERE shard = 3 LIMIT 5")]
    nodes = await plan(filled, "find_orders", [3] * 5, ids)
    assert indexes(nodes) == {"orders_pkey", "order_items_pkey"}
    assert whole_scans(nodes) == []


async def test_audit_orders_uses_the_sequence_key(filled: Pool) -> None:
    nodes = await plan(filled, "audit_orders", 3, "sale3", 1, 10_000, 0)
    assert "orders_seq_key" in indexes(nodes)
    assert "orders" not in whole_scans(nodes)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("audit_units", "3, 'sale', 1, 10000, now()"),
        ("audit_allocated", "3, 'sale', 1, 10000, now()"),
        ("audit_limits", "3, 'sale', 1, 1, 1, 1, ARRAY['app'], ARRAY[1]"),
    ],
)
async def test_audit_with_a_plan_from_before_the_sale_reads_each_row_a_few_times(
    ledger: Pool, name: str, values: str
) -> None:
    """Quadratic it was for some ten thousand orders: the audits of a first sale ran into their time limit for a minute,
    until the tables were analysed. Nor is what was delivered in sales before it read again."""
    orders = 1_000
    async with ledger.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE audit AS {query(name)}")
        await connection.execute(f"EXECUTE audit ({values})")
        for statement in FILL:
            await connection.execute(statement.format(orders=orders))
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE audit ({values})")
        await connection.execute("DEALLOCATE audit")
        await connection.execute("RESET plan_cache_mode")
    touched = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")
    work = sum(node["Actual Loops"] * sum(node.get(what, 0) for what in touched) for node in _nodes(text))
    assert orders < work < 40 * orders


async def test_audit_known_uses_the_primary_key(filled: Pool) -> None:
    ids = [r[0] for r in await filled.fetch("SELECT order_id FROM orders WHERE shard = 3 LIMIT 100")]
    nodes = await plan(filled, "audit_known", 3, ids)
    assert "orders_pkey" in indexes(nodes)
    assert "orders" not in whole_scans(nodes)


async def test_claim_of_messages_uses_the_index_of_what_is_due(filled: Pool) -> None:
    await filled.execute("INSERT INTO outbox (shard, order_id, version, topic, at, due_at) SELECT shard, order_id, 1, "
                         "'payment', now(), now() + random() * interval '1 hour' FROM orders")  # fmt: skip
    await filled.execute("ANALYZE outbox")
    nodes = await plan(filled, "claim_messages", 3, "payment", 100, 30.0)
    assert "outbox_due" in indexes(nodes)
    assert "outbox" not in whole_scans(nodes)


async def test_expiry_uses_the_index_of_what_is_due(filled: Pool) -> None:
    nodes = await plan(filled, "expire_orders", 3, 100, "expired", "expire", "system", "late", ["release"])
    assert "orders_due" in indexes(nodes)
    assert "orders" not in whole_scans(nodes)


async def test_insert_orders_decides_by_the_primary_keys(filled: Pool) -> None:
    nodes = await plan(filled, "insert_orders", *columns([row(1), row(2)]))
    arbiters = {n["Relation Name"]: n["Conflict Arbiter Indexes"] for n in nodes if "Conflict Arbiter Indexes" in n}
    assert arbiters == {"orders": ["orders_pkey"], "order_items": ["order_items_pkey"]}
    assert set(whole_scans(nodes)) <= {"rebuilds"}  # a handful of rows


@pytest.mark.parametrize("name", FILES)
def test_statement_has_a_header_and_a_caller(name: str) -> None:
    header = query(name).split("\n\n")[0].splitlines()
    comment = [line for line in header if line.startswith("--")]
    assert comment[0].startswith(f"-- {name}: ")
    assert any(line.startswith("-- Params ") for line in comment)
    assert any(line.startswith("-- Returns ") for line in comment)
    assert name in USED


@pytest.mark.parametrize("name", FILES)
async def test_statement_takes_the_parameters_that_its_header_names(name: str, ledger: Pool) -> None:
    text = query(name)
    named = {int(n) for line in text.splitlines() if line.startswith("--") for n in re.findall(r"\$(\d+)", line)}
    async with ledger.acquire() as connection:
        taken = (await connection.prepare(text)).get_parameters()
    assert named == set(range(1, len(taken) + 1))


def test_statements_asked_for_all_exist() -> None:
    assert set(FILES) == USED


async def test_plan_without_the_key_is_a_whole_scan(filled: Pool) -> None:
    """Control: shows that the plan is read and follows the schema."""
    await filled.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
    ids = [r[0] for r in await filled.fetch("SELECT order_id FROM orders WHERE shard = 3 LIMIT 5")]
    assert "orders_pkey" not in indexes(await plan(filled, "find_orders", [3] * 5, ids))
    with pytest.raises(asyncpg.InvalidColumnReferenceError):
        await plan(filled, "insert_orders", *columns([row(1)]))
