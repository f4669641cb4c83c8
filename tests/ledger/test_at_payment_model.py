"""reserve_at_payment over random histories, on the real store and ledger: both stand as a plain model says.

The model knows the flow's table and what each message does to the stock; the relay is run, broken off and run again,
and messages come twice. The audit must be ok after every single step.
"""

import asyncio
import itertools
from collections import Counter
from typing import Any, ClassVar, cast

import pytest
from asyncpg.pgproto.pgproto import UUID
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)  # fmt: skip

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.errors import NotAllowed
from core.flows import FLOWS
from core.flows.table import ACTORS, Actor
from core.ledger.pool import Pool, open_pool
from core.model import Restock
from core.settings import Settings
from lua.connection import SharedConnection, StoreConnection
from lua.reserve import ReserveCode
from tests.conftest import Services
from tests.ledger.at_payment_books import Books, Order
from tests.ledger.at_payment_support import Broken, due
from tests.ledger.relay_support import write
from tests.ledger.support import Sale, intake, make_worker
from tests.ledger.test_lifecycle import paid
from tests.ledger.test_relay_restock import Died
from tests.support import LEASE_MS, SHARDS, reading, tell
from workers.expiry import ExpiryWorker
from workers.ledger import LedgerWorker
from workers.relay import RelayWorker
from workers.store_topics import TOPICS

FLOW = FLOWS["reserve_at_payment"]
MINE = {"pay", "pay_failed", "pay_again", "refunded", "expire", "allocated", "too_late"}  # rules of their own
REVIEWED = {"request_refund", "refund", "reject_refund", "change"}  # as goods: tests/ledger/test_flow_model.py
ACTIONS = sorted({s.action for s in FLOW.steps} - MINE - REVIEWED)
LIMIT = 3  # units of a buyer
WAYS = [
    [], ["cancel"], ["suspend", "cancel"], ["pick", "cancel"], ["pick", "ship", "receive"],
    ["pick", "ship", "return", "goods_back"],
]  # fmt: skip
DEATHS = ("claim_messages", "finish_messages", "move_orders", "act")  # each point: test_at_payment_relay.py


