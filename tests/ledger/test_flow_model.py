"""The goods flow over random histories, on the real ledger: orders stand where the table says, and the money fits.

Every action is tried in every state by every actor; what the table does not have is refused and changes nothing.
"""

import asyncio
import itertools
from collections import Counter
from typing import Any, ClassVar

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

from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.desk.refunds import RefundDesk
from core.errors import Conflicting, NotAllowed, Refused
from core.flows import FLOWS
from core.flows.table import ACTORS, Actor
from core.ids import shard_of
from core.ledger.pool import Pool, open_pool
from core.model import RefundRequest, ShipTo
from tests.conftest import Services
from tests.ledger.support import Sale, row
from tests.ledger.test_lifecycle import paid
from tests.support import SHARDS
from workers.expiry import ExpiryWorker
from workers.writer import LedgerWriter

FLOW = FLOWS["goods"]
MONEY = {"pay", "pay_failed", "pay_again", "refunded", "expire", "request_refund", "refund", "reject_refund", "change"}
ACTIONS = [*sorted({s.action for s in FLOW.steps} - MONEY), "allocate", "provisioned"]
AMOUNT = 100
WAYS = [
    [], ["pay"], ["pay", "suspend"], ["pay", "pick"], ["pay", "pick", "cancel"], ["pay", "pick", "ship"],
    ["pay", "pick", "ship", "receive"], ["pay", "pick", "ship", "return"],
    ["pay", "ask"], ["pay", "pick", "ask", "cancel"], ["pay", "ask", "pick", "ship", "return"],
    ["pay", "ask", "suspend"], ["fail", "pay", "pick", "urge"],
    ["pay", "pick", "ship", "receive", "complete"],
]  # fmt: skip
STORY = """
    SELECT o.state, o.version,
        (SELECT array_agg(e.version ORDER BY e.version) FROM order_events e WHERE e.order_id = o.order_id) AS versions,
        (SELECT array_agg(e.action ORDER BY e.version) FROM order_events e WHERE e.order_id = o.order_id) AS actions,
        (SELECT array_agg(e.to_state ORDER BY e.version) FROM order_events e WHERE e.order_id = o.order_id) AS states,
        (SELECT array_agg(m.topic) FROM outbox m WHERE m.order_id = o.order_id) AS topics,
        (SELECT array_agg(m.version) FROM outbox m WHERE m.order_id = o.order_id AND m.topic = 'refund') AS asked,
        (SELECT coalesce(sum(amount), 0) FROM payments p WHERE p.order_id = o.order_id AND status = 'paid') AS paid,
        (SELECT coalesce(sum(amount), 0) FROM refunds r
         WHERE r.order_id = o.order_id AND state IN ('approved', 'done')) AS booked,
        (SELECT array_agg(refund_no) FROM refunds r WHERE r.order_id = o.order_id AND state IN ('approved', 'done'))
            AS numbers,
        (SELECT count(*) FROM refunds r WHERE r.order_id = o.order_id AND state = 'approved') AS due,
        (SELECT count(*) FROM refunds r WHERE r.order_id = o.order_id AND state = 'requested') AS under_review
    FROM orders o WHERE o.order_id = $1"""


