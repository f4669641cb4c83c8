"""Pages of orders: on the primary key and in its order, so that a page costs its bounded look and no more."""

from asyncpg.pgproto.pgproto import UUID

from core.ledger.pool import Pool
from tests.ledger.test_plans import filled, indexes, plan, whole_scans

__all__ = ["filled"]


async def test_page_reads_the_primary_key_in_order_and_sorts_no_table(filled: Pool) -> None:
    nodes = await plan(
        filled, "list_orders", list(range(8)), 0, UUID(bytes(16)), 1_000, 50, "sale3", "app", "buyer3", None
    )
    assert indexes(nodes) == {"orders_pkey"}
    assert whole_scans(nodes) == []
    seen = next(n for n in nodes if n.get("Subplan Name") == "CTE seen")
    assert seen["Node Type"] == "Limit"
    assert [n["Node Type"] for n in seen["Plans"]] == ["Index Scan"]  # no sort between the index and the bound
