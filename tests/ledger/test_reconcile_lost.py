"""Messages to the store that are nowhere are repeated, once; holds of orders that were given up are released."""

import asyncio
from typing import Any

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.errors import CampaignLost
from core.flows import FLOWS
from core.ledger.pool import Pool
from core.settings import Settings
from core.wire import TAIL_BYTES
from lua.connection import SharedConnection
from lua.scripts import Scripts
from tests.conftest import Services
from tests.ledger.at_payment_support import UNITS, opened
from tests.ledger.reconcile_support import (
    cancel,
    given_up,
    mend,
    open_alerts,
    pay,
    reconciler,
    relay,
    repairs,
    round_of,
    set_aside,
    state,
    stock,
)
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_plans import filled, indexes, plan, whole_scans
from tests.ledger.test_relay_restock import Died, Mortal
from tests.ledger.test_relay_restock import run as run_relay
from tests.support import SHARDS, contents, tell
from workers.mender import Mender
from workers.repairs import LOSABLE, losable_moves

__all__ = ["filled"]


@pytest.fixture
async def unpaid(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """20 orders of one red each that take it when they are paid; 5 red."""
    return await opened(desk, settings, store, ledger)


@pytest.fixture
async def sold(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """Three orders of one red each, of 5, paid and settled."""
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 3)
    await drain(store, make_worker(settings, ledger))
    for row in await ledger.fetch("SELECT order_id FROM orders WHERE campaign = $1", sale.campaign):
        await pay(ledger, row["order_id"].bytes)
    assert await relay(ledger, settings) == 3
    return sale


async def lose(ledger: Pool, topic: str, how: str) -> None:
    """The messages of a topic leave the outbox, carried out by nobody."""
    if how == "dead":
        await ledger.execute("INSERT INTO dead_messages SELECT shard, order_id, version, topic, at, now(), 1, 'x' "
                             "FROM outbox WHERE topic = $1", topic)  # fmt: skip
    await ledger.execute("DELETE FROM outbox WHERE topic = $1", topic)


async def rounds_of_three(settings: Settings, ledger: Pool) -> int:
    """Three workers at once, two rounds each; how many orders they mended."""
    workers = [reconciler(settings, ledger) for _ in range(3)]
    for _ in range(2):
        await asyncio.gather(*(w.step() for w in workers))
    for worker in workers:
        worker.stop()
        await worker.run()
    return sum(w.mended for w in workers)


@pytest.mark.parametrize("how", ["lost", "dead"])
async def test_paid_order_whose_allocate_is_gone_gets_its_unit_once(
    how: str, unpaid: Sale, settings: Settings, ledger: Pool, scripts: Scripts, auditor: Auditor
) -> None:
    order = (await ids(ledger))[3]
    await pay(ledger, order)
    await lose(ledger, "allocate", how)
    assert await relay(ledger, settings) == 0
    assert await state(ledger, order) == "allocating"
    assert await rounds_of_three(settings, ledger) == 1
    assert await repairs(ledger) == [("repeated", order)]
    assert await ledger.fetchval("SELECT count(*) FROM dead_messages") == 0
    await relay(ledger, settings)
    assert await state(ledger, order) == "paid"
    assert await stock(scripts, unpaid.parts[0].keys) == (UNITS - 1, 0, 1)
    await balanced(auditor, unpaid)
    assert await rounds_of_three(settings, ledger) == 0
    assert await open_alerts(ledger) == {}


@pytest.mark.parametrize("how", ["lost", "dead"])
async def test_order_paid_back_whose_restock_is_gone_gives_its_unit_back_once(
    how: str, sold: Sale, settings: Settings, ledger: Pool, scripts: Scripts, auditor: Auditor
) -> None:
    order = (await ids(ledger))[1]
    await cancel(ledger, order)
    await lose(ledger, "restock", how)
    assert await relay(ledger, settings) == 0
    assert await stock(scripts, sold.parts[0].keys) == (2, 0, 3)
    assert await rounds_of_three(settings, ledger) == 1
    assert await repairs(ledger) == [("repeated", order)]
    assert await relay(ledger, settings) == 1
    assert await stock(scripts, sold.parts[0].keys) == (3, 0, 3)  # on sale again; what was sold stays so
    await balanced(auditor, sold)
    assert await rounds_of_three(settings, ledger) == 0
    assert await open_alerts(ledger) == {}


@pytest.mark.parametrize(
    ("statement", "when"), [("put_move", "after"), ("end_moves", "before"), ("end_moves", "after")]
)
async def test_restock_gone_in_the_middle_of_its_delivery_gives_back_once(
    statement: str, when: str, sold: Sale, settings: Settings, services: Services, ledger: Pool, scripts: Scripts,
    auditor: Auditor,
) -> None:  # fmt: skip
    order = (await ids(ledger))[1]
    await cancel(ledger, order)
    with pytest.raises(Died):
        await run_relay(Mortal(ledger, statement, when), services)
    await lose(ledger, "restock", "lost")
    assert (await round_of(settings, ledger)).mended == 1
    assert await relay(ledger, settings) == 1
    assert await stock(scripts, sold.parts[0].keys) == (3, 0, 3)
    states = await ledger.fetch("SELECT state FROM stock_moves WHERE kind = 'return'")
    assert [r["state"] for r in states] == ["applied"]
    await balanced(auditor, sold)


async def test_messages_that_wait_or_were_delivered_are_not_repeated(
    unpaid: Sale, sold: Sale, settings: Settings, ledger: Pool
) -> None:
    mine = [o for o in await ids(ledger) if await state(ledger, o) == "accepted"]
    theirs = [o for o in await ids(ledger) if await state(ledger, o) == "paid"]
    for order in mine[: UNITS + 2]:  # two of them come too late, and are paid back without a restock
        await pay(ledger, order)
    await cancel(ledger, theirs[0])
    assert (await round_of(settings, ledger)).mended == 0
    await relay(ledger, settings)
    await cancel(ledger, (await ids_in(ledger, "paid"))[0])
    await relay(ledger, settings)
    assert len(await ids_in(ledger, "refund_pending")) == 4
    assert (await round_of(settings, ledger)).mended == 0
    assert await repairs(ledger) == []


async def ids_in(ledger: Pool, name: str) -> list[bytes]:
    rows = await ledger.fetch("SELECT order_id FROM orders WHERE state = $1 ORDER BY order_id", name)
    return [r["order_id"].bytes for r in rows]


async def test_allocate_of_an_order_that_moved_on_by_hand_is_not_repeated(
    unpaid: Sale, settings: Settings, ledger: Pool, auditor: Auditor
) -> None:
    order = (await ids(ledger))[0]
    await pay(ledger, order)
    await lose(ledger, "allocate", "lost")
    await OrderDesk(ledger, SHARDS).act(order, "too_late", "operator", "operator")
    assert (await round_of(settings, ledger)).mended == 0
    await relay(ledger, settings)
    await balanced(auditor, unpaid)


async def test_message_that_is_lost_again_is_an_alert(unpaid: Sale, settings: Settings, ledger: Pool) -> None:
    order = (await ids(ledger))[0]
    await pay(ledger, order)
    for expected in (1, 0):
        await lose(ledger, "allocate", "lost")
        assert (await round_of(settings, ledger)).mended == expected
    assert await open_alerts(ledger) == {"unmended": 1}
    assert "repeated in vain" in await ledger.fetchval("SELECT detail FROM alerts")
    await ledger.execute("UPDATE repairs SET at = at - interval '2 hours'")
    assert (await round_of(settings, ledger)).mended == 1


async def test_order_whose_allocate_and_then_restock_is_gone_has_each_repeated(
    unpaid: Sale, settings: Settings, ledger: Pool, scripts: Scripts, auditor: Auditor
) -> None:
    """Within the hour in which the same repair is not made again."""
    order = (await ids(ledger))[0]
    await pay(ledger, order)
    await lose(ledger, "allocate", "lost")
    assert (await round_of(settings, ledger)).mended == 1
    await relay(ledger, settings)
    await cancel(ledger, order)
    await lose(ledger, "restock", "lost")
    assert (await round_of(settings, ledger)).mended == 1
    assert await repairs(ledger) == [("repeated", order)] * 2
    await relay(ledger, settings)
    assert await stock(scripts, unpaid.parts[0].keys) == (UNITS, 0, 1)
    await balanced(auditor, unpaid)


async def test_message_of_another_campaign_or_epoch_is_left_alone(
    unpaid: Sale, settings: Settings, ledger: Pool, desk: CampaignDesk, store: SharedConnection
) -> None:
    order = (await ids(ledger))[0]
    await pay(ledger, order)
    await lose(ledger, "allocate", "lost")
    await ledger.execute("UPDATE orders SET epoch = 2 WHERE order_id = $1", UUID(order))
    assert (await mend(desk, unpaid, Mender(store, ledger, SHARDS))).done == 0
    await ledger.execute("UPDATE orders SET epoch = 1, campaign = 'other' WHERE order_id = $1", UUID(order))
    assert (await mend(desk, unpaid, Mender(store, ledger, SHARDS))).done == 0


@pytest.mark.parametrize("order_type", ["goods", "virtual", "reserve_at_payment"])
def test_order_in_want_of_a_message_is_in_a_state_that_the_index_has(order_type: str) -> None:
    flow = FLOWS[order_type]
    moves = list(zip(*losable_moves(order_type), strict=True))
    assert {topic for _, _, topic in moves} == {"restock"} | (
        {"allocate"} if flow.step("allocating", "allocated") else set()
    )
    for before, action, topic in moves:
        step = flow.step(before, action)
        assert step is not None
        if topic == "allocate":
            assert step.to == "allocating"
        else:
            assert flow.reachable(step.to) == {"refund_pending", "refunded"}
    assert set(LOSABLE) == {"allocate", "restock"}


async def test_look_for_lost_messages_and_dropped_orders_uses_the_indexes(filled: Pool) -> None:
    await filled.execute("UPDATE orders SET state = 'refunded' WHERE seq % 100 = 0")
    await filled.execute("""
        INSERT INTO order_events SELECT shard, order_id, 1, now(), 'accept', NULL, 'accepted', 'x', '' FROM orders""")
    await filled.execute("""
        INSERT INTO deliveries SELECT shard, order_id, 1, 'settle', now(), 0, 0, 1, '' FROM orders""")
    await filled.execute("""
        INSERT INTO outbox (shard, order_id, version, topic, at) SELECT shard, order_id, 1, 'payment', now()
        FROM orders""")
    await filled.execute("INSERT INTO dead_letters SELECT n % 8, 'x' || n, 0, 'sale1', 1, n, gen_random_uuid(), '', '' "
                         "FROM generate_series(1, 20000) n")  # fmt: skip
    await filled.execute("ANALYZE")
    nodes = await plan(filled, "lost_messages", 3, "sale3", 1, *losable_moves("goods"), 1_000)
    assert {"orders_waiting", "order_events_pkey"} <= indexes(nodes)
    assert not {"orders", "order_events", "outbox", "deliveries"} & set(whole_scans(nodes))
    some = [r[0] for r in await filled.fetch("SELECT order_id FROM orders WHERE shard = 3 LIMIT 500")]
    nodes = await plan(filled, "dropped_orders", 3, some)
    assert "dead_letters_order" in indexes(nodes)
    assert not {"orders", "dead_letters"} & set(whole_scans(nodes))


@pytest.mark.parametrize("how", ["dropped", "standing", "in the intake", "in the ledger", "one of two letters"])
async def test_hold_of_an_order_that_was_given_up_is_released_and_no_other(
    how: str, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, scripts: Scripts,
    auditor: Auditor,
) -> None:  # fmt: skip
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 3)
    keys = sale.parts[0].keys
    [(_, fields)] = await tell(store, "XRANGE", keys.intake, "-", "+")
    order = (await set_aside(settings, store, ledger))[1]
    if how != "standing":
        await given_up(ledger, order)
    if how in ("in the intake", "in the ledger"):
        await tell(store, "XADD", keys.intake, "*", *fields)
    if how == "in the ledger":
        await drain(store, make_worker(settings, ledger))
    elif how == "one of two letters":
        await ledger.execute("INSERT INTO dead_letters SELECT shard, 'other', place, campaign, epoch, seq, order_id, "
                             "reason, payload FROM dead_letters WHERE order_id = $1", UUID(order))  # fmt: skip
    ends = 1 if how == "dropped" else 0
    assert (await round_of(settings, ledger)).mended == ends
    assert await repairs(ledger) == [("released", order)] * ends
    assert await stock(scripts, keys) == (2 + ends, 3 - ends, 0)
    if how != "in the intake":  # no command leaves it so
        await balanced(auditor, sale)
        assert await open_alerts(ledger) == {}
    assert (await round_of(settings, ledger)).mended == 0


