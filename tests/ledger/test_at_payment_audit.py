"""The audit of a sale whose orders take their units when they are paid: right between any two steps, wrong on none."""

from typing import Any

import pytest

from core.desk.audit import Auditor, Tally
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.ledger.pool import Pool
from core.settings import Settings
from core.wire import NO_UNITS, TAIL_BYTES, has_units
from lua.connection import SharedConnection
from lua.scripts import Scripts
from tests.conftest import Services
from tests.ledger.at_payment_support import UNITS, opened, run, stock
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale
from tests.ledger.test_lifecycle import paid
from tests.support import SHARDS


@pytest.fixture
def orders(ledger: Pool) -> OrderDesk:
    return OrderDesk(ledger, SHARDS)


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    return await opened(desk, settings, store, ledger)


def between(auditor: Auditor, monkeypatch: pytest.MonkeyPatch, deed: Any) -> None:
    """The deed is done when the audit has read the store, and not yet the ledger."""
    real = auditor._books

    async def books(*args: Any) -> Any:
        await deed()
        return await real(*args)

    monkeypatch.setattr(auditor, "_books", books)


@pytest.mark.parametrize("taken", [False, True])
async def test_order_allocated_between_the_readings_is_no_alarm(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    monkeypatch: pytest.MonkeyPatch, taken: bool,
) -> None:  # fmt: skip
    """From the payment on, or (taken) its step alone: the unit is there before the first reading."""
    order = (await ids(ledger))[0]
    if taken:
        await orders.pay(paid(order), order)
        await scripts.allocate(sale.parts[0].keys, 1, [order])

    async def sell() -> None:
        if not taken:
            await orders.pay(paid(order), order)
        await run(ledger, services)

    between(auditor, monkeypatch, sell)
    report = await balanced(auditor, sale)
    assert (report.skus[0].left, await stock(scripts, sale)) == (UNITS - taken, (UNITS - 1, 0, 1))


