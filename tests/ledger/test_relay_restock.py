"""The topic `restock`: units of an order that was sold come back once, with its limits, wherever a relay dies."""

import asyncio
from typing import Any, cast

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.errors import StoreUnavailable
from core.ids import shard_of, text_of
from core.ledger.pool import Pool
from core.ledger.queries import query
from core.settings import Settings
from lua.connection import SharedConnection, StoreConnection
from lua.reserve import ReserveCode
from lua.scripts import GivebackCode, Scripts
from tests.conftest import Services
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_lifecycle import paid
from tests.support import SHARDS
from workers.relay import RelayWorker

ORDERS = 4


class Died(Exception):
    """The relay is gone."""


class Mortal:
    """A ledger whose relay dies right before or right after a statement."""

    def __init__(self, ledger: Pool, statement: str, when: str) -> None:
        self._ledger, self._statement, self._when = ledger, query(statement) if statement else "", when

    async def _call(self, name: str, text: str, *params: object) -> Any:
        if text == self._statement and self._when == "before":
            raise Died
        result = await getattr(self._ledger, name)(text, *params)
        if text == self._statement:
            raise Died
        return result

    async def execute(self, text: str, *params: object) -> Any:
        return await self._call("execute", text, *params)

    async def fetch(self, text: str, *params: object) -> Any:
        return await self._call("fetch", text, *params)


@pytest.fixture
def orders(ledger: Pool) -> OrderDesk:
    return OrderDesk(ledger, SHARDS)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """Four orders of two red and one blue each, of ten, limits of a buyer, all in the ledger."""
    found = await Sale.open(desk, {"red": 10, "blue": 10}, limits={"buyer": 3, "buyer_sku": 2})
    outcomes = await found.buy(store, [f"b{n}" for n in range(ORDERS)], ("red", 2), ("blue", 1))
    assert {o.code for o in outcomes} == {ReserveCode.ACCEPTED}
    await drain(store, make_worker(settings, ledger))
    return found


def relay(ledger: Pool | Mortal, services: Services) -> RelayWorker:
    return RelayWorker(cast(Pool, ledger), StoreConnection(services.store_url, "fsync", 10.0, "r"), range(SHARDS))


async def run(ledger: Pool | Mortal, services: Services) -> int:
    """All of the store's messages are delivered."""
    worker = relay(ledger, services)
    try:
        while await worker.step():
            pass
    finally:
        await worker.run_down()
    return worker.delivered


async def balance(scripts: Scripts, sale: Sale) -> list[tuple[int, int, int, int]]:
    """Allocation, left, held, sold, of red and of blue."""
    [r] = await scripts.audit([sale.parts[0].keys])
    return [(r.allocation[s], r.left[s], r.held[s], r.sold[s]) for s in ("red", "blue")]


BEFORE = [(10, 2, 6, 2), (10, 6, 3, 1)]  # one order sold
AFTER = [(12, 4, 6, 2), (11, 7, 3, 1)]  # its units are on sale again


async def used(store: SharedConnection, sale: Sale, buyer: str) -> list[Any]:
    keys = sale.parts[0].keys.used
    names = (f"b:{buyer}", f"s:{buyer} red", f"s:{buyer} blue")
    return list(await store.exchange([("HGET", keys, name) for name in names]))


async def buyer_of(ledger: Pool, order: bytes) -> str:
    return str(await ledger.fetchval("SELECT buyer_id FROM orders WHERE order_id = $1", UUID(order)))


async def test_order_cancelled_after_it_was_sold_gives_units_and_limits_back_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection,
) -> None:  # fmt: skip
    order = (await ids(ledger))[0]
    buyer = await buyer_of(ledger, order)
    await orders.pay(paid(order, amount=300), order)
    await run(ledger, services)
    assert await balance(scripts, sale) == BEFORE
    assert await used(store, sale, buyer) == [b"3", b"2", b"1"]
    await orders.act(order, "cancel", "operator", "operator")
    await balanced(auditor, sale)  # the return is due: its buyer is not over a limit, the units are where they were
    assert await run(ledger, services) == 1
    assert await balance(scripts, sale) == AFTER
    assert await used(store, sale, buyer) == [None, None, None]
    report = await balanced(auditor, sale)
    assert [s.allocation for s in report.skus] == [12, 11]
    moves = await ledger.fetch("SELECT move_id, units, state FROM stock_moves WHERE kind = 'return' ORDER BY sku")
    name = f"return.{text_of(order)}.3"
    assert [tuple(m) for m in moves] == [(f"{name}.blue", 1, "applied"), (f"{name}.red", 2, "applied")]
    # The same buyer, up to the limits again: the books still balance.
    [again] = await sale.buy(store, [buyer], ("red", 2), ("blue", 1))
    assert again.code is ReserveCode.ACCEPTED
    await balanced(auditor, sale)