async def test_dropped_hold_that_cannot_be_read_is_told(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 1)
    [order] = await set_aside(settings, store, ledger)
    await given_up(ledger, order)
    await tell(store, "HSET", sale.parts[0].keys.holds, order, b"x" * 40)
    assert (await round_of(settings, ledger)).mended == 0
    assert "unmended" in await open_alerts(ledger)


@pytest.mark.parametrize("topic", ["settle", "release"])
@pytest.mark.parametrize("hold", [b"", b"x" * TAIL_BYTES, b"x" * 40])
async def test_hold_that_cannot_be_read_of_an_ended_order_is_told_and_the_others_are_mended(
    hold: bytes, topic: str, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale, other = await Sale.open(desk, {"red": 5}), await Sale.open(desk, {"red": 5})
    for one in (sale, other):
        await one.accept(store, 2)
    await drain(store, make_worker(settings, ledger))
    orders = await ids(ledger)
    bad = min((await tell(store, "HGETALL", sale.parts[0].keys.holds))[::2])
    for order in orders:
        await (pay if topic == "settle" else cancel)(ledger, order)
    await lose(ledger, topic, "lost")
    await tell(store, "HSET", sale.parts[0].keys.holds, bad, hold)
    assert (await round_of(settings, ledger)).mended == 3
    assert [o for _, o in await repairs(ledger)] == [o for o in orders if o != bad]
    assert set(await open_alerts(ledger)) == {"unbalanced", "unmended"}


class Between(Mender):
    """The store's campaign is replaced by another epoch's just when the holds were looked at."""

    async def _sort(self, *args: Any) -> None:
        await super()._sort(*args)
        await self._repairs.tell(("HSET", args[0].keys.meta, "epoch", 2))


@pytest.mark.parametrize("what", ["ended", "orphan"])
@pytest.mark.parametrize("mender", [Mender, Between])
async def test_holds_of_another_epoch_are_not_mended(
    what: str, mender: type[Mender], desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    """With a control: in their own epoch they are."""
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 2)
    keys = sale.parts[0].keys
    if what == "orphan":
        await tell(store, "XTRIM", keys.intake, "MAXLEN", 0)
    else:
        await drain(store, make_worker(settings, ledger))
        for order in await ids(ledger):
            await cancel(ledger, order)
        await lose(ledger, "release", "lost")
    if mender is Mender:
        assert (await mend(desk, sale, Mender(store, ledger, SHARDS))).done == 2
        return
    before = await contents(store)
    with pytest.raises(CampaignLost):
        await mend(desk, sale, Between(store, ledger, SHARDS))
    await tell(store, "HSET", keys.meta, "epoch", 1)
    assert await contents(store) == before
    assert await repairs(ledger) == []
    assert await ledger.fetchval("SELECT count(*) FROM outbox WHERE topic = 'release'") == 0
