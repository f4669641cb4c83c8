"""A Hypothesis machine for any flow: one order a history, on the real ledger and the real store.

The model is the state by the table and the messages that its steps told. The ledger is judged after every step; the
store too, as far as its messages were carried there: after every step, or when the history says so.
"""

from collections import Counter
from typing import Any, ClassVar

from asyncpg.pgproto.pgproto import UUID
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.desk.orders import PARTNERS
from core.errors import Conflicting, NotAllowed, Refused
from core.flows.table import ACTORS, Actor, Flow, Step
from core.model import Refund, RefundRequest, ShipTo
from tests.ledger.flow_world import World, way_to
from tests.ledger.test_lifecycle import paid
from workers.expiry import ExpiryWorker

AMOUNT = 100
REFUNDS = {"request_refund", "refund", "reject_refund", "refunded"}
# Moves with money, a time or an address: each has a rule of its own.
OWN_RULE = {"pay", "pay_failed", "pay_again", "expire", "change", *REFUNDS}
FOREIGN = ["allocated", "provisioned", "recalled", "nonsense"]  # of other flows, or of none
STORES = {"settle", "release", "restock"}


class FlowMachine(RuleBasedStateMachine):
    """One order a run; a subclass names the flow, and the ways that histories begin with."""

    flow: ClassVar[Flow]
    ways: ClassVar[list[str]]  # words: pay, fail, ask, approve, reject, expire, or an action of the flow
    seen: ClassVar[Counter[tuple[str, str]]]  # state and action of each step that was made; `lapse` of a refund
    world: ClassVar[World]
    never: ClassVar[set[tuple[str, str]]] = set()  # steps of the table that no order can come to make
    order = b""

    def do(self, coroutine: Any) -> Any:
        return self.world.do(coroutine)

    @initialize(data=st.data(), at_once=st.sampled_from([True, True, False]))
    def accept(self, data: st.DataObject, at_once: bool) -> None:
        """An order, and the first steps of its way: left to chance alone most are cancelled before they are shipped."""
        self.begin(at_once)
        for word in data.draw(st.sampled_from(self.ways)).split():
            self.say(word)
            self.story = self.read()

    def begin(self, at_once: bool) -> None:
        """An order. `at_once`: its messages for the store are carried after every step; else when a rule says so."""
        self.order = self.do(self.world.order())
        self.before: Counter[str] = self.do(self.world.units())
        self.at_once = at_once
        self.judged: Counter[str] | None = None  # what had been carried when the store was last compared
        self.orders, self.refunds = self.world.orders, self.world.refunds
        self.state, self.payment, self.told = self.flow.first, "", Counter(["payment"])
        self.story = self.read()

    def say(self, word: str) -> None:
        """The move of that action, or of a shorter word for it, by the first of those who may make it."""
        if word in ("pay", "pay_again"):
            self.pay(False, "paid")
        elif word in ("fail", "pay_failed"):
            self.pay(False, "failed")
        elif word in ("ask", "request_refund"):
            self.request("buyer", 30)
        elif word == "refund":
            self.grant(30)
        elif word in ("approve", "reject", "reject_refund"):
            self.review(word == "approve")
        elif word == "expire":
            self.expire()
        elif word == "change":
            self.change(f"name of {self.story['version']}", "buyer")
        elif word == "refunded":
            for refund in self.due():
                self.pay_back(refund)
        else:
            step = self.flow.step(self.state, word)
            assert step is not None, f"{self.state} {word}"
            self.make(word, step.actors[0])

    @classmethod
    def play_every_move(cls) -> None:
        """A history for each step of the table: the shortest way to it, and the step."""
        for step in cls.flow.steps:
            if (step.state, step.action) in cls.never:
                continue
            one = cls()
            one.begin(True)
            try:
                for word in [*way_to(cls.flow, step), step.action]:
                    one.say(word)
                    one.the_ledger_is_as_the_table_says()
                    one.the_store_is_as_was_carried_there()
                assert cls.seen[step.state, step.action], f"{step.state} {step.action} was not made"
            finally:
                one.teardown()

    def read(self) -> dict[str, Any]:
        return dict(self.do(self.world.story(self.order)))

    def make(self, action: str, actor: Actor) -> None:
        """What partners do is reported, what others do is done."""
        if actor in PARTNERS:
            self.expect(action, actor, self.orders.report(self.order, actor, action))
        else:
            self.expect(action, actor, self.orders.act(self.order, action, actor, actor))

    def expect(self, action: str, actor: Actor, call: Any) -> None:
        """The call makes the step of the table, is a partner's repeated report, or is refused where there is none."""
        step = self.flow.step(self.state, action)
        possible = step is not None and actor in step.actors
        own = actor in PARTNERS and any(s.action == action and actor in s.actors for s in self.flow.steps)
        repeated = own and action in self.story["actions"]
        try:
            result = self.do(call)
        except NotAllowed as exc:
            assert not possible
            assert not repeated
            allowed = exc.allowed
            assert allowed == self.flow.allowed(self.state, actor)
        except (Refused, Conflicting):
            assert step is not None
            assert step.guard
        else:
            if possible:
                assert step is not None
                self.arrive(step)
                return
            assert repeated
            assert not result.moved
        assert self.read() == self.story

    def arrive(self, step: Step) -> None:
        self.seen[step.state, step.action] += 1
        self.state = step.to
        self.told.update(step.messages)

    @rule(data=st.data(), actor=st.sampled_from(ACTORS))
    def act(self, data: st.DataObject, actor: Actor) -> None:
        """Anything by anybody: most of it is refused."""
        actions = sorted({s.action for s in self.flow.steps} - OWN_RULE | set(FOREIGN))
        self.make(data.draw(st.sampled_from(actions)), actor)

    def _get_on(self, data: st.DataObject) -> None:
        moves = [(s.action, a) for s in self.flow.steps if s.state == self.state and s.action not in OWN_RULE
                 for a in s.actors]  # fmt: skip
        if moves:
            self.make(*data.draw(st.sampled_from(moves)))

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
        step = next((s for a in actions if (s := self.flow.step(self.state, a))), None)
        assert moved.moved == (step is not None)
        if status == "paid":
            self.payment = payment.payment_no
            assert step is not None  # money is never ignored
        if step is not None:
            self.arrive(step)

    @rule()
    def expire(self) -> None:
        """Its time is over: true of every order here, once it is tried."""
        due = "UPDATE orders SET pay_by = now() WHERE shard = $1 AND order_id = $2"
        self.do(self.world.ledger.execute(due, self.world.part.shard, UUID(self.order)))
        self.do(ExpiryWorker(self.world.ledger, [self.world.part.shard]).step())
        step = self.flow.step(self.state, "expire")
        if step is not None:
            self.arrive(step)

    @rule(name=st.text("ab", min_size=1, max_size=1), actor=st.sampled_from(ACTORS))
    def change(self, name: str, actor: Actor) -> None:
        call = self.orders.change(self.order, ShipTo(name, "123", "x"), actor, actor, None)
        step = self.flow.step(self.state, "change")
        if step is None or actor not in step.actors:
            self.expect("change", actor, call)
        elif self.do(call).moved:  # the same address again changes nothing
            self.arrive(step)

    @rule(actor=st.sampled_from(["buyer", "buyer", "channel", "operator"]), amount=st.integers(1, AMOUNT + 20))
    def request(self, actor: Actor, amount: int) -> None:
        wanted = RefundRequest(amount=amount)
        self.expect("request_refund", actor, self.refunds.request(self.order, wanted, actor, actor, None))

    @rule(amount=st.integers(1, AMOUNT + 20))
    def grant(self, amount: int) -> None:
        """An operator's refund that nobody asked for; its reason tells it from the one before."""
        wanted = RefundRequest(amount=amount, reason=f"at {self.story['version']}")
        self.expect("refund", "operator", self.refunds.grant(self.order, wanted, "operator"))

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
        self.pay_back(data.draw(st.sampled_from(self.due())))

    def due(self) -> list[Refund]:
        """Refunds that the centre was asked for and has not reported."""
        return [r for r in self.do(self.refunds.list(self.order, None)) if r.state == "approved"]

    def pay_back(self, refund: Refund) -> None:
        """The centre reports it, and again."""
        last = len(self.due()) == 1
        payment = paid(self.order, refund.refund_no, amount=refund.amount, status="refunded")
        self.do(self.orders.pay(payment, self.order))
        assert not self.do(self.orders.pay(payment, self.order)).moved
        step = self.flow.step(self.state, "refunded")
        if step is not None and last:
            self.arrive(step)

    @rule(topic=st.sampled_from(["settle", "release", "restock"]))
    def hold_back(self, topic: str) -> None:
        """What comes later overtakes this message."""
        late = "UPDATE outbox SET due_at = now() + interval '1 hour' WHERE shard = $1 AND order_id = $2 AND topic = $3"
        self.do(self.world.ledger.execute(late, self.world.part.shard, UUID(self.order), topic))

    @rule()
    def carry(self) -> None:
        self.do(self.world.carry())

    @invariant()
    def the_ledger_is_as_the_table_says(self) -> None:
        before_now, now = self.story, self.read()
        if before_now["under_review"] and self.state == "refund_pending":
            self.seen["", "lapse"] += 1
        if self.state == "refund_pending" and not now["due"]:  # nothing was left to pay back
            step = self.flow.step(self.state, "refunded")
            assert step is not None
            self.arrive(step)
        self.story = now
        assert now["state"] == self.state
        assert now["versions"] == list(range(1, now["version"] + 1))
        for before, action, after in zip(now["states"], now["actions"][1:], now["states"][1:], strict=False):
            made = self.flow.step(before, action)
            assert made is not None
            assert made.to == after
        topics = Counter(now["topics"])
        assert {**topics, "refund": 0} == {**self.told, "refund": 0}  # no refund is asked for where nothing is left
        assert topics["settle"] + topics["release"] == (self.state != "accepted")
        assert topics["restock"] <= topics["settle"] <= 1
        assert now["booked"] <= now["paid"]
        assert sorted(now["numbers"] or []) == sorted(f"ref_{v}" for v in now["asked"] or [])
        if self.state in ("refund_pending", "refunded", "cancelled", "expired"):
            assert now["booked"] == now["paid"]
            assert not now["under_review"]
        if self.state == "refunded":
            assert now["paid"] > 0

    @invariant()
    def the_store_is_as_was_carried_there(self) -> None:
        if self.at_once and STORES & set(Counter(self.story["topics"]) - Counter(self.story["carried"])):
            self.do(self.world.carry())
            self.story = self.read()
        carried = Counter(self.story["carried"])
        if carried == self.judged:
            return
        self.judged = carried
        settled, released, back = carried["settle"], carried["release"], carried["restock"]
        expected = self.before + Counter()
        expected.update(allocation=back, left=released + back, held=-settled - released, sold=settled)
        assert self.do(self.world.units()) == expected
        assert self.do(self.world.used(self.story["buyer_id"])) == 1 - (released or back)

    def teardown(self) -> None:
        """The end of every history: what was held back arrives, and the audit is ok."""
        if not self.order:
            return
        due = "UPDATE outbox SET due_at = now() WHERE shard = $1 AND order_id = $2"
        self.do(self.world.ledger.execute(due, self.world.part.shard, UUID(self.order)))
        self.carry()
        self.story, self.judged = self.read(), None
        assert Counter(self.story["carried"]) == Counter(t for t in self.told.elements() if t in STORES)
        self.the_store_is_as_was_carried_there()
        report = self.do(self.world.auditor.audit(self.world.sale.campaign))
        assert report.ok, report.findings
