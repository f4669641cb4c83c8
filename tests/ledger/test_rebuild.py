"""A campaign that the store lost comes back from the ledger as it was: stock, limits, keys, holds."""

import argparse
import asyncio

import asyncpg
import pytest
from asyncpg.pgproto.pgproto import UUID
from msgspec import convert

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.errors import Refused
from core.ids import IdSource
from core.ledger.pool import Pool
from core.ledger.queries import query
from core.model import OrderRequest, Restock, ShipTo
from core.settings import Settings
from core.wire import TOO_LATE
from gateway.catalogue import Sale as GatewaySale
from gateway.prepare import prepare
from lua.connection import SharedConnection
from lua.reserve import Fenced, ReserveCode
from lua.scripts import ReleaseCode, Scripts
from ops import rebuild_commands
from tests.ledger.rebuild_support import Life, in_service, letters, rebuilder, wiped
from tests.ledger.reconcile_support import cancel, pay
from tests.ledger.support import Sale, make_worker, row, waiting_for_lock
from tests.support import SHARDS, contents, fresh, spec, tell
from workers.writer import LedgerWriter


@pytest.fixture(params=[1, 3])
async def life(
    request: pytest.FixtureRequest, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> Life:
    """On one shard, and on three: 100 units, 12 orders in four stages."""
    sale = await Sale.open(desk, {"red": 100}, spread=request.param, limits={"buyer": 1, "ip": 50})
    found = Life(sale, settings, ledger, store)
    await found.live()
    return found


async def test_rebuild_of_a_wiped_store_gives_everything_back(
    life: Life, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    before = await life.taken()
    await wiped(store)
    done = await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    assert done.audit is not None
    assert (done.state, done.audit.ok, sum(s.gap for s in done.shards)) == ("open", True, 0)
    assert await life.taken() == before == (103, 94, 3, 6)
    report = await in_service(desk, auditor, life.sale, 2)
    assert (report.accepted, report.persisted, report.gap) == (12, 12, 0)
    await life.replayed(2)
    # Limits: who has an order is at the limit of one, who gave it back is not.
    for stage, code in (("held", ReserveCode.OVER_LIMIT), ("sold", ReserveCode.OVER_LIMIT),
                        ("cancelled", ReserveCode.ACCEPTED), ("back", ReserveCode.ACCEPTED)):  # fmt: skip
        buyer = life.asked[life.stages[stage][0]].buyer_id
        part = life.sale.part(buyer)
        [outcome] = (await part.reserve(store, part.ask(buyer))).outcomes
        assert outcome.code is code, stage
    assert await life.sell_out(2) == 92
    await life.drain()
    report = await in_service(desk, auditor, life.sale, 2)
    assert (report.accepted, report.unsold, report.oversold) == (12 + 94, 0, 0)


async def test_rebuilt_holds_end_once(
    life: Life, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    """Messages that waited through the loss find their holds by the campaign's epoch, not by their order's."""
    for order in life.stages["held"][:2]:
        await cancel(ledger, order)
    late = life.stages["sold"][0]
    await OrderDesk(ledger, SHARDS).act(late, "cancel", "buyer", "buyer:app")
    await wiped(store)
    await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    # Two were cancelled on record before the rebuild: it gave them no hold, and the message finds nothing.
    assert (await life.taken())[2] == 1
    await cancel(ledger, life.stages["held"][2])
    assert await life.relay() == 4
    assert await life.taken() == (104, 98, 0, 6)
    outcomes = await ledger.fetch("SELECT outcome, count(*) FROM deliveries WHERE topic = 'release' GROUP BY 1")
    assert {r["outcome"]: r["count"] for r in outcomes} == {"released": 3 + 1, "nothing": 2}
    await in_service(desk, auditor, life.sale, 2)
    await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "once more, of a healthy campaign")
    assert await life.taken() == (104, 98, 0, 6)
    await in_service(desk, auditor, life.sale, 3)


async def test_orders_of_an_earlier_epoch_that_come_late_are_set_aside(
    life: Life, desk: CampaignDesk, auditor: Auditor, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    """A worker that had read an entry before the loss writes it after the rebuild: the order's hold is gone."""
    [read] = await life.accept(1)
    part = life.sale.part(life.asked[read].buyer_id)
    [[_, fields]] = await tell(store, "XRANGE", part.keys.intake, "-", "+")
    lost = await life.accept(1)
    await wiped(store)
    done = await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    assert sum(s.orders for s in done.shards) == 12  # the loss of the last ones cannot be seen by number
    await tell(store, "XADD", part.keys.intake, "*", *fields)
    worker = make_worker(settings, ledger)
    await worker.step()
    assert (worker.written, worker.dead) == (0, 1)
    worker.stop()
    await worker.run()
    [(order, reason)] = await letters(ledger)
    assert (order.bytes, reason.startswith(TOO_LATE)) == (read, True)
    assert await ledger.fetchval("SELECT count(*) FROM order_items WHERE order_id = $1", UUID(read)) == 0
    await life.replayed(2, (read, *lost))
    await life.sell_out(2)
    await life.drain()
    report = await in_service(desk, auditor, life.sale, 2)
    assert (report.accepted, report.persisted) == (12 + 94, 12 + 94)
    # It has no hold in the next life either.
    await wiped(store)
    await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "again")
    await in_service(desk, auditor, life.sale, 3)


@pytest.mark.parametrize("life", [1], indirect=True)  # numbers are per shard
async def test_gap_is_told_by_number_and_not_lost_again(
    life: Life, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    keys = life.sale.parts[0].keys
    await life.accept(2)
    for _ in range(2):  # numbers 13 and 14 leave the stream without a row
        [[entry, _], *_] = await tell(store, "XRANGE", keys.intake, "-", "+")
        await tell(store, "XDEL", keys.intake, entry)
    await life.accept(1)
    await life.drain()
    await wiped(store)
    done = await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    assert [(s.base, s.gap, s.missing) for s in done.shards] == [(15, 2, "13-14")]
    report = await in_service(desk, auditor, life.sale, 2)
    assert (report.accepted, report.persisted, report.gap, report.lost) == (15, 13, 2, 0)
    row = await ledger.fetchrow("SELECT base, orders, gap, missing FROM rebuilds")
    assert dict(row or {}) == {"base": 15, "orders": 13, "gap": 2, "missing": "13-14"}


async def test_whoever_believes_in_the_old_epoch_is_fenced(
    life: Life, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    before = await contents(store)
    part = life.sale.parts[0]
    part.epoch = 1
    with pytest.raises(Fenced):
        await part.reserve(store, part.ask("late"))
    order = life.stages["held"][0]
    scripts = Scripts(store)
    for call in (scripts.release, scripts.settle, scripts.allocate):
        assert await call(life.sale.part(life.asked[order].buyer_id).keys, 1, [order]) is None
    assert await contents(store) == before
    part = life.sale.part(life.asked[order].buyer_id)
    assert await scripts.release(part.keys, 2, [order]) == [ReleaseCode.RELEASED]


async def test_dry_run_changes_nothing_and_tells_the_same(
    life: Life, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    before = await contents(store), await ledger.fetch("SELECT * FROM campaigns")
    planned = await rebuilder(desk, auditor, store, ledger).plan(life.sale.campaign)
    assert (await contents(store), await ledger.fetch("SELECT * FROM campaigns")) == before
    assert planned.before == planned.after
    done = await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    assert (planned.after, planned.shards) == (done.after, done.shards)


async def test_changes_of_stock_are_made_once_through_a_loss(
    life: Life, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    """One was made and is on record; of another the record was not written."""
    await desk.restock(life.sale.campaign, Restock(id="made", sku="red", units=10))
    await desk.restock(life.sale.campaign, Restock(id="halfway", sku="red", units=5))
    await ledger.execute("UPDATE stock_moves SET state = 'pending' WHERE move_id = 'restock.halfway'")
    await wiped(store)
    await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    assert (await life.taken())[0] == 103 + 15
    for name, units in (("made", 10), ("halfway", 5)):
        again = await desk.restock(life.sale.campaign, Restock(id=name, sku="red", units=units))
        assert (again.units, again.repeated) == (units, True)
    assert (await life.taken())[0] == 103 + 15
    await in_service(desk, auditor, life.sale, 2)


async def test_stale_record_of_a_change_made_in_the_old_store_counts_for_nothing(
    life: Life, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    """The script was run, then the store was lost and rebuilt, then the record is written: the units are not there."""
    old = await desk.show(life.sale.campaign)
    await desk.restock(life.sale.campaign, Restock(id="stale", sku="red", units=9))
    await ledger.execute("UPDATE stock_moves SET state = 'pending', kind = 'return' WHERE move_id = 'restock.stale'")
    await wiped(store)
    await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    for shard in life.sale.shards:
        await desk._end_move(old, shard, "restock.stale", "applied")
    assert await ledger.fetchval("SELECT count(*) FROM stock_moves WHERE state = 'applied' AND units = 9") == 0
    await ledger.execute("UPDATE stock_moves SET kind = 'restock' WHERE move_id = 'restock.stale'")
    await in_service(desk, auditor, life.sale, 2)


async def test_address_as_first_sent_makes_the_fingerprint(
    desk: CampaignDesk, auditor: Auditor, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 10, "blue": 10})
    life = Life(sale, settings, ledger, store)
    known = await desk.show(sale.campaign)
    seen = GatewaySale(sale.campaign, 1, known.version, known.spec, SHARDS)
    home = {"name": "安娜", "phone": "1234", "address": "Street 1", "country": "CN"}
    for ship_to in ({"ship_to": home}, {}):
        order = {"buyer_id": fresh("b"), "items": [{"sku": "red", "quantity": 2}, {"sku": "blue", "quantity": 1}]}
        request = convert(order | ship_to | {"device_id": "d", "client_ip": "::ffff:10.0.0.1"}, OrderRequest)
        _, ask = prepare(IdSource(), seen, "app", fresh("key"), request)
        assert (await sale.parts[0].reserve(store, ask)).outcomes[0].code is ReserveCode.ACCEPTED
        life.asked[ask.order_id] = ask
    await life.drain()
    for order_id in life.asked:  # twice: only the first address counts
        for street in ("Street 2", "Street 3"):
            elsewhere = ShipTo(name="Bob", phone="1234", address=street)
            await OrderDesk(ledger, SHARDS).change(order_id, elsewhere, "buyer", "buyer:app", None)
    before = await contents(store)
    await wiped(store)
    await rebuilder(desk, auditor, store, ledger).rebuild(sale.campaign, "test")
    await life.replayed(2)
    assert (await contents(store))[sale.parts[0].keys.requests] == before[sale.parts[0].keys.requests]


async def test_draft_and_foreign_campaigns_are_refused(
    desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool, life: Life
) -> None:
    name = fresh("draft")
    await desk.put(name, spec())
    with pytest.raises(Refused):
        await rebuilder(desk, auditor, store, ledger).rebuild(name, "test")
    meta = life.sale.parts[0].keys.meta
    await tell(store, "HSET", meta, "deployment", "another")
    before = await contents(store)
    with pytest.raises(Refused, match="another deployment"):
        await rebuilder(desk, auditor, store, ledger).rebuild(life.sale.campaign, "test")
    assert await contents(store) == before


async def test_orders_that_are_paid_before_they_are_allocated_come_back_without_units(
    desk: CampaignDesk, auditor: Auditor, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    """Of five: two unpaid, one allocated and sold, two whose allocation waits. The message finds the hold again."""
    sale = await Sale.open(desk, {"red": 3}, order_type="reserve_at_payment", limits={"buyer": 1})
    life = Life(sale, settings, ledger, store)
    first, second, third, *_ = await life.accept(5)
    await life.drain()
    await pay(ledger, first)
    await life.relay()
    for order in (second, third):
        await pay(ledger, order)
    await wiped(store)
    await rebuilder(desk, auditor, store, ledger).rebuild(sale.campaign, "test")
    assert await life.taken() == (3, 2, 0, 1)
    await life.relay()
    assert await life.taken() == (3, 0, 0, 3)
    await life.replayed(2)
    await in_service(desk, auditor, sale, 2)


async def test_insert_that_waits_while_an_epoch_begins_sees_it(ledger: Pool, dsn: str) -> None:
    """The race between a late worker and a rebuild: whichever is first, the other one sees it."""
    late = row(1)
    worker = LedgerWriter(ledger)
    async with ledger.acquire() as connection:
        watch = await asyncpg.connect(dsn)
        async with connection.transaction():
            await connection.execute(query("lock_writers"))
            writing = asyncio.create_task(worker.write([late], []))
            await waiting_for_lock(watch)
            await connection.execute(query("put_rebuilds"), [late.shard], late.header.campaign, 2, "test", "test")
        assert await writing == (0, 1)
        await watch.close()
    assert [order.bytes for order, _ in await letters(ledger)] == [late.order_id]


async def test_command_rebuilds_and_tells_the_balance(
    life: Life, desk: CampaignDesk, auditor: Auditor, settings: Settings, store: SharedConnection,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    await wiped(store)
    for dry in (True, False):
        args = argparse.Namespace(campaign=life.sale.campaign, dry_run=dry, json=False)
        assert await rebuild_commands.run(settings, args) == 0
    told = capsys.readouterr().out
    assert "nothing was changed" in told
    assert "audit: ok accepted=12 persisted=12" in told
    assert f"campaign {life.sale.campaign}: open, epoch 2" in told
    await in_service(desk, auditor, life.sale, 2)
