"""Writes orders to the ledger, a batch a transaction; one bad order never keeps back the good ones.

Two ways lead into the same tables. COPY is the fast one: it takes a batch whole or not at all, and only if the ledger
has none of it. The statement insert_orders decides order by order, and knows what to do with one that is there already
or came too late. What COPY refuses takes the other way, so nothing depends on the guess that a batch is new.
"""

import logging
import time
from functools import partial
from typing import Any

import asyncpg
from asyncpg.pgproto.pgproto import UUID

from core.flood import SampledLog
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.metrics import Buckets
from core.metrics_table import ORDERS, SHORT_S
from core.trace_context import TraceContext, parse_traceparent
from core.wire import TOO_LATE
from workers.copies import Copies
from workers.entries import DeadLetter, OrderRow, columns, dead, sanitized

logger = logging.getLogger("rushgate.ledger")
not_new = SampledLog(logger, logging.INFO, "batch is not new")

# What an order itself can be guilty of; everything else is the ledger's affair and tried again.
GUILTY = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,  # also asyncpg's own, for a number too large for its column
    asyncpg.ProgramLimitExceededError,  # a text too long for an index
    ValueError,
    OverflowError,
)


class _Refused(Exception):
    """A copied batch has an order that came too late."""


def _own_trace(row: OrderRow) -> TraceContext | None:
    return parse_traceparent(row.placed.trace) if row.placed.trace else None


class LedgerWriter:
    """Writes through a pool that the caller owns."""

    def __init__(self, ledger: Pool) -> None:
        self._ledger = ledger
        self.copied = 0  # batches that took the fast way
        self.refused = 0  # batches that COPY refused
        self.transactions = 0  # batches written
        self.worked_s = 0.0  # on them
        self.batch_s, self.batch_orders = Buckets(SHORT_S), Buckets(ORDERS)  # of those that were written

    async def write(
        self, rows: list[OrderRow], letters: list[DeadLetter], copies: Copies | None = None
    ) -> tuple[int, int]:
        """All rows are in `orders` or in `dead_letters`, all letters in `dead_letters`, committed.

        `copies`: the same rows for COPY, if they are likely to be new to the ledger.

        Returns: orders newly written, and dead letters. Raises: LedgerUnavailable; what was written stays written,
        and writing the same again changes nothing.
        """
        began_s = time.monotonic()
        try:
            found = await self._written(rows, letters, copies)
            self.batch_s.add(time.monotonic() - began_s)
            self.batch_orders.add(len(rows) + len(letters))
            return found
        finally:
            self.transactions += 1
            self.worked_s += time.monotonic() - began_s

    async def _written(self, rows: list[OrderRow], letters: list[DeadLetter], copies: Copies | None) -> tuple[int, int]:
        if copies is not None and await self._copied(copies):
            written = len(rows)
        else:
            written, guilty = await self._write_rows(rows)
            letters = letters + guilty
        for letter in letters:
            await ask(partial(self._set_aside, letter))
        return written, len(letters)

    async def _copied(self, copies: Copies) -> bool:
        """All orders are written by this call; or none is, and False."""
        try:
            await ask(partial(self._copy, copies))
        except (*GUILTY, _Refused) as exc:
            self.refused += 1
            not_new(why=f"{type(exc).__name__}: {exc}")
            return False
        self.copied += 1
        return True

    async def _copy(self, copies: Copies) -> None:
        async with self._ledger.acquire() as connection, connection.transaction():
            for table in copies.tables:
                await connection.copy_to_table(
                    table.name,
                    source=table.rows,  # type: ignore[arg-type]  # its stub does not know of buffers
                    columns=table.columns,
                    format="binary",
                )
            # Asked last: since the first COPY no rebuild can begin, and one that had begun is seen.
            if await connection.fetchval(query("any_late"), *copies.epochs):
                raise _Refused("a campaign of it was rebuilt")

    async def _write_rows(self, rows: list[OrderRow]) -> tuple[int, list[DeadLetter]]:
        if not rows:
            return 0, []
        try:
            return await self._insert(rows)
        except GUILTY:
            if len(rows) == 1:
                return await self._judge(rows[0])
        # One of them is guilty: halving finds it in a few statements, and the others are written.
        middle = len(rows) // 2
        first, first_letters = await self._write_rows(rows[:middle])
        second, second_letters = await self._write_rows(rows[middle:])
        return first + second, first_letters + second_letters

    async def _judge(self, row: OrderRow) -> tuple[int, list[DeadLetter]]:
        """The order is written, or guilty for good.

        Two workers that insert the same order at the same instant can meet at another unique key than the one that
        ON CONFLICT names; then the later one fails, though nothing is wrong. By now the other has committed.
        """
        try:
            return await self._insert([row])
        except GUILTY as exc:
            return 0, [dead(row, f"{type(exc).__name__}: {exc}")]

    async def _insert(self, rows: list[OrderRow]) -> tuple[int, list[DeadLetter]]:
        """Orders newly written, and those that came after a rebuild had closed their epoch: a person decides."""
        found = await ask(partial(self._inserted, rows))
        assert found is not None  # noqa: S101 - a SELECT without FROM has one row
        late = {i.bytes for i in found["late"]}
        why = f"{TOO_LATE}: the campaign was rebuilt, and its hold is gone"
        return found["written"], [dead(r, why) for r in rows if r.order_id in late]

    async def _inserted(self, rows: list[OrderRow]) -> Any:
        """What insert_orders tells. Orders and their traces are there in one instant: a reader in between would tell
        another trace of the order than its caller's, and a relay its partner."""
        traces = [(r.shard, UUID(r.order_id), c.traceparent) for r in rows if (c := _own_trace(r)) is not None]
        if not traces:
            return await self._ledger.fetchrow(query("insert_orders"), *columns(rows))
        async with self._ledger.acquire() as connection, connection.transaction():
            found = await connection.fetchrow(query("insert_orders"), *columns(rows))
            await connection.execute(query("put_traces"), *(list(c) for c in zip(*traces, strict=True)))
        return found

    async def _set_aside(self, letter: DeadLetter) -> None:
        header = letter.header
        await self._ledger.execute(
            query("insert_dead_letter"),
            letter.shard,
            letter.entry_id.decode(),
            letter.place,
            header.campaign if header else None,
            header.epoch if header else None,
            header.first_seq + letter.place if header else None,
            UUID(letter.order_id) if letter.order_id else None,
            sanitized(letter.reason),
            letter.payload,
        )
