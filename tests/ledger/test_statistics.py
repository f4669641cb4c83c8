"""The planner's statistics follow the tables, so that no plan made for an empty table outlives the first second."""

import asyncpg

from core.ledger.pool import Pool
from core.ledger.queries import query
from tests.ledger.support import row
from tests.support import eventually
from workers.statistics import Statistics
from workers.writer import LedgerWriter

ORDERS = 5_000


async def indexes_read(connection: asyncpg.Connection) -> dict[str, int]:
    """Rows read by each index of the orders so far, as this session knows."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    rows = await connection.fetch(
        "SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'orders'"
    )
    return {r["indexrelname"]: r["idx_tup_read"] for r in rows}


async def test_tables_that_grow_are_analysed_once_and_kept_plans_are_made_anew(ledger: Pool, dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        lock = await connection.prepare(query("lock_order"))
        orders = [row(n, 3) for n in range(1, ORDERS + 1)]
        await lock.fetch(3, orders[0].order_id.hex())  # planned for an empty table, and kept
        statistics = Statistics(ledger)
        assert await statistics.step() == 0
        await LedgerWriter(ledger).write(orders, [])

        async def analysed() -> int:
            await ledger.execute("SELECT pg_stat_force_next_flush()")
            return await statistics.step()

        assert await eventually(analysed) >= 1
        assert await ledger.fetchval("SELECT reltuples FROM pg_class WHERE relname = 'orders'") == ORDERS
        assert await statistics.step() == 0
        before = await indexes_read(connection)
        for order in orders[:20]:
            assert len(await lock.fetch(3, order.order_id.hex())) == 1
        read = {name: count - before[name] for name, count in (await indexes_read(connection)).items()}
        assert sum(read.values()) == 20
    finally:
        await connection.close()


async def test_without_analysis_a_plan_for_an_empty_table_reads_the_shard(ledger: Pool, dsn: str) -> None:
    """Control: if this fails, kept plans do no harm, and the statistics are not needed."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        lock = await connection.prepare(query("lock_order"))
        orders = [row(n, 3) for n in range(1, ORDERS + 1)]
        await lock.fetch(3, orders[0].order_id.hex())
        await LedgerWriter(ledger).write(orders, [])
        before = await indexes_read(connection)
        await lock.fetch(3, orders[0].order_id.hex())
        after = await indexes_read(connection)
        assert sum(after.values()) - sum(before.values()) > ORDERS // 2
    finally:
        await connection.close()