class AtPaymentMachine(RuleBasedStateMachine):
    """Up to six orders compete for a few units."""

    loop: asyncio.AbstractEventLoop
    ledger: Pool
    store: SharedConnection
    connection: StoreConnection
    worker: LedgerWorker
    desk: CampaignDesk
    auditor: Auditor
    numbers = itertools.count(1)
    seen: ClassVar[Counter[str]] = Counter()

    def do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(
        left=st.integers(0, 4),
        units=st.lists(st.integers(1, 2), min_size=2, max_size=4),
        way=st.none() | st.sampled_from(WAYS),
    )
    def open(self, left: int, units: list[int], way: list[str] | None) -> None:
        """A few orders; the first of them, if it got its units, is taken so far: by chance few would get there."""
        self.do(self.ledger.execute("DELETE FROM outbox"))
        self.orders = OrderDesk(self.ledger, SHARDS)
        fields = {"order_type": "reserve_at_payment", "limits": {"buyer": LIMIT}}
        self.sale: Sale = self.do(Sale.open(self.desk, {"red": left}, **fields))
        self.books = Books(left)
        self.known: list[Order] = []
        for n, count in enumerate(units):
            self.place(f"first-{n}", count)
        if way is None or not self.known:
            return
        self.drain()
        first = self.known[0]
        self.pay_for(first)
        self.relay()
        self.pay_for(first)  # the second money goes back
        for action in way:
            step = FLOW.step(first.state, action)
            assert step is not None
            self.do(self.orders.act(first.id, action, step.actors[0], "way"))
            self.move(first, action)

    def move(self, order: Order, action: str) -> None:
        step = FLOW.step(order.state, action)
        assert step is not None, (order.state, action)
        self.seen[action] += 1
        order.move(step)

    @precondition(lambda self: len(self.known) < 6)
    @rule(buyer=st.sampled_from(["anna", "ben"]), units=st.integers(1, 2))
    def place(self, buyer: str, units: int) -> None:
        books = self.books
        # A SKU whose units wait for the leases is sold out for requests; here nobody waits.
        self.do(tell(self.store, "HSET", self.sale.parts[0].keys.meta, "reopen", 0))
        [outcome] = self.do(self.sale.buy(self.store, [buyer], ("red", units)))
        if books.used[buyer] + units > LIMIT:
            assert outcome.code is ReserveCode.OVER_LIMIT
        elif books.left < units:
            assert outcome.code is ReserveCode.SOLD_OUT
        else:
            assert outcome.code is ReserveCode.ACCEPTED
            books.used[buyer] += units
            self.known.append(Order(outcome.order_id, buyer, units))
        self.seen[f"order {outcome.code.name}"] += 1

    def draw(self, data: st.DataObject, *states: str) -> Order | None:
        found = [o for o in self.known if not states or o.state in states]
        return data.draw(st.sampled_from(found)) if found else None

    def run_relay(self, ledger: Pool | Broken) -> None:
        """All that is due is delivered, over one connection for all runs."""
        relay = RelayWorker(cast(Pool, ledger), self.connection, range(SHARDS))
        while self.do(relay.step()):
            continue

    def drain(self) -> None:
        while self.do(intake(self.store, self.sale.shards)):
            self.do(self.worker.step())

    @rule(data=st.data(), again=st.booleans(), status=st.sampled_from(["paid", "paid", "failed"]))
    def pay(self, data: st.DataObject, again: bool, status: str) -> None:
        self.drain()
        if order := self.draw(data):
            self.pay_for(order, again, status)

    @rule(data=st.data())
    def pay_in_time(self, data: st.DataObject) -> None:
        self.drain()
        if order := self.draw(data, "accepted"):
            self.pay_for(order)

    def pay_for(self, order: Order, again: bool = False, status: str = "paid") -> None:
        amount = 100 * order.units
        if again and order.payment:
            payment = paid(order.id, order.payment, amount=amount)
            assert not self.do(self.orders.pay(payment, order.id)).moved
            return
        payment = paid(order.id, amount=amount, status=status)
        actions = ["pay_failed"] if status == "failed" else ["pay", "pay_again"]
        action = next((a for a in actions if FLOW.step(order.state, a)), None)
        assert self.do(self.orders.pay(payment, order.id)).moved == (action is not None)
        if status == "paid":
            order.payment = payment.payment_no
        if action is None:
            return
        self.move(order, action)
        if "allocate" in order.waiting and not order.paid_at:
            # Payments of one and the same millisecond have no order between them: these are seconds apart.
            order.paid_at = next(self.numbers)
            aged = "UPDATE outbox SET at = at - interval '1 day' + make_interval(secs => $2) WHERE order_id = $1"
            self.do(self.ledger.execute(aged, UUID(order.id), order.paid_at))

    @rule(data=st.data())
    def act_as_allowed(self, data: st.DataObject) -> None:
        self.drain()
        order = self.draw(data)
        ways = [s for s in FLOW.steps if order is not None and s.state == order.state and s.action in ACTIONS]
        if order is None or not ways:
            return
        step = data.draw(st.sampled_from(ways))
        self.do(self.orders.act(order.id, step.action, data.draw(st.sampled_from(step.actors)), "somebody"))
        self.move(order, step.action)

    @rule(data=st.data(), actor=st.sampled_from([a for a in ACTORS if a != "system"]))
    def act_as_not_allowed(self, data: st.DataObject, actor: Actor) -> None:
        """The steps of the relay among them: nobody else may make them."""
        self.drain()
        order = self.draw(data)
        action = data.draw(st.sampled_from([*ACTIONS, "allocated", "too_late", "provisioned"]))
        if order is None or action in FLOW.allowed(order.state, actor):
            return
        with pytest.raises(NotAllowed) as refused:
            self.do(self.orders.act(order.id, action, actor, actor))
        assert refused.value.allowed == FLOW.allowed(order.state, actor)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        self.drain()
        order = self.draw(data, "accepted")
        if order is not None:
            self.do(self.ledger.execute("UPDATE orders SET pay_by = now() WHERE order_id = $1", UUID(order.id)))
            self.do(ExpiryWorker(self.ledger, self.sale.shards).step())
            self.move(order, "expire")

    @rule(units=st.integers(-2, 2).filter(bool))
    def restock(self, units: int) -> None:
        if self.books.left + units >= 0:
            self.do(self.desk.restock(self.sale.campaign, Restock(f"r{next(self.numbers)}", "red", units)))
            self.books.left, self.books.allocation = self.books.left + units, self.books.allocation + units

    @rule()
    def relay(self) -> None:
        self.drain()
        self.run_relay(self.ledger)
        while any(order.waiting for order in self.known):
            round_ = [(o, t) for t in TOPICS for o in sorted(self.known, key=lambda o: o.paid_at) if t in o.waiting]
            for order, topic in round_:
                order.waiting.remove(topic)
                self.seen[topic] += 1
                if action := self.books.deliver(topic, order):
                    self.move(order, action)

    @rule(when=st.sampled_from(["before", "after"]))
    def relays_that_die(self, when: str) -> None:
        """One after the other, each further on, and then one that lives. The payments give them their work."""
        self.drain()
        for order in [o for o in self.known if o.state == "accepted"][:2]:
            self.pay_for(order)
        for statement in DEATHS:
            try:
                self.run_relay(Broken(self.ledger, statement, when))
            except Died:
                self.seen[statement] += 1
                self.audit()
            self.do(due(self.ledger))
        self.relay()

    @rule(data=st.data(), topic=st.sampled_from(["allocate", "settle", "release"]))
    def deliver_once_more(self, data: st.DataObject, topic: str) -> None:
        """A relay that slept over its lease: what was delivered long ago comes again, and changes nothing."""
        self.relay()
        found = [order for order in self.known if topic in order.written]
        if found:
            order = data.draw(st.sampled_from(found))
            self.do(write(self.ledger, order.id, topic, order.written[topic]))
            self.run_relay(self.ledger)
            self.seen[f"{topic} again"] += 1

    @rule()
    def repay(self) -> None:
        self.drain()
        for order in self.known:
            rows = self.do(self.ledger.fetch("SELECT * FROM refunds WHERE order_id = $1", UUID(order.id)))
            for refund in [r for r in rows if r["state"] == "approved"]:
                back = paid(order.id, refund["refund_no"], amount=refund["amount"], status="refunded")
                self.do(self.orders.pay(back, order.id))
            if order.state == "refund_pending":
                self.move(order, "refunded")

    def audit(self) -> None:
        report = self.do(self.auditor.audit(self.sale.campaign))
        assert report.ok, report.findings

    @invariant()
    def store_and_ledger_stand_as_the_model(self) -> None:
        if not hasattr(self, "books"):
            return
        books, keys = self.books, self.sale.parts[0].keys
        found = self.do(reading(self.store, self.sale.parts[0]))
        if not any(order.waiting for order in self.known):
            counted = found.left["red"], found.held["red"], found.sold["red"], found.allocation["red"]
            assert counted == (books.left, books.held, books.sold, books.allocation)
            flat = self.do(tell(self.store, "HGETALL", keys.used))
            used = {name.decode()[2:]: int(n) for name, n in zip(flat[::2], flat[1::2], strict=True)}
            assert used == {buyer: n for buyer, n in books.used.items() if n}
            assert found.holds == sum(order.hold != "ended" for order in self.known)
        rows = self.do(self.ledger.fetch("SELECT * FROM orders WHERE campaign = $1", self.sale.campaign))
        stands = {row["order_id"].bytes: (row["state"], row["version"]) for row in rows}
        for order in self.known:
            assert stands.get(order.id, ("accepted", 1)) == (order.state, order.version)
        self.audit()

    def teardown(self) -> None:
        if hasattr(self, "books"):
            self.relay()
            self.repay()
            self.store_and_ledger_stand_as_the_model()


