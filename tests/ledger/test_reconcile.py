"""The reconcile worker mends what is surely broken, once."""

import asyncio
from collections.abc import Sequence

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.errors import CampaignLost
from core.ledger.pool import Pool
from core.settings import Settings
from core.wire import encode, read_entry, read_hold, request_field
from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from lua.scripts import Scripts
from tests.ledger.reconcile_support import (
    cancel,
    copied,
    entry_lost,
    mend,
    open_alerts,
    pay,
    put_back,
    reconciler,
    relay,
    repairs,
    round_of,
    state,
    stock,
)
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, make_worker, order_id, placed
from tests.support import SHARDS, contents, eventually, tell
from workers.expiry import ExpiryWorker
from workers.mender import Mender
from workers.repairs import Repairs


@pytest.fixture
async def sale(desk: CampaignDesk, store: SharedConnection) -> Sale:
    """Twelve orders of one red each, of 25, in four entries, not drained yet."""
    found = await Sale.open(desk, {"red": 25}, limits={"buyer": 1})
    for _ in range(4):
        await found.accept(store, 3)
    return found


async def test_order_whose_entry_was_lost_is_put_back_and_written(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, scripts: Scripts
) -> None:
    keys = sale.parts[0].keys
    lost = await entry_lost(store, keys, 1)
    assert (await auditor.audit(sale.campaign)).lost == 3
    worker = await round_of(settings, ledger)
    assert (worker.mended, worker.alerts) == (3, 0)
    assert await repairs(ledger) == [("requeued", o) for o in sorted(lost)]
    await balanced(auditor, sale)  # they are on their way
    await drain(store, make_worker(settings, ledger))
    report = await balanced(auditor, sale)
    assert (report.persisted, report.dead_lettered) == (12, 0)
    rows = await ledger.fetch(
        "SELECT order_id, seq, accepted_at, pay_by, request_key, channel FROM orders ORDER BY seq"
    )
    assert [r["seq"] for r in rows] == list(range(1, 13))
    assert {r["order_id"].bytes for r in rows[3:6]} == set(lost)
    # The same key gets the same order, and its times are those of its 202.
    row = rows[4]
    record = await tell(store, "HGET", keys.requests, request_field(row["channel"], row["request_key"]))
    assert record[:16] == row["order_id"].bytes
    _, accepted_ms, pay_by_ms = read_hold(await tell(store, "HGET", keys.holds, row["order_id"].bytes))
    assert [int(row[c].timestamp() * 1000 + 0.5) for c in ("accepted_at", "pay_by")] == [accepted_ms, pay_by_ms]
    assert (await round_of(settings, ledger)).mended == 0
    assert await stock(scripts, keys) == (13, 12, 0)


async def test_order_put_back_after_its_time_to_pay_is_expired_and_its_unit_is_left_again(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, scripts: Scripts
) -> None:
    sale = await Sale.open(desk, {"red": 5}, pay_within_s=1)
    await sale.accept(store, 2)
    keys = sale.parts[0].keys
    await entry_lost(store, keys)
    assert (await round_of(settings, ledger)).mended == 2
    await drain(store, make_worker(settings, ledger))
    await ledger.execute("UPDATE orders SET pay_by = now()")
    assert await ExpiryWorker(ledger, range(SHARDS)).step() == 2
    await relay(ledger, settings)
    assert await stock(scripts, keys) == (5, 0, 0)
    await balanced(auditor, sale)


