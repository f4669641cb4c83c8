"""Every pair of pay, cancel, expire and refund at once, fifty orders each, over connections of their own: one winner.

Each pair has a control: the same calls without the lock of the order's row and without the expected state of its moves.
All of them then decide by what they read before anybody wrote, and every order is left with two winners.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from core.desk import moves, refunds
from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.moves import Owner
from core.desk.orders import OrderDesk
from core.desk.refunds import RefundDesk, repaid
from core.errors import Conflicting, NotAllowed
from core.ledger.pool import Pool, open_pool
from core.ledger.queries import query
from core.model import RefundRequest
from core.settings import Settings
from lua.connection import SharedConnection
from lua.scripts import Scripts
from tests.conftest import Services
from tests.ledger.invariants import faulty, invariants
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_lifecycle import ids, overdue, paid, relay, stock
from tests.support import SHARDS
from workers import expiry
from workers.expiry import ExpiryWorker

ORDERS = 50
FEW = 5  # orders of a control: all of its calls hold a connection at the same time
ALLOCATION = 60
Call = Callable[[], Awaitable[Any]]


class Side:
    """One of the two who race: desks on a pool of its own."""

    def __init__(self, ledger: Pool) -> None:
        self.ledger = ledger
        self.orders, self.refunds = OrderDesk(ledger, SHARDS), RefundDesk(ledger, SHARDS)

    async def pay(self, order: bytes) -> None:
        await self.orders.pay(paid(order), order)

    async def cancel(self, order: bytes) -> None:
        await self.orders.act(order, "cancel", "buyer", "channel:app")

    async def pay_and_cancel(self, order: bytes) -> None:
        """A refund in full."""
        await self.pay(order)
        await self.cancel(order)

    async def approve(self, order: bytes, nth: int) -> None:
        """A refund of 60 of 100."""
        await self.refunds.approve(order, f"req_{nth}", "operator")

    async def repay(self, order: bytes, number: str) -> None:
        """The centre's word that 100 went back."""
        await self.orders.pay(paid(order, number, status="refunded"), order)

    async def expire(self, order: bytes) -> None:
        """All that is due; rows that the other side holds are passed over."""
        await ExpiryWorker(self.ledger, range(SHARDS)).step()


async def nothing(side: Side, order: bytes) -> None:
    """An order that was accepted."""


async def two_requests(side: Side, order: bytes) -> None:
    """Paid, and two refunds under review that do not both fit."""
    await side.pay(order)
    for amount in (60, 61):
        await side.refunds.request(order, RefundRequest(amount=amount), "buyer", "channel:app", Owner("app"))


async def all_approved(side: Side, order: bytes) -> None:
    """Paid, and a refund of all of it is asked of the centre; the order goes on."""
    await side.pay(order)
    await side.refunds.request(order, RefundRequest(amount=100), "buyer", "channel:app", Owner("app"))
    await side.approve(order, 3)


Doer = Callable[[Side, bytes], Awaitable[None]]
approve_one: Doer = lambda side, order: side.approve(order, 3)  # noqa: E731 - rows of a table
approve_other: Doer = lambda side, order: side.approve(order, 4)  # noqa: E731
repay_rest: Doer = lambda side, order: side.repay(order, "ref_3")  # noqa: E731
repay_part: Doer = lambda side, order: side.repay(order, "ref_4")  # noqa: E731

# Name -> what was before, the one, the other.
RACES: dict[str, tuple[Doer, Doer, Doer]] = {
    "pay, cancel": (nothing, Side.pay, Side.cancel),
    "pay, expire": (nothing, Side.pay, Side.expire),
    "cancel, expire": (nothing, Side.cancel, Side.expire),
    "pay, pay after a cancel": (Side.cancel, Side.pay, Side.pay),
    "refund in full, expire": (nothing, Side.pay_and_cancel, Side.expire),
    "refund in part, cancel": (two_requests, approve_one, Side.cancel),
    "refund in part, refund in part": (two_requests, approve_one, approve_other),
    "cancel, cancel of a paid order": (Side.pay, Side.cancel, Side.cancel),
    "repaid, cancel": (all_approved, repay_part, Side.cancel),
    "repaid, repaid again": (Side.pay_and_cancel, repay_rest, repay_rest),
}
every_race = pytest.mark.parametrize("race", RACES)


@pytest.fixture
async def sides(dsn: str) -> AsyncIterator[tuple[Side, Side]]:
    pools = [await open_pool(dsn, name, 30.0, size=8) for name in ("one", "other")]
    yield Side(pools[0]), Side(pools[1])
    for pool in pools:
        pool.terminate()


