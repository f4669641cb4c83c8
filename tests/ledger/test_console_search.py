"""The console's look-ups: by index only, whatever the planner knows, and the campaigns in their order."""

import pytest

from core.ledger.pool import Pool
from core.ledger.queries import query
from tests.ledger.test_plans import filled, indexes, plan, whole_scans

__all__ = ["filled"]


async def test_find_request_looks_by_the_unique_key(filled: Pool) -> None:
    shards, campaigns = [1, 5, 3], ["sale1", "sale1", "sale3"]
    rows = await filled.fetch(query("find_request"), shards, campaigns, ["web", "app"], "key5", 10)
    [order] = await filled.fetch("SELECT order_id FROM orders WHERE request_key = 'key5'")
    assert [r["order_id"] for r in rows] == [order["order_id"]]
    assert not await filled.fetch(query("find_request"), [1], ["sale1"], ["web"], "key5", 10)
    nodes = await plan(filled, "find_request", shards, campaigns, ["app"], "key5", 10)
    assert indexes(nodes) == {"orders_request_key"}
    assert whole_scans(nodes) == []


async def test_find_payment_looks_by_the_primary_key(filled: Pool) -> None:
    await filled.execute(
        "INSERT INTO payments SELECT shard, 'pay-' || seq, order_id, 'paid', 100, 'CNY', now() FROM orders"
    )
    await filled.execute("ANALYZE payments")
    rows = await filled.fetch(query("find_payment"), list(range(8)), "pay-7", 10)
    [order] = await filled.fetch("SELECT order_id FROM orders WHERE seq = 7")
    assert [r["order_id"] for r in rows] == [order["order_id"]]
    nodes = await plan(filled, "find_payment", list(range(64)), "pay-7", 10)
    assert indexes(nodes) == {"payments_pkey"}
    assert whole_scans(nodes) == []


async def test_look_without_the_unique_key_is_a_whole_scan(filled: Pool) -> None:
    """Control: shows that the plan follows the schema."""
    await filled.execute("ALTER TABLE orders DROP CONSTRAINT orders_request_key, DROP CONSTRAINT orders_seq_key")
    assert "orders_request_key" not in indexes(await plan(filled, "find_request", [1], ["sale1"], ["app"], "key5", 10))


async def test_count_waiting_counts_no_more_than_it_is_told(filled: Pool) -> None:
    await filled.execute("INSERT INTO outbox (shard, order_id, version, topic, at, error) SELECT shard, order_id, 1, "
                         "'payment', now() - interval '5 s', CASE WHEN seq < 3 THEN 'no' END FROM orders "
                         "WHERE seq <= 10")  # fmt: skip
    [row] = await filled.fetch(query("count_waiting"), 1_000)
    assert (row["topic"], row["messages"], row["failing"]) == ("payment", 10, 2)
    assert row["oldest_s"] == pytest.approx(5, abs=4)
    [row] = await filled.fetch(query("count_waiting"), 4)
    assert row["messages"] == 4


async def test_console_campaigns_are_closed_ones_last(ledger: Pool) -> None:
    for name, state, age in (("a", "closed", 1), ("b", "draft", 30), ("c", "open", 20), ("d", "closed", 50)):
        await ledger.execute("INSERT INTO campaigns VALUES (0, $1, 1, 1, $2, '{}', '{}', now() - $3 * interval '1 s')",
                             name, state, age)  # fmt: skip
    rows = await ledger.fetch(query("console_campaigns"), 3)
    assert [r["campaign"] for r in rows] == ["c", "b", "a"]
