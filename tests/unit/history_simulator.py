"""A small, honest sale: what a correct system does with a crowd, recorded as the history checker wants it.

Not the system: a model with one clock, in which every decision has its true moment and every observer sees it a little
later or not at all. Store and ledger have clocks of their own, some milliseconds off.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random

from core.flows import FLOWS
from loadtest.history import (
    Answer,
    Fail,
    Fault,
    Header,
    Healed,
    History,
    Invoke,
    Items,
    Mending,
    Ok,
    Operation,
    Unknown,
)
from loadtest.history_final import (
    CampaignFacts,
    DeadLetter,
    Delivery,
    Final,
    FlowFacts,
    FlowMove,
    LimitsOf,
    Move,
    OrderEvent,
    OrderFacts,
    PartnerReport,
    PartnerSaw,
    PaymentFacts,
    RefundFacts,
    ShardReading,
)

MS = 1_000_000
START_NS, WALL_NS = 5_000_000_000, 1_700_000_000_000_000_000
LEASE_MS = 400
SKUS = ("a", "b")
LIMITS = LimitsOf(buyer=4, buyer_sku=3, ip=6, device=5)
STORE = ("release", "settle", "restock", "allocate")
GOODS_ON = ("pick", "ship", "receive", "complete")
# What a partner of a virtual order says, and of how many it says the other.
VIRTUAL = {
    "provision": ("provisioned", "provision_failed"),
    "bill": ("billed", "bill_failed"),
    "unprovision": ("unprovisioned",) * 2,
    "unbill": ("unbilled",) * 2,
}


@dataclass
class Shard:
    """The store's part of one shard."""

    left: Counter[str]
    allocation: Counter[str]
    held: Counter[str] = field(default_factory=Counter)
    sold: Counter[str] = field(default_factory=Counter)
    used: Counter[tuple[str, ...]] = field(default_factory=Counter)
    reopens: dict[str, int] = field(default_factory=dict)
    requests: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)  # order id, body
    holds: dict[str, "Life"] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)  # holds without units
    seq: int = 0


@dataclass
class Life:
    """An order as it goes."""

    ask: Invoke
    order_id: str
    shard: int
    seq: int
    accepted_ns: int
    state: str = "accepted"
    events: list[OrderEvent] = field(default_factory=list)

    @property
    def units(self) -> int:
        return sum(n for _, n in self.ask.items)


