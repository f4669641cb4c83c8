"""The writer: a batch once, a bad order never keeps back the good ones, an absent ledger is no verdict."""

import asyncio
import random
import string
from collections.abc import AsyncIterator
from typing import Any

import pytest

from core.errors import LedgerUnavailable
from core.ledger.pool import Pool, ask, open_pool
from core.model import ShipTo
from tests.ledger.support import counts, row, table_locked, waiting_for_lock, whole
from workers.copies import Copies
from workers.copies import copies as make_copies
from workers.entries import DeadLetter, OrderRow
from workers.writer import LedgerWriter

LONG = "".join(random.Random(1).choices(string.ascii_letters, k=8_000))  # does not compress into an index


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[Pool]:
    """Another worker's pool."""
    pool = await open_pool(dsn, "other", 30.0, size=8)
    yield pool
    pool.terminate()


class Copying(LedgerWriter):
    """Tries COPY first, as with entries that nobody has read before."""

    async def write(
        self, rows: list[OrderRow], letters: list[DeadLetter], copies: Copies | None = None
    ) -> tuple[int, int]:
        return await super().write(rows, letters, copies or make_copies(rows))


@pytest.fixture(params=[LedgerWriter, Copying], ids=["statement", "copy"])
def kind(request: pytest.FixtureRequest) -> type[LedgerWriter]:
    """Both ways into the tables keep the same promises."""
    found: type[LedgerWriter] = request.param
    return found


@pytest.fixture
def writer(kind: type[LedgerWriter], ledger: Pool) -> LedgerWriter:
    return kind(ledger)


async def reasons(ledger: Pool) -> dict[bytes, str]:
    """Dead letters by order id."""
    return {r["order_id"].bytes: r["reason"] for r in await ledger.fetch("SELECT order_id, reason FROM dead_letters")}


async def present(ledger: Pool) -> set[bytes]:
    return {r["order_id"].bytes for r in await ledger.fetch("SELECT order_id FROM orders")}


async def test_writer_batch_stands_in_all_tables_as_it_was_accepted(writer: LedgerWriter, ledger: Pool) -> None:
    address = ShipTo(name="安娜", phone="+49 30 1", address="Weg 1 \U0001f600", country="DE")
    order = row(
        7, items=[("red", 2, 100), ("blue", 1, 50)], amount=250, ship_to=address, client_ip="10.0.0.1", device_id="d1"
    )
    assert await writer.write([order], []) == (1, 0)
    found = await ledger.fetchrow(
        "SELECT *, extract(epoch FROM accepted_at) * 1000 AS accepted_ms, extract(epoch FROM pay_by) * 1000 AS pay_ms"
        " FROM orders"
    )
    assert found is not None
    placed = order.placed
    for name in ("channel", "request_key", "buyer_id", "client_ip", "device_id", "amount", "currency"):
        assert found[name] == getattr(placed, name)
    assert (found["shard"], found["order_id"].bytes, found["campaign"], found["epoch"], found["seq"]) == (
        3, order.order_id, "sale", 1, 7,
    )  # fmt: skip
    assert (found["state"], found["version"]) == ("accepted", 1)
    assert (found["accepted_ms"], found["pay_ms"]) == (order.header.accepted_ms, order.header.pay_by_ms)
    assert await ledger.fetchval("SELECT ship_to->>'name' FROM orders") == "安娜"
    items = await ledger.fetch("SELECT line, sku, quantity, price FROM order_items ORDER BY line")
    assert [tuple(r) for r in items] == [(0, "red", 2, 100), (1, "blue", 1, 50)]
    event = await ledger.fetchrow("SELECT version, at, action, from_state, to_state, actor FROM order_events")
    assert event is not None
    assert tuple(event) == (1, found["accepted_at"], "accept", None, "accepted", "channel:app")
    message = await ledger.fetchrow("SELECT order_id, version, topic FROM outbox")
    assert message is not None
    assert tuple(message) == (found["order_id"], 1, "payment")


async def test_writer_same_batch_again_changes_nothing(writer: LedgerWriter, ledger: Pool) -> None:
    rows = [row(n) for n in range(1, 21)]
    assert await writer.write(rows, []) == (20, 0)
    assert await writer.write(list(reversed(rows)), []) == (0, 0)
    assert await counts(ledger) == whole(20)