@pytest.fixture
async def sale(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """50 orders of one red each, of 60, in the ledger."""
    found = await Sale.open(desk, {"red": ALLOCATION}, limits={"buyer": 1})
    await found.accept(store, ORDERS, ("red", 1))
    await drain(store, make_worker(settings, ledger))
    return found


async def run(race: str, sides: tuple[Side, Side], every: list[bytes], ledger: Pool) -> None:
    """Both sides go for each order at once. Who is refused has lost, and that is all there is to it."""
    before, one, other = RACES[race]
    for order in every:
        await before(sides[0], order)
    await overdue(ledger)

    async def go(doer: Doer, side: Side, order: bytes) -> None:
        with suppress(NotAllowed, Conflicting):
            await doer(side, order)

    await asyncio.gather(*(go(d, s, o) for o in every for d, s in ((one, sides[0]), (other, sides[1]))))


@every_race
async def test_race_has_one_winner_and_units_come_back_once(
    race: str, sale: Sale, sides: tuple[Side, Side], ledger: Pool, services: Services, scripts: Scripts,
    auditor: Auditor, store: SharedConnection,
) -> None:  # fmt: skip
    """G16, G17, G18, G19"""
    await run(race, sides, await ids(ledger), ledger)
    while await ExpiryWorker(ledger, range(SHARDS)).step():  # what it passed over because the other side had it
        pass
    await relay(ledger, services)
    await invariants(auditor, store, ledger, sale)
    left, held, sold = await stock(scripts, sale)
    paid_in_time, back = [
        await ledger.fetchval(f"SELECT count(*) FROM {table} WHERE {what}")  # noqa: S608 - ours
        for table, what in (
            ("order_events", "from_state = 'accepted' AND action = 'pay'"),
            ("deliveries", "topic = 'restock' AND outcome = 'returned'"),
        )
    ]
    assert (held, sold) == (0, paid_in_time)
    assert left == ALLOCATION - sold + back


@every_race
async def test_control_without_guard_every_order_has_two_winners(
    race: str, sale: Sale, sides: tuple[Side, Side], ledger: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: if it fails, the race above proves nothing."""
    before, one, other = RACES[race]
    every = (await ids(ledger))[:FEW]
    for order in every:
        await before(sides[0], order)
    await ledger.execute("UPDATE orders SET pay_by = now() WHERE order_id = ANY ($1)", [o.hex() for o in every])
    assert await faulty(ledger, sale.campaign) == []
    meeting = Meeting(monkeypatch, race)
    expires = Side.expire in (one, other)
    doers = [(d, s, o) for o in every for d, s in ((one, sides[0]), (other, sides[1])) if d is not Side.expire]
    meeting.expect(len(doers) + expires)

    async def go(doer: Doer, side: Side, order: bytes) -> None:
        with suppress(NotAllowed, Conflicting):
            await doer(side, order)

    async def expire() -> None:
        await meeting.wait()
        await sides[1].expire(b"")

    tasks = [go(*who) for who in doers] + ([expire()] if expires else [])
    async with asyncio.timeout(30.0):
        await asyncio.gather(*tasks)
    assert len(await faulty(ledger, sale.campaign)) == len(every)


class Meeting:
    """Without guards: all who race have read before one of them writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, race: str) -> None:
        self._barrier: asyncio.Barrier
        self._come: set[asyncio.Task[Any] | None] = set()
        for module in (moves, refunds, expiry):
            monkeypatch.setattr(module, "query", blind)
        monkeypatch.setattr(refunds, "advance", partial(self._after_meeting, moves.advance))
        if race == "repaid, repaid again":  # its last read that matters is in `repaid` itself
            monkeypatch.setattr(refunds, "_finish", partial(self._after_meeting, refunds._finish))
        else:
            monkeypatch.setattr("core.desk.orders.repaid", partial(self._after_meeting, repaid))
        # Of a cancel the last read that matters is what can still go back, or whether money is due; else the state.
        if race == "refund in part, cancel":
            monkeypatch.setattr(moves, "totals", partial(self._before_meeting, moves.totals))
        elif race == "repaid, cancel":
            monkeypatch.setattr(moves, "settle_refunds", self._settle_late)
        else:
            monkeypatch.setattr("core.desk.orders.make", partial(self._after_meeting, moves.make))

    def expect(self, count: int) -> None:
        """So many will come."""
        self._barrier = asyncio.Barrier(count)

    async def wait(self) -> None:
        """All are here. Each task meets the others once."""
        if asyncio.current_task() not in self._come:
            self._come.add(asyncio.current_task())
            await self._barrier.wait()

    async def _after_meeting(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        await self.wait()
        return await call(*args)

    async def _before_meeting(self, read: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        found = await read(*args)
        await self.wait()
        return found

    async def _settle_late(self, connection: Any, order: moves.Order, who: str) -> moves.Order:
        """As the real one, with a long time between the look and the deed."""
        step = order.flow.step(order.state, "refunded")
        due = (await moves.totals(connection, order)).due
        await self.wait()
        return order if step is None or due else await moves.make(connection, order, step, who)


GUARDS = {
    "lock_order": [" FOR UPDATE"],
    "move_orders": [" AND state = $3", " AND o.state = $3"],
    "decide_refund": [" AND state = 'requested'"],
    "due_shards": [" AND o.state = 'accepted'"],
    "expire_orders": [" AND state = 'accepted'", " AND o.state = 'accepted'", " SKIP LOCKED"],
}


def blind(name: str) -> str:
    """A statement that asks neither for a lock nor for the state that it leaves."""
    text = query(name)
    for guard in GUARDS.get(name, []):
        assert guard in text, f"{name} is guarded in other words now"
        text = text.replace(guard, "")
    return text