class Sale:
    """One run; `play` gives its history and what is there in the end."""

    def __init__(
        self,
        seed: int,
        attempts: int = 300,
        spread: int = 1,
        faults: bool = True,
        stock: int = 60,
        order_type: str = "goods",
    ) -> None:
        self.random = Random(seed)
        self.flow = FLOWS[order_type]
        self.at_payment = order_type == "reserve_at_payment"
        self.attempts, self.spread, self.faults_wanted = attempts, spread, faults
        self.store_off_ns = self.random.randint(-20, 20) * MS
        self.ledger_off_ns = self.random.randint(-20, 20) * MS
        share = stock // spread
        self.shards = [Shard(Counter(dict.fromkeys(SKUS, share)), Counter(dict.fromkeys(SKUS, share)))
                       for _ in range(spread)]  # fmt: skip
        self.opening = dict.fromkeys(SKUS, share * spread)
        self.now = START_NS
        self.todo: list[tuple[int, int, Callable[[], object]]] = []
        self.numbers, self.ties, self.order_ids = count(1), count(), count(1)
        self.operations: list[Operation] = []
        self.faults: list[Fault | Mending | Healed] = []
        self.flags: dict[str, int] = {}
        self.lives: dict[str, Life] = {}
        self.moves: list[Move] = []
        self.deliveries: list[Delivery] = []
        self.payments: list[PaymentFacts] = []
        self.refunds: list[RefundFacts] = []
        self.partners: list[PartnerSaw] = []
        self.reports: list[PartnerReport] = []
        self.dead: list[DeadLetter] = []
        self.away = (0, 0)

    def play(self) -> tuple[History, Final]:
        """The whole sale, to the end of every order."""
        random = self.random
        span_ns = self.attempts * 10 * MS
        if self.faults_wanted:
            begin_ns = START_NS + span_ns // 3
            self.away = begin_ns, begin_ns + 400 * MS
            mending = Mending(self.away[1] - 100 * MS, "store_stop")
            self.faults = [Fault(begin_ns, "store_stop", "SIGSTOP"), mending, Healed(self.away[1], "store_stop")]
        for n in range(self.attempts):
            self.at(random.randrange(span_ns), partial(self.arrive, n))
        for n in range(3):
            self.at(random.randrange(span_ns // 4, span_ns), partial(self.restock, f"more{n}"))
        while self.todo:
            self.now, _, act = heappop(self.todo)
            act()
        header = Header(1, "sale", WALL_NS, START_NS, {"spread": self.spread})
        self.operations.sort(key=lambda op: op.ask.at_ns)
        return History(header, self.operations, self.faults, self.now + MS, True), self.final()

    def at(self, after_ns: int, act: Callable[[], object]) -> None:
        heappush(self.todo, (self.now + after_ns, next(self.ties), act))

    def soon(self, act: Callable[[], object], most_ms: int = 30) -> None:
        self.at(self.random.randrange(MS // 10, most_ms * MS), act)

    def ledger_ns(self) -> int:
        return self.now - START_NS + WALL_NS + self.ledger_off_ns

    # Clients.

    def arrive(self, n: int) -> None:
        random = self.random
        buyer = f"b{random.randrange(self.attempts // 2)}"
        skus = random.sample(SKUS, random.choice((1, 1, 1, 2)))
        items: Items = tuple(sorted((sku, random.choice((1, 1, 2))) for sku in skus))
        ip, device = f"ip{random.randrange(self.attempts // 3)}", f"d{random.randrange(self.attempts // 3)}"
        body = f"{buyer}{items}{device}"
        ask = Invoke(self.now, 0, "order", "app", f"k{n}", body, buyer, ip, device, items)
        self.send(ask)
        if random.random() < 0.05:
            self.soon(lambda: self.send(ask), 300)
        if random.random() < 0.03:
            other = Invoke(0, 0, "order", "app", ask.key, body + "!", buyer, ip, device, ((SKUS[0], 3),))
            self.soon(lambda: self.send(other), 300)

    def send(self, ask: Invoke, tries: int = 0) -> None:
        """Sent, decided a little later, answered a little later; any of these may fail."""
        random = self.random
        ask = Invoke(self.now, next(self.numbers), *(getattr(ask, f) for f in Invoke.__struct_fields__[2:]))
        op = Operation(ask)
        self.operations.append(op)

        def again() -> None:
            if tries < 3 and random.random() < 0.8:
                self.soon(lambda: self.send(ask, tries + 1), 400)

        def unknown(status: int, code: str) -> None:
            if random.random() < 0.8:
                op.answer = Unknown(self.now, ask.n, status, code)
            again()

        def decide() -> None:
            if self.away[0] <= self.now < self.away[1]:
                return self.soon(lambda: unknown(503, "store_unavailable"), 300)
            if random.random() < 0.03:
                return self.soon(lambda: unknown(503, "overloaded"))  # refused before it came to the store
            answer = self.reserve(ask)
            if answer is None:  # its shard sells again soon, and others have enough: it waits
                return self.at(50 * MS, decide)
            if random.random() < 0.05:
                return self.soon(lambda: unknown(0, "timeout"), 500)  # the answer was lost

            def told() -> None:
                answer.at_ns = self.now
                op.answer = answer

            return self.soon(told, 10)

        self.soon(decide, 10)

    def restock(self, move_id: str) -> None:
        random = self.random
        sku, units = random.choice(SKUS), random.choice((2, 5, 9, -1))
        op = Operation(Invoke(self.now, next(self.numbers), "restock", sku=sku, units=units, move_id=move_id))
        self.operations.append(op)

        def journal() -> None:
            at_ns = self.ledger_ns()

            def make() -> None:
                shard = self.shards[0]
                done = shard.left[sku] + units >= 0
                if done:
                    self.put(shard, sku, units)
                self.moves.append(Move(move_id, sku, "restock", units, at_ns, "applied" if done else "refused"))

                def told() -> None:
                    op.answer = Ok(self.now, op.ask.n, 200) if done else Fail(self.now, op.ask.n, 409, "conflict")

                self.soon(told)

            self.soon(make)

        self.soon(journal)

    # The store.

    def put(self, shard: Shard, sku: str, units: int) -> None:
        if units > 0 and shard.left[sku] == 0:
            shard.reopens[sku] = self.now + LEASE_MS * MS
        shard.left[sku] += units
        shard.allocation[sku] += units

    def reserve(self, ask: Invoke) -> Answer | None:
        slot = sum(ask.buyer.encode()) % self.spread
        shard, place = self.shards[slot], (ask.channel, ask.key)
        known = shard.requests.get(place)
        if known is not None:
            if known[1] != ask.body:
                return Fail(0, ask.n, 422, "key_reused")
            return Ok(0, ask.n, 202, "", known[0], True)
        for sku, _ in ask.items:
            if self.flags.get(sku, 0) > self.now:
                return Fail(0, ask.n, 409, "sold_out", sku=sku)
        for counter, more, most in self.counters(ask):
            if shard.used[counter] + more > most:
                return Fail(0, ask.n, 409, "over_limit")
        for sku, wanted in ask.items:
            have = self.have(shard, sku, wanted)
            if have is None:
                return None
            if not have:
                return Fail(0, ask.n, 409, "sold_out", sku=sku)
        shard.seq += 1
        order_id = f"o{next(self.order_ids)}"
        life = Life(ask, order_id, slot, shard.seq, self.now)
        for counter, more, _ in self.counters(ask):
            shard.used[counter] += more
        if self.at_payment:
            shard.empty.add(order_id)
        for sku, wanted in ask.items if not self.at_payment else ():
            shard.left[sku] -= wanted
            shard.held[sku] += wanted
        shard.requests[place], shard.holds[order_id] = (order_id, ask.body), life
        self.soon(lambda: self.drain(life), 200)
        return Ok(0, ask.n, 202, "", order_id, False)

    def counters(self, ask: Invoke) -> list[tuple[tuple[str, ...], int, int]]:
        units = sum(n for _, n in ask.items)
        found: list[tuple[tuple[str, ...], int, int | None]] = [
            (("b", ask.buyer), units, LIMITS.buyer),
            (("i", ask.ip), units, LIMITS.ip),
            (("d", ask.device), units, LIMITS.device),
        ]
        found += [(("s", ask.buyer, sku), n, LIMITS.buyer_sku) for sku, n in ask.items]
        return [(name, more, most or 0) for name, more, most in found]

    def have(self, shard: Shard, sku: str, wanted: int) -> bool | None:
        """Whether the shard can give so many; units of other shards are fetched. None: ask again later."""
        on_sale = sum(s.left[sku] for s in self.shards if s.reopens.get(sku, 0) <= self.now)
        if on_sale >= wanted and shard.reopens.get(sku, 0) > self.now:
            return None
        for other in self.shards if on_sale >= wanted else ():
            if other is not shard and shard.left[sku] < wanted and other.reopens.get(sku, 0) <= self.now:
                moved = min(other.left[sku], wanted - shard.left[sku])
                for part, n in ((other, -moved), (shard, moved)):
                    part.left[sku] += n
                    part.allocation[sku] += n
        waits_ns = shard.reopens.get(sku, 0) - self.now
        if waits_ns > 0 or shard.left[sku] == 0:
            lease_ns = min(LEASE_MS * MS, waits_ns) if waits_ns > 0 else LEASE_MS * MS
            if self.spread == 1:
                self.flags[sku] = self.now + lease_ns
            return False
        return shard.left[sku] >= wanted

    def end_hold(self, life: Life, version: int, topic: str) -> str:
        shard = self.shards[life.shard]
        if topic == "allocate":
            return self.allocate(shard, life)
        if topic == "restock":
            self.journal_return(life, version)
        elif shard.holds.pop(life.order_id, None) is None:
            return "nothing"
        is_empty = life.order_id in shard.empty and topic != "restock"
        for sku, n in life.ask.items if not is_empty else ():
            if topic == "settle":
                shard.held[sku] -= n
                shard.sold[sku] += n
            elif topic == "release":
                shard.held[sku] -= n
                self.put(shard, sku, n)
                shard.allocation[sku] -= n
            else:
                self.put(shard, sku, n)
        if topic != "settle":
            for counter, more, _ in self.counters(life.ask):
                shard.used[counter] -= more
        return {"settle": "settled", "release": "released", "restock": "returned"}[topic]

    def allocate(self, shard: Shard, life: Life) -> str:
        """Units for an order that has none, all or nothing."""
        if life.order_id not in shard.holds:
            return "nothing"
        if life.order_id not in shard.empty:
            return "allocated"
        if any(shard.left[sku] < n for sku, n in life.ask.items):
            return "too_late"
        for sku, n in life.ask.items:
            shard.left[sku] -= n
            shard.held[sku] += n
        shard.empty.discard(life.order_id)
        return "allocated"

    def journal_return(self, life: Life, version: int) -> None:
        for sku, n in life.ask.items:
            self.moves.append(Move(f"return.{life.order_id}.{version}.{sku}", sku, "return", n, self.ledger_ns()))

    # The ledger and its workers.

    def drain(self, life: Life) -> None:
        if self.random.random() < 0.01:
            self.dead.append(DeadLetter(life.shard, "poison", life.order_id, life.seq))
            return
        self.lives[life.order_id] = life
        accepted_ns = (life.accepted_ns - START_NS + WALL_NS + self.store_off_ns) // MS * MS
        life.events.append(OrderEvent(1, accepted_ns, "accept", None, "accepted"))
        self.deliver(life, 1, "payment")
        draw = self.random.random()
        if draw < 0.7:
            self.soon(lambda: self.ask_for(life, "pay"), 400)
        elif draw < 0.8:
            self.soon(lambda: self.ask_for(life, "cancel"), 400)
        self.at(600 * MS, lambda: self.move(life, "expire"))
        if draw > 0.95:
            self.at(900 * MS, lambda: self.ask_for(life, "pay"))

    def ask_for(self, life: Life, action: str) -> None:
        op = Operation(Invoke(self.now, next(self.numbers), action, order_id=life.order_id))
        self.operations.append(op)

        def decide() -> None:
            if action == "pay":
                number, amount = f"p{op.ask.n}", life.units * 10
                self.payments.append(PaymentFacts(life.order_id, number, "paid", amount))
                self.reports.append(PartnerReport(life.order_id, "payment", "paid", number, amount, 1))
            done = self.move(life, action) or (action == "pay" and self.move(life, "pay_again"))

            def told() -> None:
                kind = Ok if done else Fail
                op.answer = kind(self.now, op.ask.n, 200 if done else 409, "" if done else "not_allowed")

            self.soon(told)

        self.soon(decide)

    def move(self, life: Life, action: str, actor: str = "") -> bool:
        step = self.flow.step(life.state, action)
        if step is None:
            return False
        version = len(life.events) + 1
        life.events.append(OrderEvent(version, self.ledger_ns(), action, life.state, step.to, actor))
        life.state = step.to
        for topic in step.messages:
            self.deliver(life, version, topic)
            if topic == "refund":
                self.refunds.append(RefundFacts(life.order_id, f"ref_{version}", life.units * 10, "done"))
                report = PartnerReport(life.order_id, "payment", "refunded", f"ref_{version}", life.units * 10, 1)
                self.reports.append(report)
                self.at(300 * MS, lambda: self.move(life, "refunded"))
        if step.to == "paid" and self.random.random() < 0.2:
            self.soon(lambda: self.ask_for(life, "cancel"), 500)
        elif step.to == "paid" and self.flow.order_type != "virtual":
            for n, then in enumerate(GOODS_ON):
                self.at((600 + 100 * n) * MS, partial(self.report, life, then))
        return True

    def report(self, life: Life, action: str) -> None:
        """A partner tells what it did; what comes too late is told no."""
        taken = self.move(life, action, "warehouse")
        if action != "complete":
            self.reports.append(
                PartnerReport(life.order_id, "warehouse", action, f"{life.order_id}{action}", 0, int(taken))
            )

    def deliver(self, life: Life, version: int, topic: str, attempts: int = 1) -> None:
        random = self.random

        def deed() -> None:
            if topic == "restock" and life.order_id in self.shards[life.shard].holds:
                return self.soon(deed, 100)  # in this model units are sold before they come back
            tries = attempts + (random.random() < 0.1)
            outcome = self.end_hold(life, version, topic) if topic in STORE else "200"
            if topic not in STORE:
                message_id = f"{life.order_id}.{version}.{topic}"
                amount = life.units * 10 if topic in ("payment", "refund") else 0
                number = f"ref_{version}" if topic == "refund" else ""
                self.partners.append(PartnerSaw(life.order_id, version, topic, message_id, tries, 1, amount, number))
            if topic in VIRTUAL:
                then = VIRTUAL[topic][random.random() < 0.25]
                self.soon(lambda: self.move(life, then), 300)
            if topic == "allocate":
                self.move(life, "allocated" if outcome == "allocated" else "too_late")
            if tries > 1 and topic in ("release", "settle"):
                outcome = "nothing"  # the first attempt did it, and its answer was lost

            def told() -> None:
                self.deliveries.append(Delivery(life.order_id, version, topic, self.ledger_ns(), outcome, tries))

            return self.soon(told)

        self.soon(deed, 200)

    def final(self) -> Final:
        orders = [
            OrderFacts(
                life.order_id, life.shard, life.seq, life.ask.channel, life.ask.key, life.ask.buyer, life.ask.items,
                life.units * 10, life.state, len(life.events), life.events[0].at_ns // MS,
                life.events[0].at_ns // MS + 600, life.events, life.ask.ip, life.ask.device,
            )
            for life in self.lives.values()
        ]  # fmt: skip
        readings = [
            ShardReading(
                n,
                dict(s.left),
                dict(s.allocation),
                dict(s.held),
                dict(s.sold),
                s.seq,
                len(s.requests),
                len(s.holds),
                hold_ids=sorted(s.holds),
            )
            for n, s in enumerate(self.shards)
        ]
        campaign = CampaignFacts(
            "sale", self.opening, self.moves, LIMITS, self.flow.order_type, self.spread, LEASE_MS, True
        )
        moves = [FlowMove(s.state, s.action, s.to, s.messages) for s in self.flow.steps]
        flow = FlowFacts(self.flow.first, self.flow.ends, moves, ("payment",))
        return Final(
            campaign, flow, orders, readings, self.dead, self.payments, self.refunds, [], [], self.deliveries,
            self.partners, self.reports,
        )  # fmt: skip
