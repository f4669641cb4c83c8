"""The fast way into the ledger: what COPY writes is what the statement writes, and what it refuses changes nothing."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from core.ledger.pool import Pool
from core.ledger.queries import query
from core.model import ShipTo
from tests.ledger.support import counts, row, waiting_for_lock, whole
from workers.copies import COLUMNS, copies
from workers.entries import OrderRow
from workers.writer import LedgerWriter

TEXTS = ("", "plain", "安娜 \U0001f600", "tab\tline\nquote\"'\\N", "x" * 255, "y" * 256, "z" * 2_000)


@pytest.fixture
def writer(ledger: Pool) -> LedgerWriter:
    return LedgerWriter(ledger)


@pytest.fixture
async def rebuilder(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that rebuilds campaigns."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "rebuilder"})
    yield connection
    await connection.close()


@pytest.fixture
async def watcher(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A session outside of all transactions: within one, pg_stat_activity never changes."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


def many(count: int, seed: int = 5) -> list[OrderRow]:
    """Orders of all kinds: several shards, campaigns and entries, odd texts, many lines, addresses, extreme numbers."""
    pick = random.Random(seed)
    rows = []
    for n in range(1, count + 1):
        address = ShipTo(name=pick.choice(TEXTS) or "a", phone="+49 30", address='Weg "1" \\ ü') if n % 3 else None
        one = row(
            n, shard=pick.randrange(4), campaign=pick.choice(("sale", "other")), ship_to=address,
            items=[(f"sku-{k}", pick.choice((1, 2**31 - 1)), pick.choice((0, 2**63 - 1))) for k in range(n % 4 + 1)],
            amount=pick.choice((0, 1, 2**63 - 1)), currency=pick.choice(("CNY", "EUR")),
            channel=pick.choice(("app", "web")), request_key=f"key-{n}{pick.choice(TEXTS)}",
            buyer_id=pick.choice(TEXTS), client_ip=pick.choice(TEXTS), device_id=pick.choice(TEXTS),
        )  # fmt: skip
        accepted_ms = pick.choice((0, 946_684_800_000, one.header.accepted_ms + n, 4_102_444_800_001))
        header = one.header._replace(accepted_ms=accepted_ms, pay_by_ms=accepted_ms + 900_001, epoch=1 + n % 2)
        rows.append(one._replace(header=header))
    return rows


async def tables(ledger: Pool) -> dict[str, list[tuple[object, ...]]]:
    """All that the tables hold, but for when a message is due: that is the ledger's own clock."""
    found = {}
    for name in COLUMNS:
        rows = await ledger.fetch(f"SELECT * FROM {name} ORDER BY shard, order_id, 3, 4")  # noqa: S608 - our names
        found[name] = [tuple(v for k, v in r.items() if k != "due_at") for r in rows]
    return found


async def test_copies_write_what_the_statement_writes(writer: LedgerWriter, ledger: Pool) -> None:
    rows = many(150)
    assert await writer.write(rows, []) == (150, 0)
    stated = await tables(ledger)
    await ledger.execute("TRUNCATE orders, order_items, order_events, outbox")
    assert await writer.write(rows, [], copies(rows)) == (150, 0)
    assert (writer.copied, writer.refused) == (1, 0)
    assert await tables(ledger) == stated
    assert len(stated["orders"]) == 150
    assert len(stated["order_items"]) > 300


async def test_copies_make_messages_that_are_due_at_once(writer: LedgerWriter, ledger: Pool) -> None:
    await writer.write([row(1)], [], copies([row(1)]))
    found = await ledger.fetchrow("SELECT now() - due_at BETWEEN '0' AND '1 minute' AS due, attempts FROM outbox")
    assert found is not None
    assert tuple(found) == (True, 0)


async def test_copies_of_which_the_ledger_has_one_change_nothing_and_the_statement_writes_the_rest(
    writer: LedgerWriter, ledger: Pool
) -> None:
    rows = [row(n) for n in range(1, 101)]
    assert await writer.write(rows[50:51], []) == (1, 0)
    await ledger.execute("UPDATE orders SET state = 'paid', version = 2")
    assert await writer.write(rows, [], copies(rows)) == (99, 0)
    assert (writer.copied, writer.refused) == (0, 1)
    assert await counts(ledger) == whole(100)
    assert await ledger.fetchval("SELECT count(*) FROM orders WHERE state = 'paid'") == 1


@pytest.mark.parametrize("number", [{"amount": 2**63}, {"items": [("red", 2**31, 1)]}, {"items": [("red", 1, 2**63)]}])
def test_copies_of_a_number_beyond_its_column_are_none(number: dict[str, Any]) -> None:
    assert copies([row(1)]) is not None
    assert copies([row(1), row(2, **number)]) is None


async def test_copies_of_a_rebuilt_campaign_are_refused_and_set_aside(writer: LedgerWriter, ledger: Pool) -> None:
    await ledger.execute(query("put_rebuilds"), [3], "sale", 2, "test", "lost")
    late, fine = row(1), row(2, campaign="other")
    assert await writer.write([late, fine], [], copies([late, fine])) == (1, 1)
    assert writer.refused == 1
    assert await ledger.fetchval("SELECT reason FROM dead_letters") == (
        "came too late: the campaign was rebuilt, and its hold is gone"
    )
    assert [r["order_id"].bytes for r in await ledger.fetch("SELECT order_id FROM orders")] == [fine.order_id]


async def test_copies_that_wait_for_a_rebuild_to_begin_see_it(
    writer: LedgerWriter, ledger: Pool, rebuilder: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    """G23: nothing of the old epoch comes in once the new one has begun."""
    rows = [row(n) for n in range(1, 101)]
    async with rebuilder.transaction():
        await rebuilder.execute(query("lock_writers"))
        task = asyncio.create_task(writer.write(rows, [], copies(rows)))
        await waiting_for_lock(watcher, "test")
        await rebuilder.execute(query("put_rebuilds"), [3], "sale", 2, "test", "lost")
    assert await task == (0, 100)
    assert await counts(ledger) == whole(0, letters=100)


async def locked(rebuilder: asyncpg.Connection) -> int:
    """Orders that a rebuild finds when it begins."""
    async with rebuilder.transaction():
        await rebuilder.execute(query("lock_writers"))
        return int(await rebuilder.fetchval("SELECT count(*) FROM orders"))


async def test_rebuild_waits_for_copies_that_are_under_way(
    writer: LedgerWriter, dsn: str, rebuilder: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    """G23: what does not see the rebuild is committed before it begins, so the rebuild sees it."""
    rows = [row(n) for n in range(1, 101)]
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        await other.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")  # the last COPY waits
        writing = asyncio.create_task(writer.write(rows, [], copies(rows)))
        await waiting_for_lock(watcher, "test")
        rebuilding = asyncio.create_task(locked(rebuilder))
        await waiting_for_lock(watcher, "rebuilder")
        assert not rebuilding.done()
    assert await rebuilding == 100
    assert await writing == (100, 0)
    assert writer.copied == 1
    await other.close()
