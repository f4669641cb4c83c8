"""What the reconcile worker may not mend raises an alert, once; an oversold campaign is closed."""

import asyncio
import logging
from typing import Any

import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.rebuild import Rebuilder
from core.ledger.pool import Pool, open_pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from tests.ledger.reconcile_support import (
    entry_lost,
    is_set_aside,
    open_alerts,
    reconciler,
    repairs,
    round_of,
)
from tests.ledger.relay_support import balanced
from tests.ledger.support import Sale, drain, make_worker, running, table_locked
from tests.support import contents, eventually, fresh, tell
from workers.reconcile import OLD, ReconcileWorker, Seen


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """Twelve orders of one red each, of 25, in the ledger."""
    found = await Sale.open(desk, {"red": 25})
    await found.accept(store, 12)
    await drain(store, make_worker(settings, ledger))
    return found


async def rounds(worker: ReconcileWorker, more: int) -> None:
    """The running worker has begun and ended so many further rounds."""
    seen = worker.rounds

    async def enough() -> bool:
        return worker.rounds > seen + more

    await eventually(enough)


def events(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Log lines of this level by our worker."""
    return [r.getMessage() for r in caplog.records if r.levelno == level and r.name == "rushgate.reconcile"]


@pytest.mark.parametrize("where", ["ledger", "store"])
async def test_oversold_campaign_is_closed_and_alerted_once_until_it_is_over(
    where: str, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, desk: CampaignDesk,
    auditor: Auditor, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    keys = sale.parts[0].keys
    caplog.set_level(logging.INFO)
    if where == "ledger":
        await ledger.execute("UPDATE order_items SET quantity = 17 WHERE order_id = (SELECT min(order_id::text)::uuid "
                             "FROM orders)")  # fmt: skip
    else:  # allocated are 10, 12 are taken: what is left is below 0, and to be left so
        await store.exchange([("HINCRBY", keys.stock, name, -15) for name in ("red", "a:red")])
    worker = reconciler(settings, ledger)
    async with running(worker):
        await rounds(worker, 3)
        assert (await desk.show(sale.campaign)).state == "closed"
        [outcome] = await sale.buy(store, ["late"])
        assert outcome.code is ReserveCode.CLOSED
        assert (await open_alerts(ledger))["oversold"] > 1
        assert events(caplog, logging.ERROR).count("alert") == worker.alerts == len(await open_alerts(ledger)) == 2
        assert (await auditor.audit(sale.campaign)).oversold > 0
        if where == "ledger":
            await ledger.execute("UPDATE order_items SET quantity = 1")
        else:
            await store.exchange([("HINCRBY", keys.stock, name, 15) for name in ("red", "a:red")])
        await rounds(worker, 2)
        assert await open_alerts(ledger) == {}
        assert events(caplog, logging.INFO).count("alert over") == 2
        await balanced(auditor, sale)
    assert await ledger.fetchval("SELECT count(*) FROM alerts WHERE over_at >= first_at AND seen > 1") == 2


async def test_alert_that_comes_back_begins_anew_in_its_row(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    keys = sale.parts[0].keys
    worker = reconciler(settings, ledger)
    for _ in range(2):
        begins = await ledger.fetchval("SELECT clock_timestamp()")
        await tell(store, "HINCRBY", keys.stock, "red", 1)
        for n in (1, 2):
            await worker.step()
            assert await open_alerts(ledger) == {"unbalanced": n}
        assert await ledger.fetchval("SELECT first_at > $1 AND last_at > first_at FROM alerts", begins)
        await tell(store, "HINCRBY", keys.stock, "red", -1)
        await worker.step()
        assert await open_alerts(ledger) == {}
    assert worker.alerts == 2
    worker.stop()
    await worker.run()


@pytest.mark.parametrize("kind", ["lost", "phantom", "duplicated", "over_limit"])
async def test_what_cannot_be_mended_is_alerted_and_left_as_it_is(
    kind: str, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 25}, limits={"buyer": 1})
    await sale.accept(store, 12)
    keys = sale.parts[0].keys
    if kind == "lost":  # and no hold of it is left that it could be put back from
        [order, *_] = await entry_lost(store, keys)
        hold = await tell(store, "HGET", keys.holds, order)
        flat = await tell(store, "HGETALL", keys.holds)
        await tell(store, "HDEL", keys.holds, *flat[::2])
        assert hold
    await drain(store, make_worker(settings, ledger))
    if kind == "phantom":
        await ledger.execute(
            "INSERT INTO dead_letters (shard, entry_id, place, campaign, epoch, seq, reason, payload) "
            "SELECT shard, '1-1', 0, campaign, epoch, seq, 'bad', '' FROM orders WHERE seq = 3"
        )
    elif kind == "duplicated":
        await ledger.execute("ALTER TABLE orders DROP CONSTRAINT orders_request_key")
        await ledger.execute("UPDATE orders SET request_key = 'same' WHERE seq < 3")
    elif kind == "over_limit":
        await ledger.execute("UPDATE orders SET buyer_id = 'anna' WHERE seq < 3")
    before = await contents(store)
    worker = await round_of(settings, ledger)
    assert kind in await open_alerts(ledger)
    assert "oversold" not in await open_alerts(ledger)
    assert (worker.mended, await repairs(ledger)) == (0, [])
    assert await contents(store) == before
    assert (await desk.show(sale.campaign)).state == "open"


async def test_order_gone_from_the_ledger_comes_back_from_its_hold_without_an_alert(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    for table in ("order_items", "order_events", "outbox"):
        await ledger.execute(f"DELETE FROM {table} WHERE order_id IN (SELECT order_id FROM orders WHERE seq = 7)")  # noqa: S608 - ours
    await ledger.execute("DELETE FROM orders WHERE seq = 7")
    worker = await round_of(settings, ledger)
    assert (worker.mended, worker.alerts) == (1, 0)
    await drain(store, make_worker(settings, ledger))
    await balanced(auditor, sale)
    assert await ledger.fetchval("SELECT count(*) FROM orders WHERE seq = 7") == 1


@pytest.mark.parametrize("loss", ["all", "epoch"])
async def test_worker_outlives_a_store_that_lost_a_campaign(
    loss: str, sale: Sale, desk: CampaignDesk, auditor: Auditor, settings: Settings, store: SharedConnection,
    ledger: Pool,
) -> None:  # fmt: skip
    keys = sale.parts[0].keys
    worker = reconciler(settings, ledger, auto=False)  # else it would be rebuilt: tests/faults/test_store_loss.py
    async with running(worker):
        await rounds(worker, 0)
        await (store.exchange([("FLUSHALL",)]) if loss == "all" else store.exchange([("HDEL", keys.meta, "epoch")]))
        await rounds(worker, 2)
        assert list(await open_alerts(ledger)) == ["store_lost"]
        assert worker.alerts == 1
        other = await Sale.open(desk, {"red": 5})
        await other.accept(store, 2)
        await entry_lost(store, other.parts[0].keys)
        await rounds(worker, 1)
        assert worker.mended == 2
        await drain(store, make_worker(settings, ledger))  # both may be on one shard, and a rebuild wants it drained
        await eventually(lambda: is_set_aside(ledger, sale.campaign))
        await Rebuilder(desk, auditor, store, ledger, "test").rebuild(sale.campaign, "test")
        await rounds(worker, 1)
        assert await open_alerts(ledger) == {}


async def test_campaign_that_cannot_be_read_is_alerted_and_does_not_keep_the_others_waiting(
    sale: Sale, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    await tell(store, "DEL", sale.parts[0].keys.holds)
    await tell(store, "SET", sale.parts[0].keys.holds, "no hash")
    others = [await Sale.open(desk, {"red": 5}) for _ in range(2)]
    for other in others:
        await other.accept(store, 2)
        await entry_lost(store, other.parts[0].keys)
    worker = await round_of(settings, ledger)
    assert (worker.mended, await open_alerts(ledger)) == (4, {"unchecked": 1})


async def test_campaign_of_another_program_is_alerted_and_does_not_keep_the_others_waiting(
    sale: Sale, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its definition is one that this program does not take. The others: one listed before it, one behind it."""
    other = await Sale.open(desk, {"red": 5})
    for one in (sale, other):
        await one.accept(store, 2)
        await entry_lost(store, one.parts[0].keys)
    bad = await Sale.open(desk, {"red": 5})
    sound = await ledger.fetchval("SELECT spec::text FROM campaigns WHERE campaign = $1", bad.campaign)
    change = "UPDATE campaigns SET spec = $2::jsonb WHERE campaign = $1"
    await ledger.execute(change, bad.campaign, sound.replace('"spread": 1', '"spread": "many"'))
    worker = reconciler(settings, ledger)
    for _ in range(3):
        await worker.step()
    assert (worker.mended, await open_alerts(ledger)) == (4, {"unchecked": 3})
    assert await ledger.fetchval("SELECT campaign FROM alerts") == bad.campaign
    [line] = [r for r in caplog.records if r.getMessage() == "campaign cannot be checked"]
    assert line.exc_info is not None
    await ledger.execute(change, bad.campaign, sound)
    await worker.step()
    assert await open_alerts(ledger) == {}
    worker.stop()
    await worker.run()


async def test_worker_waits_while_the_ledger_is_away_and_goes_on_by_itself(
    sale: Sale, settings: Settings, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    impatient = await open_pool(dsn, "reconcile", 0.1, size=1)
    worker = reconciler(settings, impatient)
    async with running(worker):
        await rounds(worker, 0)
        async with table_locked(dsn, "campaigns"):
            seen = worker.rounds

            async def waits() -> bool:
                return "reconcile waits" in events(caplog, logging.WARNING)

            await eventually(waits)
        await eventually(lambda: _after(worker, seen + 1))
    assert "reconcile goes on" in events(caplog, logging.INFO)
    assert events(caplog, logging.WARNING).count("reconcile waits") == 1
    impatient.terminate()


async def _after(worker: ReconcileWorker, rounds: int) -> bool:
    return worker.rounds > rounds


async def test_worker_without_a_store_stops_when_told(settings: Settings, ledger: Pool, sale: Sale) -> None:
    worker = reconciler(settings.with_values(store_url="redis://127.0.0.1:1/0"), ledger)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: _tried(ledger))
    assert not task.done()
    worker.stop()
    await asyncio.wait_for(task, 10.0)
    assert (worker.rounds, await open_alerts(ledger)) == (0, {})


async def _tried(ledger: Pool) -> bool:
    return bool(await ledger.fetchval("SELECT count(*) FROM deployment"))


async def test_closed_campaigns_at_rest_take_turns_and_never_keep_the_others_waiting(
    settings: Settings, ledger: Pool
) -> None:
    worker = reconciler(settings, ledger)
    old = [fresh("old") for _ in range(3 * OLD)]
    rows: list[Any] = [{"campaign": name, "state": "closed"} for name in old]
    rows += [{"campaign": f"{state}-1", "state": state} for state in ("open", "paused", "draft", "opening")]
    seen: list[str] = []
    for n in range(1, 4):
        chosen = worker._chosen(rows)
        assert chosen[:2] == ["open-1", "paused-1"]
        assert len(chosen) == 2 + OLD
        seen += chosen[2:]
        for name in chosen:
            worker._seen[name] = Seen(float(n), True)
    assert sorted(seen) == sorted(old)
    assert worker._chosen(rows)[2:] == seen[:OLD]
    worker._seen[old[7]] = Seen(9.0, False)  # something of it is not at rest: it is looked at each time
    assert old[7] in worker._chosen(rows)[:3]


async def test_closed_campaign_with_a_hold_is_not_at_rest(
    sale: Sale, desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    await desk.close(sale.campaign)
    worker = reconciler(settings, ledger)
    await worker.step()
    assert not worker._seen[sale.campaign].at_rest
    other = await Sale.open(desk, {"red": 5})
    await desk.close(other.campaign)
    await worker.step()
    assert worker._seen[other.campaign].at_rest
    worker.stop()
    await worker.run()