async def test_writer_overlapping_batches_write_each_order_once(writer: LedgerWriter, ledger: Pool) -> None:
    rows = [row(n, shard=n % 5) for n in range(1, 31)]
    assert await writer.write(rows[:20], []) == (20, 0)
    assert await writer.write(rows[10:], []) == (10, 0)
    assert await counts(ledger) == whole(30)


async def test_writer_order_twice_in_one_batch_is_once(writer: LedgerWriter, ledger: Pool) -> None:
    one = row(1)
    assert await writer.write([one, row(2), one._replace(entry_id=b"9-9")], []) == (2, 0)
    assert await counts(ledger) == whole(2)


async def test_writer_same_batches_from_two_pools_at_once_write_each_order_once(
    writer: LedgerWriter, other: Pool, ledger: Pool
) -> None:
    writers = [writer, LedgerWriter(other)]
    shuffle = random.Random(7)
    written = 0
    for round_ in range(15):
        rows = [row(n, shard=n % 3) for n in range(round_ * 40 + 1, round_ * 40 + 41)]
        calls = []
        for n in range(6):
            some = rows[: 1 + 13 * n] if n % 2 else rows[:]
            shuffle.shuffle(some)
            calls.append(writers[n % 2].write(some, []))
        results = await asyncio.gather(*calls)
        written += sum(w for w, _ in results)
        assert [letters for _, letters in results] == [0] * 6
    assert written == 600
    assert await counts(ledger) == whole(600)


async def test_writer_same_single_order_from_many_at_once_is_never_set_aside(
    kind: type[LedgerWriter], ledger: Pool, other: Pool
) -> None:
    writers = [kind(ledger), kind(other)]
    for n in range(1, 61):
        one = row(n)
        results = await asyncio.gather(*(writers[k % 2].write([one], []) for k in range(8)))
        assert sorted(results) == [(0, 0)] * 7 + [(1, 0)]
    assert await counts(ledger) == whole(60)


async def test_writer_old_order_gets_no_second_event_or_message(writer: LedgerWriter, ledger: Pool) -> None:
    old, new = row(1), row(2)
    await writer.write([old], [])
    await ledger.execute("DELETE FROM outbox")  # delivered
    await ledger.execute("UPDATE orders SET state = 'paid', version = 2")
    assert await writer.write([old, new], []) == (1, 0)
    assert await counts(ledger) == {"orders": 2, "order_items": 2, "order_events": 2, "outbox": 1, "dead_letters": 0}
    assert await ledger.fetchval("SELECT state FROM orders WHERE seq = 1") == "paid"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "request key of another order": ({"request_key": "taken"}, "orders_request_key"),
    "NUL in a text": ({"buyer_id": "an\0na"}, "invalid byte sequence"),
    "NUL in the address": ({"ship_to": ShipTo(name="a\0b", phone="123", address="x")}, "unsupported Unicode"),
    "amount beyond bigint": ({"amount": 2**63}, "out of int64 range"),
    "amount below 0": ({"amount": -1}, "orders_amount"),
    "quantity 0": ({"items": [("red", 0, 100)]}, "order_items_quantity"),
    "quantity beyond integer": ({"items": [("red", 2**31, 100)]}, "out of int32 range"),
    "price beyond bigint": ({"items": [("red", 1, 2**64 - 1)]}, "out of int64 range"),
    "request key too long for an index": ({"request_key": LONG}, "index row"),
    "currency with NUL": ({"currency": "\0"}, "invalid byte sequence"),
}


@pytest.mark.parametrize("case", BAD)
async def test_writer_bad_order_is_set_aside_and_the_others_written(
    case: str, writer: LedgerWriter, ledger: Pool
) -> None:
    fields, why = BAD[case]
    await writer.write([row(1, request_key="taken")], [])
    good = [row(n) for n in range(2, 12)]
    bad = row(12, **fields)
    assert await writer.write([*good[:4], bad, *good[4:]], []) == (10, 1)
    assert {r.order_id for r in good} <= await present(ledger)
    assert why in (await reasons(ledger))[bad.order_id]
    assert await counts(ledger) == whole(11, letters=1)
    letter = await ledger.fetchrow("SELECT shard, entry_id, place, campaign, epoch, seq, payload FROM dead_letters")
    assert letter is not None
    assert tuple(letter) == (3, "12-0", 0, "sale", 1, 12, bad.payload)


async def test_writer_sequence_number_of_another_order_is_set_aside(writer: LedgerWriter, ledger: Pool) -> None:
    first, thief = row(1), row(1)
    assert await writer.write([first], []) == (1, 0)
    assert await writer.write([thief, row(2)], []) == (1, 1)
    assert "orders_seq_key" in (await reasons(ledger))[thief.order_id]