async def test_return_that_the_store_refuses_keeps_no_other_back(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, store: SharedConnection
) -> None:
    """A hold without units under a sold order: what a store restored from an old copy may have."""
    odd, *others = await ids(ledger)
    keys = sale.parts[0].keys
    [hold] = await store.exchange([("HGET", keys.holds, odd)])
    for order in (odd, *others):
        await orders.pay(paid(order, amount=300), order)
    await run(ledger, services)
    await store.exchange([("HSET", keys.holds, odd, hold[:-13] + bytes([hold[-13] | 16]) + hold[-12:])])
    for order in (odd, *others):
        await orders.act(order, "cancel", "operator", "operator")
    assert await run(ledger, services) == len(others)
    assert [r[0].bytes for r in await ledger.fetch("SELECT order_id FROM outbox WHERE topic = 'restock'")] == [odd]
    pending = await ledger.fetch("SELECT move_id FROM stock_moves WHERE kind = 'return' AND state = 'pending'")
    assert {r[0].rpartition(".")[0] for r in pending} == {f"return.{text_of(odd)}.3"}


async def test_return_that_overtakes_its_settle_ends_the_same(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection,
) -> None:  # fmt: skip
    order = (await ids(ledger))[0]
    await orders.pay(paid(order, amount=300), order)
    await orders.act(order, "cancel", "operator", "operator")
    await ledger.execute("UPDATE outbox SET due_at = now() + interval '1 hour' WHERE topic = 'settle'")
    assert await run(ledger, services) == 1
    assert await balance(scripts, sale) == [(12, 4, 8, 0), (11, 7, 4, 0)]
    await balanced(auditor, sale)
    await ledger.execute("UPDATE outbox SET due_at = now()")
    assert await run(ledger, services) == 1
    assert await balance(scripts, sale) == AFTER
    assert await used(store, sale, await buyer_of(ledger, order)) == [None, None, None]
    await balanced(auditor, sale)


POINTS = [
    (statement, when)
    for statement in ("claim_messages", "sold_orders", "put_move", "end_moves", "finish_messages")
    for when in ("before", "after")
    if (statement, when) != ("claim_messages", "before")
]


@pytest.mark.parametrize(("statement", "when"), POINTS)
async def test_relay_that_dies_at_any_point_gives_back_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    store: SharedConnection, statement: str, when: str,
) -> None:  # fmt: skip
    """G18"""
    order = (await ids(ledger))[0]
    await orders.pay(paid(order, amount=300), order)
    await run(ledger, services)
    await orders.act(order, "cancel", "operator", "operator")
    with pytest.raises(Died):
        await run(Mortal(ledger, statement, when), services)
    await balanced(auditor, sale)
    await ledger.execute("UPDATE outbox SET due_at = now()")  # the lease has passed
    await run(ledger, services)
    assert await balance(scripts, sale) == AFTER
    assert await used(store, sale, await buyer_of(ledger, order)) == [None, None, None]
    states = await ledger.fetch("SELECT state FROM stock_moves WHERE kind = 'return'")
    assert [r["state"] for r in states] == ["applied", "applied"]
    assert await ledger.fetchval("SELECT count(*) FROM deliveries WHERE topic = 'restock'") == 1
    await balanced(auditor, sale)


async def test_return_whose_answer_is_lost_gives_back_once(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    order = (await ids(ledger))[0]
    await orders.pay(paid(order, amount=300), order)
    await run(ledger, services)
    await orders.act(order, "cancel", "operator", "operator")
    real = Scripts.giveback

    async def lossy(*args: Any) -> list[GivebackCode] | None:
        await real(*args)
        raise StoreUnavailable("the store did not answer")

    with monkeypatch.context() as patched:
        patched.setattr(Scripts, "giveback", lossy)
        assert await run(ledger, services) == 0
    assert await balance(scripts, sale) == AFTER
    await balanced(auditor, sale)
    await ledger.execute("UPDATE outbox SET due_at = now()")
    assert await run(ledger, services) == 1
    assert await balance(scripts, sale) == AFTER
    assert await ledger.fetchval("SELECT outcome FROM deliveries WHERE topic = 'restock'") == "repeated"
    await balanced(auditor, sale)


async def test_pending_return_is_left_to_the_relay_when_the_campaign_is_closed(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    desk: CampaignDesk,
) -> None:  # fmt: skip
    """Closing finishes what others began; a return made by it too would be made twice."""
    order = (await ids(ledger))[0]
    await orders.pay(paid(order, amount=300), order)
    await run(ledger, services)
    await orders.act(order, "cancel", "operator", "operator")
    with pytest.raises(Died):
        await run(Mortal(ledger, "put_move", "after"), services)
    await desk.close(sale.campaign)
    await ledger.execute("UPDATE outbox SET due_at = now()")
    await run(ledger, services)
    assert await balance(scripts, sale) == [(10, 2, 6, 2), (5, 1, 3, 1)]
    await balanced(auditor, sale)


async def test_audit_is_right_at_every_moment_of_returns(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, auditor: Auditor, scripts: Scripts
) -> None:
    done = asyncio.Event()

    async def all_back() -> None:
        for order in await ids(ledger):
            await orders.pay(paid(order, amount=300), order)
            await run(ledger, services)
            await orders.act(order, "cancel", "operator", "operator")
            await asyncio.gather(run(ledger, services), run(ledger, services))
        done.set()

    task, rounds = asyncio.create_task(all_back()), 0
    while not done.is_set():
        await balanced(auditor, sale)
        rounds += 1
    await task
    assert rounds > 3
    assert await balance(scripts, sale) == [(18, 10, 0, 8), (14, 10, 0, 4)]
    assert shard_of((await ids(ledger))[0]) == sale.shards[0]
