"""Pages of orders: on an index and in its order, so that a page costs its bounded look and no more."""

from typing import Any

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk import listing
from core.desk.campaigns import CampaignDesk
from core.desk.listing import Filter, Listing
from core.ids import shard_of
from core.ledger.pool import Pool
from tests.ledger.support import order_id
from tests.ledger.test_plans import filled, indexes, plan, whole_scans
from tests.support import SHARDS

__all__ = ["filled"]

START = list(range(8)), 0, UUID(bytes(16)), 1_000, 50


def seen(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    return next(n for n in nodes if n.get("Subplan Name") == "CTE seen")


async def test_page_reads_the_primary_key_in_order_and_sorts_no_table(filled: Pool) -> None:
    nodes = await plan(filled, "list_orders", *START, "sale3", "app", None, None)
    assert indexes(nodes) == {"orders_pkey"}
    assert whole_scans(nodes) == []
    assert seen(nodes)["Node Type"] == "Limit"
    assert [n["Node Type"] for n in seen(nodes)["Plans"]] == ["Index Scan"]  # no sort between the index and the bound


async def test_page_of_a_buyer_reads_the_buyers_orders_and_no_others(filled: Pool) -> None:
    nodes = await plan(filled, "list_buyer_orders", *START, None, "app", "buyer3", None)
    assert indexes(nodes) == {"orders_buyer"}
    assert whole_scans(nodes) == []
    [scan] = [n for n in nodes if n.get("Index Name") == "orders_buyer"]
    assert "buyer_id" in scan["Index Cond"]
    assert "order_id" in scan["Index Cond"]


@pytest.fixture
async def many(ledger: Pool) -> list[tuple[bytes, dict[str, str]]]:
    """600 orders of three buyers, two channels and three states, on seven shards; with their facts, by shard and id."""
    made = []
    for n in range(600):
        facts = {
            "buyer_id": f"buyer-{n % 3}",
            "channel": ("app", "web")[n % 2],
            "state": ("accepted", "paid", "x")[n % 5 % 3],
        }
        made.append((order_id(n % 7 * 9), facts))
    await ledger.executemany(
        "INSERT INTO orders VALUES "
        "($1, $2, 'sale', 1, $3, $4, $2::uuid::text, $5, '', '', $6, 1, 100, 'CNY', now(), now())",
        [(shard_of(i), UUID(i), n, f["channel"], f["buyer_id"], f["state"]) for n, (i, f) in enumerate(made)],
    )
    return sorted(made, key=lambda m: (shard_of(m[0]), m[0]))


@pytest.mark.parametrize("looked_at", [7, 20_000])
@pytest.mark.parametrize(
    "wanted",
    [{}, {"channel": "web"}, {"buyer_id": "buyer-1"}, {"buyer_id": "buyer-2", "channel": "app", "state": "paid"},
     {"buyer_id": "nobody"}],
)  # fmt: skip
async def test_pages_give_each_order_that_fits_once_and_in_order(
    many: list[tuple[bytes, dict[str, str]]], desk: CampaignDesk, ledger: Pool, wanted: dict[str, str],
    looked_at: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(listing, "LOOKED_AT", looked_at)
    orders = Listing(ledger, desk, SHARDS)
    found: list[bytes] = []
    after: bytes | None = None
    for _ in range(len(many)):
        page, after = await orders.page(Filter(**wanted), after, 5)
        assert len(page) <= 5
        found += page
        if after is None:
            break
    assert after is None
    assert found == [i for i, facts in many if wanted.items() <= facts.items()]
    assert bool(found) == (wanted.get("buyer_id") != "nobody")


async def test_page_of_a_campaign_that_nobody_knows_is_empty(desk: CampaignDesk, ledger: Pool) -> None:
    assert await Listing(ledger, desk, SHARDS).page(Filter(buyer_id="anna", campaign="none"), None, 5) == ([], None)
