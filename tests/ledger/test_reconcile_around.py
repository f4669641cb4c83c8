"""Around the reconcile worker: units taken at payment, what the doctor says, and statements that use their indexes."""

from typing import Literal

import asyncpg
import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.scripts import Scripts
from ops.desk import Place
from ops.doctor_ledger import ledger_checks
from ops.doctor_store import _backlog
from tests.ledger.reconcile_support import copied, entry_lost, pay, put_back, relay, repairs, round_of, stock
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_plans import filled, indexes, plan, whole_scans
from tests.support import tell
from workers.alerts import LOST, Alerts
from workers.repairs import ending_moves

__all__ = ["filled"]


async def test_order_that_took_its_units_at_payment_is_settled_again_in_an_old_copy_of_the_store(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, scripts: Scripts
) -> None:
    sale = await Sale.open(desk, {"red": 5}, order_type="reserve_at_payment")
    await sale.accept(store, 3)
    keys = sale.parts[0].keys
    await drain(store, make_worker(settings, ledger))
    order = (await ids(ledger))[1]
    copy = await copied(store, keys)
    await pay(ledger, order)
    await relay(ledger, settings)
    assert await stock(scripts, keys) == (4, 0, 1)
    await put_back(store, copy)
    assert await stock(scripts, keys) == (5, 0, 0)
    worker = await round_of(settings, ledger)
    assert (worker.mended, await repairs(ledger)) == (1, [("settled", order)])
    assert await relay(ledger, settings) == 1
    assert await stock(scripts, keys) == (4, 0, 1)
    await balanced(auditor, sale)


async def test_bare_hold_of_a_lost_entry_is_put_back_and_still_takes_nothing(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor, scripts: Scripts
) -> None:
    sale = await Sale.open(desk, {"red": 5}, order_type="reserve_at_payment")
    await sale.accept(store, 3)
    keys = sale.parts[0].keys
    await entry_lost(store, keys)
    assert (await round_of(settings, ledger)).mended == 3
    await drain(store, make_worker(settings, ledger))
    await pay(ledger, (await ids(ledger))[0])
    await relay(ledger, settings)
    assert await stock(scripts, keys) == (4, 0, 1)
    await balanced(auditor, sale)


async def told(settings: Settings, name: str) -> list[tuple[str, str]]:
    """What the doctor says of this."""
    return [(c.verdict, c.words) for c in await ledger_checks(Place(settings)) if c.name == name]


async def test_doctor_tells_alerts_and_repairs(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 3)
    keys = sale.parts[0].keys
    [(verdict, words)] = await told(settings, "alerts")
    assert (verdict, words) == ("ok", "none stands; no order was mended in the last 24 h")
    await entry_lost(store, keys)
    await tell(store, "HINCRBY", keys.stock, "red", 1)
    await round_of(settings, ledger)
    [(verdict, words)] = await told(settings, "alert")
    assert verdict == "wrong"
    assert words.startswith(f"unbalanced in campaign {sale.campaign} since ")
    assert "seen 1 times: " in words
    [(verdict, words)] = await told(settings, "repairs")
    assert (verdict, words.partition(";")[0]) == ("warning", "orders mended in the last 24 h: 3 requeued")
    [(verdict, words)] = await told(settings, "reconcile worker")
    assert (verdict, words) == ("warning", "none is at work: `rushgate worker reconcile`")
    [(_, words)] = await told(settings.with_values(reconcile_workers=0), "reconcile worker")
    assert words.startswith("RUSHGATE_RECONCILE_WORKERS is 0")


@pytest.mark.parametrize(("recovery", "workers", "remedy"), [("auto", 1, "a reconcile worker rebuilds it by itself; if "
    "that takes long: "), ("auto", 0, "it waits for "), ("manual", 1, "it waits for ")])  # fmt: skip
async def test_doctor_tells_how_a_lost_campaign_comes_back(
    recovery: Literal["auto", "manual"], workers: int, remedy: str, settings: Settings, ledger: Pool
) -> None:
    await Alerts(ledger, settings.shards).tell("lost-one", {LOST: "nothing found"})
    [(verdict, words)] = await told(settings.with_values(recovery=recovery, reconcile_workers=workers), "alert")
    assert verdict == "wrong"
    assert words.endswith(f": nothing found; {remedy}`rushgate rebuild lost-one`")