async def test_orders_at_payment_follow_their_flow_and_the_stock_fits(
    services: Services, dsn: str, store: SharedConnection, settings: Settings
) -> None:
    run_settings, machine = settings, AtPaymentMachine

    def work() -> None:
        with asyncio.Runner() as runner:
            machine.loop = runner.get_loop()
            machine.ledger = runner.run(open_pool(dsn, "machine", 10.0, 4))
            machine.store = SharedConnection(services.store_url, "fsync", 10.0, "machine")
            machine.connection = StoreConnection(services.store_url, "fsync", 10.0, "relay")
            machine.desk = CampaignDesk(machine.store, machine.ledger, SHARDS, LEASE_MS)
            machine.auditor = Auditor(machine.desk, machine.store, machine.ledger, SHARDS)
            machine.worker = make_worker(run_settings, machine.ledger)
            machine.seen.clear()
            run_state_machine_as_test(machine, settings=HISTORIES)
            machine.worker.stop()
            runner.run(machine.worker.run())
            runner.run(machine.store.close())
            runner.run(machine.connection.close())
            machine.ledger.terminate()

    await asyncio.to_thread(work)
    seen = set(machine.seen)
    assert {"pay", "pay_again", "cancel", "expire", "allocated", "too_late", "refunded", "goods_back"} <= seen, seen
    assert {"order ACCEPTED", "order SOLD_OUT", "order OVER_LIMIT", *TOPICS} <= seen, seen
    assert {"allocate again", "settle again", "release again"} <= seen, seen
    assert set(DEATHS) <= seen, seen  # what no run ever did proves nothing


HISTORIES = settings(
    max_examples=100, stateful_step_count=12, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate],
)  # fmt: skip