class GoodsMachine(RuleBasedStateMachine):
    """One order a run. The model is the state by the table; all else is read from the ledger and judged."""

    loop: asyncio.AbstractEventLoop
    ledger: Pool
    sale: Sale
    numbers = itertools.count(1)
    seen: ClassVar[Counter[str]] = Counter()

    def do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(way=st.sampled_from(WAYS))
    def accept(self, way: list[str]) -> None:
        """An order, and the first steps of its way: left to chance alone most are cancelled before they are shipped."""
        part, number = self.sale.parts[0], next(self.numbers)
        order = row(number, part.shard, self.sale.campaign)
        self.do(LedgerWriter(self.ledger).write([order], []))
        self.order: bytes = order.order_id
        self.orders, self.refunds = OrderDesk(self.ledger, SHARDS), RefundDesk(self.ledger, SHARDS)
        self.state, self.payment = FLOW.first, ""
        self.story = self.read()
        for action in way:
            if action == "pay":
                self.pay(False, "paid")
            elif action == "fail":
                self.pay(False, "failed")
            elif action == "ask":
                self.request("buyer", 30)
            else:
                step = FLOW.step(self.state, action)
                assert step is not None
                self.expect(action, step.actors[0], self.orders.act(self.order, action, step.actors[0], "way"))

    def read(self) -> dict[str, Any]:
        return dict(self.do(self.ledger.fetchrow(STORY, UUID(self.order))))

    def expect(self, action: str, actor: Actor, call: Any) -> None:
        """The call makes the step of the table, or is refused where there is none."""
        step = FLOW.step(self.state, action)
        possible = step is not None and actor in step.actors
        try:
            self.do(call)
        except NotAllowed as exc:
            refused: Exception = exc
        except (Refused, Conflicting) as exc:
            refused = exc
        else:
            assert possible
            assert step is not None
            self.arrive(step.to, action)
            return
        if isinstance(refused, NotAllowed):
            assert not possible
            assert refused.allowed == FLOW.allowed(self.state, actor)
        else:
            assert step is not None
            assert step.guard
        assert self.read() == self.story

    def arrive(self, state: str, action: str) -> None:
        self.seen[action] += 1
        self.state = state

    @rule(action=st.sampled_from(ACTIONS), actor=st.sampled_from(ACTORS))
    def act(self, action: str, actor: Actor) -> None:
        self.expect(action, actor, self.orders.act(self.order, action, actor, actor))

    def _get_on(self, data: st.DataObject) -> None:
        """Most tries of the rule above are refused; this one gets on."""
        ways = [(s.action, s.actors[0]) for s in FLOW.steps if s.state == self.state and s.action not in MONEY]
        if ways:
            action, actor = data.draw(st.sampled_from(ways))
            self.expect(action, actor, self.orders.act(self.order, action, actor, actor))

    @rule(data=st.data())
    def act_as_allowed(self, data: st.DataObject) -> None:
        self._get_on(data)

    @rule(data=st.data())
    def act_as_allowed_once_more(self, data: st.DataObject) -> None:
        self._get_on(data)

    @rule(again=st.booleans(), status=st.sampled_from(["paid", "paid", "failed"]))
    def pay(self, again: bool, status: str) -> None:
        if again and self.payment:
            assert not self.do(self.orders.pay(paid(self.order, self.payment), self.order)).moved
            return
        payment = paid(self.order, status=status)
        moved = self.do(self.orders.pay(payment, self.order))
        actions = ["pay_failed"] if status == "failed" else ["pay", "pay_again"]
        step = next((s for a in actions if (s := FLOW.step(self.state, a))), None)
        assert moved.moved == (step is not None)
        if status == "paid":
            self.payment = payment.payment_no
            assert step is not None  # money is never ignored
        if step is not None:
            self.arrive(step.to, step.action)

    @rule()
    def expire(self) -> None:
        """Its time is over: true of every order here, once it is tried."""
        self.do(self.ledger.execute("UPDATE orders SET pay_by = now() WHERE order_id = $1", UUID(self.order)))
        self.do(ExpiryWorker(self.ledger, [shard_of(self.order)]).step())
        if self.state == "accepted":
            self.arrive("expired", "expire")

    @rule(name=st.text("ab", min_size=1, max_size=1), actor=st.sampled_from(ACTORS))
    def change(self, name: str, actor: Actor) -> None:
        step = FLOW.step(self.state, "change")
        if step is not None and actor in step.actors:
            self.do(self.orders.change(self.order, ShipTo(name, "123", "x"), actor, actor, None))
        else:
            self.expect("change", actor, self.orders.change(self.order, ShipTo(name, "123", "x"), actor, actor, None))

    @rule(actor=st.sampled_from(["buyer", "buyer", "channel", "operator"]), amount=st.integers(1, AMOUNT + 20))
    def request(self, actor: Actor, amount: int) -> None:
        wanted = RefundRequest(amount=amount)
        self.expect("request_refund", actor, self.refunds.request(self.order, wanted, actor, actor, None))

    @precondition(lambda self: self.story["under_review"])
    @rule(approve=st.booleans())
    def review(self, approve: bool) -> None:
        number = next(r.refund_no for r in self.do(self.refunds.list(self.order, None)) if r.state == "requested")
        if approve:
            self.expect("refund", "operator", self.refunds.approve(self.order, number, "operator"))
        else:
            self.expect("reject_refund", "operator", self.refunds.reject(self.order, number, "operator"))

    @precondition(lambda self: self.story["due"])
    @rule(data=st.data())
    def repay(self, data: st.DataObject) -> None:
        due = [r for r in self.do(self.refunds.list(self.order, None)) if r.state == "approved"]
        refund = data.draw(st.sampled_from(due))
        payment = paid(self.order, refund.refund_no, amount=refund.amount, status="refunded")
        self.do(self.orders.pay(payment, self.order))
        assert not self.do(self.orders.pay(payment, self.order)).moved
        if self.state == "refund_pending" and len(due) == 1:
            self.arrive("refunded", "refunded")

    @invariant()
    def the_ledger_is_as_the_table_says(self) -> None:
        before_now, self.story = self.story, self.read()
        now = self.story
        if before_now["under_review"] and self.state == "refund_pending":
            self.seen["lapse"] += 1
        if self.state == "refund_pending" and not now["due"]:
            self.arrive("refunded", "refunded")  # nothing was left to pay back
        assert now["state"] == self.state
        assert now["versions"] == list(range(1, now["version"] + 1))
        for before, action, after in zip(now["states"], now["actions"][1:], now["states"][1:], strict=False):
            step = FLOW.step(before, action)
            assert step is not None
            assert step.to == after
        topics = Counter(now["topics"])
        assert topics["settle"] + topics["release"] == (self.state != "accepted")
        assert topics["restock"] <= topics["settle"]
        assert now["booked"] <= now["paid"]
        assert sorted(now["numbers"] or []) == sorted(f"ref_{v}" for v in now["asked"] or [])
        if self.state in ("refund_pending", "refunded", "cancelled", "expired"):
            assert now["booked"] == now["paid"]
            assert not now["under_review"]
        if self.state == "refunded":
            assert now["paid"] > 0


async def test_orders_of_goods_follow_their_flow(services: Services, dsn: str, desk: CampaignDesk) -> None:
    sale = await Sale.open(desk, {"red": 10})

    def run() -> None:
        with asyncio.Runner() as runner:
            GoodsMachine.loop = runner.get_loop()
            GoodsMachine.ledger = runner.run(open_pool(dsn, "machine", 10.0, 2))
            GoodsMachine.sale = sale
            GoodsMachine.seen.clear()
            run_state_machine_as_test(
                GoodsMachine,
                settings=settings(
                    max_examples=300, stateful_step_count=15, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck), phases=[Phase.generate],
                ),
            )  # fmt: skip
            GoodsMachine.ledger.terminate()

    await asyncio.to_thread(run)
    wanted = ({s.action for s in FLOW.steps} - {"change"}) | {"lapse"}
    assert wanted <= set(GoodsMachine.seen), GoodsMachine.seen  # what no run ever did proves nothing
