"""The traces of orders in the ledger, by both ways that lead there, and the spans of a batch."""

import asyncio
from collections.abc import Sequence

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.orders import OrderDesk
from core.ledger.pool import Pool
from core.trace_context import parse_traceparent
from core.tracing import MAX_LINKS, Exporter, Span, Tracer
from tests.ledger.support import row, table_locked, waiting_for_lock
from workers.copies import copies
from workers.entries import OrderRow
from workers.traces import BATCH_WRITE, BatchWrite, moved
from workers.writer import LedgerWriter

SPAN = "00f067aa0ba902b7"


def traceparent(n: int, flags: str = "01") -> str:
    return f"00-{n:032x}-{SPAN}-{flags}"


def rows_with_traces() -> list[OrderRow]:
    """Every third order has a trace, every third a text that is none."""
    texts = [traceparent(n) if n % 3 == 0 else "garbage" if n % 3 == 1 else "" for n in range(1, 31)]
    return [row(n, trace=text) for n, text in enumerate(texts, 1)]


@pytest.mark.parametrize("way", ["copy", "statement", "both"])
async def test_traces_of_orders_are_on_record_once(ledger: Pool, way: str) -> None:
    rows, writer = rows_with_traces(), LedgerWriter(ledger)
    if way != "statement":
        assert await writer.write(rows, [], copies(rows)) == (30, 0)
        assert writer.copied == 1
    if way != "copy":
        await writer.write(rows, [])
    found = {r["order_id"]: r["traceparent"] for r in await ledger.fetch("SELECT * FROM order_traces")}
    assert found == {UUID(r.order_id): r.placed.trace for r in rows if r.placed.trace.startswith("00-")}
    desk = OrderDesk(ledger, 8)
    for one in rows:
        known = parse_traceparent(one.placed.trace)
        expected = one.order_id if known is None else known.trace_id
        assert (await desk.context(one.order_id)).trace_id == expected


async def test_trace_of_an_order_that_came_too_late_is_not_on_record(ledger: Pool) -> None:
    one = row(1, trace=traceparent(1))
    await ledger.execute(
        "INSERT INTO rebuilds (shard, campaign, epoch, made_by, why) VALUES ($1, $2, $3, 'test', '')",
        one.shard, one.header.campaign, one.header.epoch + 1,
    )  # fmt: skip
    assert await LedgerWriter(ledger).write([one], [], copies([one])) == (0, 1)
    assert await ledger.fetchval("SELECT count(*) FROM order_traces") == 0


@pytest.mark.parametrize("way", ["copy", "statement"])
async def test_order_and_its_trace_are_there_in_one_instant(ledger: Pool, dsn: str, way: str) -> None:
    one = row(1, trace=traceparent(1))
    async with table_locked(dsn, "order_traces") as other:
        writing = asyncio.create_task(LedgerWriter(ledger).write([one], [], copies([one]) if way == "copy" else None))
        await waiting_for_lock(other)
        assert await other.fetchval("SELECT count(*) FROM orders") == 0
    assert await writing == (1, 0)
    assert await ledger.fetchval("SELECT count(*) FROM orders JOIN order_traces USING (shard, order_id)") == 1


async def test_two_workers_with_the_same_orders_do_not_hinder_each_other(ledger: Pool) -> None:
    rows = rows_with_traces()
    done = await asyncio.gather(*(LedgerWriter(ledger).write(rows, [], copies(rows)) for _ in range(2)))
    assert sum(written for written, _ in done) == 30
    assert await ledger.fetchval("SELECT count(*) FROM order_traces") == 10


class Kept:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def write(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def close(self) -> None:
        """Nothing waits."""


def test_batch_is_linked_with_its_traced_orders_and_bounded() -> None:
    sink = Kept()
    tracer = Tracer(Exporter(sink), 0, 1)
    rows = [row(n, trace=traceparent(n, "01" if n % 2 else "00")) for n in range(1, 4 * MAX_LINKS)]
    BatchWrite(tracer, rows).over(len(rows), 0)
    BatchWrite(tracer, [row(1), row(2, trace=traceparent(1, "00")), row(3, trace="garbage")]).over(3, 0)
    moved(tracer, "expire", 1, 2, [(rows[0].order_id, rows[0].placed.trace), (rows[1].order_id, "garbage")])
    tracer.exporter.close(10)
    [batch] = [s for s in sink.spans if s.name == BATCH_WRITE]
    orders = [s for s in sink.spans if s.name == "ledger write"]
    assert len(orders) == 2 * MAX_LINKS
    assert {s.links for s in orders} == {(batch.context,)}
    assert batch.context.trace_id not in {s.context.trace_id for s in orders}
    assert [link.trace_id for link in batch.links] == [s.context.trace_id for s in orders[:MAX_LINKS]]
    assert [s.name for s in sink.spans[-2:]] == ["expire batch", "expire"]
