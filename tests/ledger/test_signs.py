"""What workers say of themselves: what they did, what waits, and how long they had nothing to do."""

import asyncio
import json
from typing import Any

import pytest

from core.ledger.pool import Pool
from core.ledger.queries import query
from core.settings import Settings
from lua.connection import SharedConnection, StoreConnection
from lua.registry import Lag, read_signs
from lua.scripts import Scripts
from tests.ledger.support import row
from tests.support import SHARDS, StoreSale, eventually, fresh
from workers import signs
from workers.expiry import ExpiryWorker
from workers.idle import Idle
from workers.ledger import LedgerWorker
from workers.reconcile import ReconcileWorker
from workers.relay import RelayWorker
from workers.signs import Rarely, sign_of
from workers.store_topics import TOPICS
from workers.writer import LedgerWriter

ALL = list(range(SHARDS))


async def test_ledger_worker_tells_what_waits_and_then_what_it_wrote(
    store: SharedConnection, ledger: Pool, settings: Settings
) -> None:
    sale = await StoreSale.open(store, {"red": 1_000})
    for n in range(3):
        await sale.reserve(store, *(sale.ask(f"buyer-{n}-{m}") for m in range(20)))
    connection = StoreConnection(settings.store_url, "fsync", 5.0, "test-drain")
    worker = LedgerWorker(connection, LedgerWriter(ledger), ALL, fresh("ledger"), 1_000, 5_000)
    sign = sign_of(settings, worker, ledger, "ledger", "ledger-test")
    said = await sign.say()
    assert (said.lag_orders, said.more["entries"], said.more["shards_behind"]) == (60, 3, 1)
    assert said.lag_s >= 0
    assert said.more["done"] == 0
    while await worker.step():
        pass
    said = await sign.say()
    assert (said.lag_orders, said.lag_s, said.more["done"]) == (0, 0, 60)
    assert said.rate > 0
    assert said.more["transactions_per_s"] > 0
    await sign.stop()
    await connection.close()


async def test_idle_worker_is_not_busy_and_one_with_work_is(
    store: SharedConnection, ledger: Pool, settings: Settings
) -> None:
    connection = StoreConnection(settings.store_url, "fsync", 5.0, "test-drain")
    worker = LedgerWorker(connection, LedgerWriter(ledger), ALL, fresh("ledger"), 1_000, 5_000)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: asyncio.sleep(0, worker.idle.seconds > 0.2))
    async with ledger.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        sale = await StoreSale.open(store, {"red": 10})
        await sale.reserve(store, sale.ask("buyer"))
        waits = "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND NOT granted"
        await eventually(lambda: holder.fetchval(waits))
        before_s = worker.idle.seconds
        await asyncio.sleep(0.2)  # it waits for the ledger, and that is work
        assert worker.idle.seconds - before_s < 0.1
    await eventually(lambda: asyncio.sleep(0, worker.written == 1))
    worker.stop()
    await task


def test_idle_counts_the_wait_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("workers.idle.time.monotonic", lambda: now_s)
    idle = Idle()
    with idle.waiting():
        now_s = 103.0
        assert idle.seconds == 3
    now_s = 110.0
    assert idle.seconds == 3