async def test_order_called_too_late_while_another_relay_had_its_unit_is_no_alarm(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before its release, and while the release goes on between the readings."""
    order = (await ids(ledger))[0]
    await orders.pay(paid(order), order)
    await scripts.allocate(sale.parts[0].keys, 1, [order])
    await orders.act(order, "too_late", "system", "system")
    assert (await balanced(auditor, sale)).skus[0].held == 1

    async def give_back() -> None:
        await run(ledger, services)

    with monkeypatch.context() as patched:
        between(auditor, patched, give_back)
        assert (await balanced(auditor, sale)).skus[0].held == 1
    assert (await balanced(auditor, sale)).skus[0].held == 0


async def test_unit_that_an_ended_order_still_holds_is_found(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, scripts: Scripts, auditor: Auditor
) -> None:
    """Its release is long done: no relay had this unit."""
    order, other = (await ids(ledger))[:2]
    await orders.act(order, "cancel", "buyer", "channel:app")
    await run(ledger, services)
    await balanced(auditor, sale)
    await scripts.allocate(sale.parts[0].keys, 1, [other])
    await orders.act(other, "cancel", "buyer", "channel:app")  # a release that is due is no excuse for it
    report = await auditor.audit(sale.campaign)
    assert [f.split(": ", 1)[1] for f in report.findings] == ["red: 1 units taken in the store, 0 ordered"]


async def test_unit_sold_and_another_taken_while_the_holds_are_read_is_no_alarm(
    desk: CampaignDesk, store: SharedConnection, scripts: Scripts, auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held is the same before and after; the holds that were seen add up to one more."""
    count = 600  # so many that they are read in pages
    sale = await Sale.open(desk, {"red": count}, order_type="reserve_at_payment")
    await sale.accept(store, count)
    keys = sale.parts[0].keys
    [flat] = await store.exchange([("HGETALL", keys.holds)])
    every = flat[::2]
    for n in range(0, count // 2, 100):
        await scripts.allocate(keys, 1, every[n : n + 100])
    [reading] = await scripts.audit([keys])
    real, turned = store.exchange, list[bytes]()

    async def exchange(commands: Any) -> Any:
        replies = await real(commands)
        if commands[0][0] == "HSCAN" and not turned:
            page: list[bytes] = replies[0][1]
            turned.append(next(i for i, hold in zip(page[::2], page[1::2], strict=True) if has_units(hold)))
            turned.append(next(i for i in every[count // 2 :] if i not in page))
            assert await scripts.settle(keys, 1, turned[:1]) == [1]
            assert await scripts.allocate(keys, 1, turned[1:]) == [1]
        return replies

    monkeypatch.setattr(auditor._store, "exchange", exchange)
    tally = Tally()
    await auditor._read_holds(keys, reading, tally)
    [after] = await scripts.audit([keys])
    assert (len(turned), after.held) == (2, reading.held)
    assert tally.findings == []


async def test_audit_of_units_taken_for_an_order_that_was_not_paid_finds_them(
    sale: Sale, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    order = (await ids(ledger))[0]
    await scripts.allocate(sale.parts[0].keys, 1, [order])
    report = await auditor.audit(sale.campaign)
    assert [f.split(": ", 1)[1] for f in report.findings] == ["red: 1 units taken in the store, 0 ordered"]


async def test_audit_of_a_paid_order_without_its_units_finds_it(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, store: SharedConnection, auditor: Auditor
) -> None:
    """As an old copy of the store would have it."""
    order, keys = (await ids(ledger))[0], sale.parts[0].keys
    [hold] = await store.exchange([("HGET", keys.holds, order)])
    await orders.pay(paid(order), order)
    await run(ledger, services)
    await store.exchange([
        ("HSET", keys.holds, order, hold), ("HINCRBY", keys.stock, "s:red", -1), ("HINCRBY", keys.stock, "red", 1),
    ])  # fmt: skip
    report = await auditor.audit(sale.campaign)
    assert [f.split(": ", 1)[1] for f in report.findings] == ["red: 0 units taken in the store, 1 ordered"]


@pytest.mark.parametrize("wrong", ["marked", "unmarked"])
async def test_audit_of_a_hold_with_the_wrong_mark_finds_it(
    sale: Sale, scripts: Scripts, ledger: Pool, services: Services, orders: OrderDesk, store: SharedConnection,
    auditor: Auditor, wrong: str,
) -> None:  # fmt: skip
    order, keys = (await ids(ledger))[0], sale.parts[0].keys
    await orders.pay(paid(order), order)
    if wrong == "marked":
        await scripts.allocate(keys, 1, [order])
    await balanced(auditor, sale)
    [hold] = await store.exchange([("HGET", keys.holds, order)])
    assert isinstance(hold, bytes)
    turned = hold[:-TAIL_BYTES] + bytes([hold[-TAIL_BYTES] ^ NO_UNITS]) + hold[1 - TAIL_BYTES :]
    await store.exchange([("HSET", keys.holds, order, turned)])
    report = await auditor.audit(sale.campaign)
    says = "0, counter says 1" if wrong == "marked" else "1, counter says 0"
    assert [f.split(": ", 1)[1] for f in report.findings] == [f"red: holds add up to {says}"]


async def test_audit_of_more_allocated_orders_than_units_finds_them_oversold(
    sale: Sale, orders: OrderDesk, ledger: Pool, services: Services, auditor: Auditor
) -> None:
    for order in (await ids(ledger))[:UNITS]:
        await orders.pay(paid(order), order)
    await run(ledger, services)
    await balanced(auditor, sale)
    extra = (await ids(ledger))[UNITS]
    await orders.pay(paid(extra), extra)
    await orders.act(extra, "allocated", "system", "system")  # nobody took its unit
    await ledger.execute("DELETE FROM outbox WHERE topic = 'settle'")
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.oversold) == (False, 1)