async def test_entry_lost_while_a_dead_worker_had_it_is_put_back(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    keys = sale.parts[0].keys
    await tell(store, "XGROUP", "CREATE", keys.intake, "ledger", "0")
    await tell(store, "XREADGROUP", "GROUP", "ledger", "dead", "COUNT", 9, "STREAMS", keys.intake, ">")
    await entry_lost(store, keys)
    assert (await round_of(settings, ledger)).mended == 3
    await drain(store, make_worker(settings, ledger, claim_idle_ms=0))
    assert (await balanced(auditor, sale)).persisted == 12


async def test_two_workers_at_once_put_each_order_back_under_one_number(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    keys = sale.parts[0].keys
    lost = [o for _ in range(3) for o in await entry_lost(store, keys)]
    workers = [reconciler(settings, ledger) for _ in range(4)]
    await asyncio.gather(*(w.step() for w in workers))
    assert await repairs(ledger) == [("requeued", o) for o in sorted(lost)]
    numbers: dict[bytes, set[int]] = {}
    for _, fields in await tell(store, "XRANGE", keys.intake, "-", "+"):
        header, orders = read_entry(fields)
        if len(orders) == 1:  # an order that was put back stands alone
            numbers.setdefault(orders[0][0], set()).add(header.first_seq)
    assert set(numbers) == set(lost)
    assert {len(given) for given in numbers.values()} == {1}
    await drain(store, make_worker(settings, ledger))
    report = await balanced(auditor, sale)
    assert (report.persisted, report.dead_lettered) == (12, 0)
    for worker in workers:
        worker.stop()
        await worker.run()


async def test_order_journalled_by_a_worker_that_died_gets_the_same_number_from_the_next(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, desk: CampaignDesk, auditor: Auditor
) -> None:
    """The next one finds another order missing too, and would count differently if it counted again."""

    class Dies(Repairs):
        async def tell(self, *commands: Sequence[bytes | str | int]) -> list[object]:
            if commands[0][0] == "XADD":
                raise ConnectionAbortedError
            return await super().tell(*commands)

    keys = sale.parts[0].keys
    await entry_lost(store, keys, 2)
    # The hold of the first is gone too: number 7 stays free, and the others get 7 and 8.
    gone = (await ledger_orders(store, sale))[6]
    hold = await tell(store, "HGET", keys.holds, gone)
    await tell(store, "HDEL", keys.holds, gone)
    mender = Mender(store, ledger, SHARDS)
    mender._repairs.__class__ = Dies
    with pytest.raises(ConnectionAbortedError):
        await mend(desk, sale, mender)
    before = await ledger.fetch("SELECT order_id, why FROM repairs ORDER BY order_id")
    assert [why.rpartition("as number ")[2] for _, why in before] == ["7 of epoch 1", "8 of epoch 1"]
    await tell(store, "HSET", keys.holds, gone, hold)
    assert (await round_of(settings, ledger)).mended == 3
    after = await ledger.fetch("SELECT order_id, why FROM repairs ORDER BY order_id")
    assert [r for r in after if r["order_id"].bytes != gone] == before
    await drain(store, make_worker(settings, ledger))
    assert (await balanced(auditor, sale)).persisted == 12


async def ledger_orders(store: SharedConnection, sale: Sale) -> list[bytes]:
    """All orders of the sale by their hold, as they were accepted."""
    flat = await tell(store, "HGETALL", sale.parts[0].keys.holds)
    return sorted(flat[::2])


async def test_hold_without_order_and_request_is_released(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, scripts: Scripts
) -> None:
    keys, part = sale.parts[0].keys, sale.parts[0]
    [flat] = await store.exchange([("HRANDFIELD", keys.holds, 1, "WITHVALUES")])
    stranger = order_id(part.shard, sale.campaign)
    hold = encode(placed(buyer_id="nobody")) + flat[1][-13:]
    await tell(store, "HSET", keys.holds, stranger, hold)
    await store.exchange([("HINCRBY", keys.stock, "red", -1), ("HINCRBY", keys.stock, "h:red", 1)])
    await tell(store, "HSET", keys.used, "b:nobody", 1)
    assert not (await auditor.audit(sale.campaign)).ok
    worker = await round_of(settings, ledger)
    assert (worker.mended, worker.alerts) == (1, 0)
    assert await repairs(ledger) == [("released", stranger)]
    assert await stock(scripts, keys) == (13, 12, 0)
    assert await tell(store, "HGET", keys.used, "b:nobody") is None
    await balanced(auditor, sale)


@pytest.mark.parametrize(("topic", "ends"), [("release", (14, 11, 0)), ("settle", (13, 11, 1))])
@pytest.mark.parametrize("how", ["lost", "dead", "old copy"])
async def test_ended_order_whose_message_is_gone_has_its_hold_ended_once(
    topic: str, ends: tuple[int, int, int], how: str, sale: Sale, settings: Settings, store: SharedConnection,
    ledger: Pool, auditor: Auditor, scripts: Scripts,
) -> None:  # fmt: skip
    keys = sale.parts[0].keys
    await drain(store, make_worker(settings, ledger))
    order = (await ids(ledger))[4]
    await (pay if topic == "settle" else cancel)(ledger, order)
    if how == "old copy":
        copy = await copied(store, keys)
        assert await relay(ledger, settings) == 1
        assert await stock(scripts, keys) == ends
        await put_back(store, copy)
    elif how == "dead":
        await ledger.execute("INSERT INTO dead_messages SELECT shard, order_id, version, topic, at, now(), 1, 'x' "
                             "FROM outbox WHERE topic = $1", topic)  # fmt: skip
        await ledger.execute("DELETE FROM outbox WHERE topic = $1", topic)
    else:
        await ledger.execute("DELETE FROM outbox WHERE topic = $1", topic)
    assert await stock(scripts, keys) == (13, 12, 0)
    workers = [reconciler(settings, ledger) for _ in range(3)]
    await asyncio.gather(*(w.step() for w in workers))
    assert sum(w.mended for w in workers) == 1
    assert await repairs(ledger) == [({"release": "released", "settle": "settled"}[topic], order)]
    await balanced(auditor, sale)
    assert await relay(ledger, settings) == 1
    assert await stock(scripts, keys) == ends
    await balanced(auditor, sale)
    await asyncio.gather(*(w.step() for w in workers))
    assert len(await repairs(ledger)) == 1
    for worker in workers:
        worker.stop()
        await worker.run()


async def test_units_of_a_mended_hold_are_sold_again(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    await sale.accept(store, 13)
    await drain(store, make_worker(settings, ledger))
    order = (await ids(ledger))[0]
    await cancel(ledger, order)
    await ledger.execute("DELETE FROM outbox WHERE topic = 'release'")
    assert (await round_of(settings, ledger)).mended == 1
    await relay(ledger, settings)

    async def sold() -> bool:
        [outcome] = await sale.buy(store, ["late"])
        return outcome.code is ReserveCode.ACCEPTED

    await eventually(sold)


async def test_more_orphans_than_missing_numbers_is_an_alert_and_no_guess(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    keys = sale.parts[0].keys
    await entry_lost(store, keys, 3)
    await tell(store, "HINCRBY", keys.meta, "seq", -1)
    worker = await round_of(settings, ledger)
    assert worker.mended == 0
    assert await repairs(ledger) == []
    assert await open_alerts(ledger) == {"lost": 1, "unbalanced": 1, "unmended": 1}


async def test_mended_hold_of_an_order_of_another_epoch_is_refused_by_the_store(
    desk: CampaignDesk, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    keys = sale.parts[0].keys
    await drain(store, make_worker(settings, ledger))
    order = (await ids(ledger))[0]
    await cancel(ledger, order)
    await ledger.execute("DELETE FROM outbox WHERE topic = 'release'")
    await tell(store, "HSET", keys.meta, "epoch", 2)
    before = await contents(store)
    with pytest.raises(CampaignLost):
        await mend(desk, sale, Mender(store, ledger, SHARDS))
    assert await contents(store) == before
    assert await state(ledger, order) == "cancelled"
    assert await ledger.fetchval("SELECT count(*) FROM repairs WHERE order_id = $1", UUID(order)) == 0