async def test_writer_many_bad_orders_among_good_ones_are_all_found(writer: LedgerWriter, ledger: Pool) -> None:
    rows = [row(n, items=[("red", n % 3, 100)]) for n in range(1, 31)]
    assert await writer.write(rows, []) == (20, 10)
    assert await counts(ledger) == whole(20, letters=10)


async def test_writer_times_that_are_no_time_are_set_aside(writer: LedgerWriter, ledger: Pool) -> None:
    bad = row(1)
    bad = bad._replace(header=bad.header._replace(pay_by_ms=2**62))
    worse = row(2)
    worse = worse._replace(header=worse.header._replace(accepted_ms=2**70))
    assert await writer.write([bad, worse, row(3)], []) == (1, 2)
    assert set(await reasons(ledger)) == {bad.order_id, worse.order_id}


async def test_writer_dead_letter_again_is_once(writer: LedgerWriter, ledger: Pool) -> None:
    bad = row(1, amount=-1)
    letter = DeadLetter(3, b"5-0", -1, None, None, "no \0 header " + "x" * 2_000, b"\0payload")
    for _ in range(2):
        assert await writer.write([bad], [letter]) == (0, 2)
    assert await counts(ledger) == whole(0, letters=2)
    reason = await ledger.fetchval("SELECT reason FROM dead_letters WHERE place = -1")
    assert reason.startswith("no \\0 header xx")
    assert len(reason) == 1_000


async def test_writer_without_a_server_is_unavailable(kind: type[LedgerWriter]) -> None:
    pool = await open_pool("postgresql://nobody@127.0.0.1:1/none", "test", 5.0, size=1)
    with pytest.raises(LedgerUnavailable):
        await kind(pool).write([row(1)], [])
    pool.terminate()


async def interrupted(writer: LedgerWriter, rows: list[OrderRow], dsn: str, how: str) -> None:
    """The writer's statement waits for a lock and is ended by `how`."""
    async with table_locked(dsn) as admin:
        task = asyncio.create_task(writer.write(rows, []))
        backend = await waiting_for_lock(admin)
        assert await admin.fetchval(f"SELECT {how}($1)", backend)
        with pytest.raises(LedgerUnavailable):
            await task


@pytest.mark.parametrize("how", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_writer_interrupted_is_unavailable_and_the_same_call_does_later(
    how: str, writer: LedgerWriter, ledger: Pool, dsn: str
) -> None:
    rows = [row(n) for n in range(1, 6)]
    await interrupted(writer, rows, dsn, how)
    assert await counts(ledger) == whole(0)
    assert await writer.write(rows, []) == (5, 0)
    assert await counts(ledger) == whole(5)


async def test_writer_locked_out_longer_than_its_limit_is_unavailable_and_fine_later(dsn: str, ledger: Pool) -> None:
    hasty = await open_pool(dsn, "hasty", 0.3, size=1)
    rows = [row(n) for n in range(1, 6)]
    async with table_locked(dsn):
        with pytest.raises(LedgerUnavailable):
            await LedgerWriter(hasty).write(rows, [])
    assert await counts(ledger) == whole(0)
    hasty.terminate()
    patient = LedgerWriter(ledger)
    assert await patient.write(rows, []) == (5, 0)


async def test_ask_loser_of_a_deadlock_tries_again(dsn: str, ledger: Pool) -> None:
    """Two transactions lock two orders crosswise; Postgres ends one of them, and both are done in the end."""
    await LedgerWriter(ledger).write([row(1), row(2)], [])
    both_hold = asyncio.Barrier(2)
    tries, one_is_done = 0, asyncio.Event()

    async def cross(first: int, second: int) -> None:
        nonlocal tries
        tries += 1
        if tries > 2:
            await one_is_done.wait()  # else it might take the winner's next row first, and a third one lose
        async with ledger.acquire() as connection, connection.transaction():
            await connection.execute("UPDATE orders SET version = version + 1 WHERE shard = 3 AND seq = $1", first)
            if tries <= 2:
                await both_hold.wait()
            await connection.execute("UPDATE orders SET version = version + 1 WHERE shard = 3 AND seq = $1", second)
        one_is_done.set()

    await asyncio.gather(ask(lambda: cross(1, 2)), ask(lambda: cross(2, 1)))
    assert tries == 3
    assert [r["version"] for r in await ledger.fetch("SELECT version FROM orders")] == [3, 3]