async def test_relay_tells_what_is_due_of_the_topics_that_it_serves(
    store: SharedConnection, ledger: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = "INSERT INTO outbox (shard, order_id, version, topic, at, due_at) SELECT $1, gen_random_uuid(), 1, $2, now(), now() + $3::float8 * interval '1 s' FROM generate_series(1, $4)"  # noqa: E501
    for shard, topic, due_s, count in ((3, "release", -5.0, 7), (4, "release", -1.0, 2), (3, "settle", -2.0, 1),
                                       (3, "settle", 60.0, 50), (3, "payment", -90.0, 100)):  # fmt: skip
        await ledger.execute(insert, shard, topic, due_s, count)
    worker = RelayWorker(ledger, StoreConnection(settings.store_url, "fsync", 5.0, "test-relay"), ALL)
    sign = sign_of(settings, worker, ledger, "relay", "relay-test")
    said = await sign.say()
    assert said.lag_orders == 10  # not what waits for partners: nobody told it of any
    assert 5 <= said.lag_s < 30
    assert said.more["waiting"] == {"release": 9, "settle": 1}
    monkeypatch.setattr(signs, "COUNTED", 5)
    sign_again = sign_of(settings, worker, ledger, "relay", "relay-test")
    assert (await sign_again.say()).more["waiting"] == {"release": 7, "settle": 1}, "what is counted is bounded"
    await sign.stop()
    await sign_again.stop()
    await worker.run_down()


async def test_expiry_worker_tells_how_many_are_overdue_and_since_when(ledger: Pool, settings: Settings) -> None:
    await LedgerWriter(ledger).write([row(n, 5) for n in range(1, 11)], [])
    await ledger.execute("UPDATE orders SET pay_by = now() - interval '30 s' WHERE seq <= 4")
    await ledger.execute("UPDATE orders SET pay_by = now() + interval '1 h' WHERE seq > 4")
    sign = sign_of(settings, ExpiryWorker(ledger, ALL), ledger, "expiry", "expiry-test")
    said = await sign.say()
    assert said.lag_orders == 4
    assert 30 <= said.lag_s < 60
    await sign.stop()


async def test_ledger_that_hangs_delays_the_sign_and_does_not_stop_it(
    store: SharedConnection, ledger: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lua.registry.LOOK_S", 0.2)
    sign = sign_of(settings, ExpiryWorker(ledger, ALL), ledger, "expiry", "expiry-test")
    async with ledger.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        await sign.say()
        assert [s.id for s in (await read_signs(store.exchange))[0]] == [sign.id]
    await sign.stop()


async def test_every_kind_of_worker_has_its_words(store: SharedConnection, ledger: Pool, settings: Settings) -> None:
    worker = ReconcileWorker(store, ledger, SHARDS, 300, 5.0, True, "reconcile-test")
    sign = sign_of(settings, worker, ledger, "reconcile", "reconcile-test")
    assert (await sign.say()).reads == "all campaigns: audits, alerts, rebuilds"
    await sign.stop()
    with pytest.raises(TypeError, match="says nothing of itself"):
        sign_of(settings, object(), ledger, "ledger", "test")


async def test_many_shards_are_asked_for_more_rarely(store: SharedConnection) -> None:
    asked = 0

    async def ask(_: StoreConnection) -> Lag:
        nonlocal asked
        asked += 1
        return Lag(asked)

    often, rarely = Rarely(ask, 0.25), Rarely(ask, 16.0)
    assert [(await often(store)).orders for _ in range(3)] == [1, 2, 3]
    assert [(await rarely(store)).orders for _ in range(3)] == [4, 4, 4]


async def test_relay_finds_what_is_due_among_a_hundred_thousand_messages_for_others(ledger: Pool) -> None:
    """As EXISTS the planner read all that was due: 0.4 s of a million, ten times a second."""
    await ledger.execute("""
        INSERT INTO outbox (shard, order_id, version, topic, at)
        SELECT n % 8, gen_random_uuid(), 1, 'payment', now() FROM generate_series(1, 100000) n""")
    await ledger.execute("ANALYZE outbox")
    for name, params in (("outbox_shards", (ALL, list(TOPICS))), ("lag_outbox", (ALL, list(TOPICS), 10_000))):
        text = await ledger.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + query(name), *params)
        assert _read(json.loads(text)[0]["Plan"]) == 0, name


def _read(node: dict[str, Any]) -> float:
    """Rows of the outbox that the plan has read."""
    own = node["Actual Rows"] * node["Actual Loops"] if node.get("Relation Name") == "outbox" else 0
    return float(own) + sum(_read(child) for child in node.get("Plans", []))


async def test_backlog_scripts_are_asked_of_filled_shards_alone(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 10})
    await sale.reserve(store, sale.ask("buyer"))
    found = await signs._intake(ALL, store)
    assert (found.orders, found.facts["shards_behind"]) == (1, 1)
    assert (await Scripts(store).backlog([sale.shard]))[sale.shard].orders == 1