async def test_doctor_tells_rebuilds_of_the_last_day_and_their_gaps(settings: Settings, ledger: Pool) -> None:
    assert await told(settings, "rebuilds") == [("ok", "none in the last 24 h")]
    await ledger.execute("""
        INSERT INTO rebuilds (shard, campaign, epoch, at, made_by, why, done_at, base, orders, held, sold, gap, missing)
        VALUES (1, 'a', 2, now() - interval '3 min', 'x', 'w2', now(), 30, 25, 1, 1, 5, '26-30'),
               (2, 'a', 2, now() - interval '3 min', 'x', 'w2', now(), 30, 28, 1, 1, 2, '3, 4'),
               (3, 'a', 2, now() - interval '3 min', 'x', 'w2', now(), 30, 30, 1, 1, 0, ''),
               (1, 'a', 3, now() - interval '2 min', 'x', 'w3', now(), 30, 25, 1, 1, 0, ''),
               (1, 'b', 2, now() - interval '1 min', 'x', 'w4', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
               (1, 'old', 2, now() - interval '25 h', 'x', 'w5', now(), 30, 25, 1, 1, 0, '')""")
    (_, unfinished), (_, sound), (_, gap) = found = await told(settings, "rebuild")
    assert [verdict for verdict, _ in found] == ["warning", "ok", "warning"]
    assert unfinished.startswith("campaign b, ")
    assert unfinished.endswith(", epoch 2: not done: it was set aside or broken off, or is under way; why: w4")
    assert sound.endswith(", epoch 3: 25 orders, no gap; why: w3")
    assert gap.endswith(
        ", epoch 2: 83 orders, gap of 7 orders that the store lost, the numbers of shard 1: 26-30; shard 2: 3, 4; "
        "why: w2"
    )


async def test_doctor_tells_the_backlog_against_the_marks_of_backpressure(
    desk: CampaignDesk, settings: Settings, store: SharedConnection
) -> None:
    sale = await Sale.open(desk, {"red": 20})

    async def said(**marks: float) -> tuple[str, str]:
        check = await _backlog(settings.with_values(**marks), store)
        return check.verdict, check.words

    assert await said() == ("ok", "no order waits for the ledger; no mark is near")
    await sale.accept(store, 12)
    verdict, words = await said()
    assert (verdict, words[:45]) == ("ok", "12 orders wait for the ledger, the oldest sin")
    assert await said(intake_high_orders=20) == (
        "warning",
        "gateways that have begun to refuse orders go on until it is less: "
        "12 orders wait for the ledger, 20 are the mark",
    )
    assert await said(intake_high_orders=11) == (
        "wrong",
        "new orders are refused with 503 `overloaded`: 12 orders wait for the ledger, 11 are the mark; "
        "do enough ledger workers work?",
    )


async def test_doctor_knows_a_reconcile_worker_by_its_connection(settings: Settings) -> None:
    connection = await asyncpg.connect(
        settings.ledger_dsn, server_settings={"application_name": "rushgate-reconcile-1-ab"}
    )
    assert await told(settings, "reconcile worker") == [("ok", "1 at work")]
    await connection.close()


@pytest.mark.parametrize("order_type", ["goods", "virtual", "reserve_at_payment"])
def test_ending_moves_are_those_that_the_flow_gives_a_message_for_the_hold(order_type: str) -> None:
    moves = set(zip(*ending_moves(order_type), strict=True))
    assert {("accepted", "cancel", "release"), ("accepted", "expire", "release")} <= moves
    if order_type == "reserve_at_payment":
        late, taken = ("allocating", "too_late", "release"), ("allocating", "allocated", "settle")
        assert moves >= {late, taken}
        assert not any(action == "pay" for _, action, _ in moves)
    else:
        assert ("accepted", "pay", "settle") in moves


async def test_look_at_holds_and_numbers_uses_the_keys(filled: Pool) -> None:
    await filled.execute("""
        INSERT INTO order_events SELECT shard, order_id, 1, now(), 'accept', NULL, 'accepted', 'x', '' FROM orders""")
    await filled.execute("""
        INSERT INTO outbox (shard, order_id, version, topic, at) SELECT shard, order_id, 1, 'payment', now()
        FROM orders""")
    await filled.execute("ANALYZE")
    some = [r[0] for r in await filled.fetch("SELECT order_id FROM orders WHERE shard = 3 LIMIT 500")]
    nodes = await plan(filled, "ended_holds", 3, some, *ending_moves("goods"))
    assert {"order_events_pkey"} <= indexes(nodes)
    assert not {"order_events", "outbox"} & set(whole_scans(nodes))
    nodes = await plan(filled, "missing_numbers", 3, "sale3", 1, 20_000, [1], [10], 100, 0)
    assert {"orders_seq_key", "orders_request_key"} & indexes(nodes)  # both begin with shard and campaign
    assert "orders" not in whole_scans(nodes)
