"""What the judges share: operations by key and order, and for each order since when its units are out and until when.

All times are nanoseconds of the history's monotonic clock. Nobody saw the store decide, so each moment is an interval:
`sure_*` is when the units were out at the least, `maybe_*` when they can have been. A judge that looks for too much
taken uses the first, one that looks for a refusal without a reason uses the second.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from loadtest.history import Answer, Fault, Healed, History, Invoke, Mending, Ok, Operation, Unknown
from loadtest.history_check_loss import Excused, bases, excused, losses, without
from loadtest.history_final import Final, OrderEvent, OrderFacts

MS = 1_000_000  # nanoseconds
NEVER = 1 << 62
ALWAYS = -NEVER
COMING_BACK = ("release", "restock")  # messages that bring an order's units and limits back
Invariant: TypeAlias = Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


class Bounds(Struct, frozen=True):
    """What the judges allow, and what they may take for granted."""

    clock_ms: int = 50  # between the clocks of client, store and ledger
    refusal_ms: int = 1_000  # an overload's 429 or 503, at the client
    fault_refusal_ms: int = 10_000  # the same while a fault lasts, and until it is healed
    heal_s: float = 10.0
    drained: bool = True  # the workers had time to finish: nothing may be left
    sells_out: bool = False  # demand exceeded the stock to the very end, and every order came to its end
    idle_topics: frozenset[str] = frozenset({"warehouse", "recall"})  # a partner may rightly do nothing for these


class Violation(Struct, frozen=True):
    """A promise that was broken: `operations` and `orders` are the fewest that show it."""

    invariant: Invariant
    what: str  # a name, for counting
    operations: list[int]
    orders: list[str]
    words: str


class Span(NamedTuple):
    """When the units of an order were out, and when its limits were used."""

    order: OrderFacts
    units: dict[str, int]
    sure_from: int
    sure_to: int
    maybe_from: int
    maybe_to: int  # until they are surely on sale again
    limits_from: int  # surely counted from here on, to `sure_to`
    limits_maybe_from: int  # possibly counted from here on, to `maybe_to`


class Facts:
    """Built once; the judges only read."""

    def __init__(self, history: History, final: Final, bounds: Bounds) -> None:
        self.final, self.bounds = final, bounds
        self.tolerance_ns = bounds.clock_ms * MS
        self.lease_ns = final.campaign.lease_ms * MS
        self.orders: dict[str, OrderFacts] = {o.order_id: o for o in final.orders}
        self.dead_ids = {d.order_id for d in final.dead_letters if d.order_id is not None}
        self.repaired = {r.order_id for r in final.repairs}
        self.moves = {(m.state, m.action): m for m in final.flow.moves}
        self.allocates = any("allocate" in m.messages for m in final.flow.moves)
        self.ok_by_order = _yeses(history.operations)
        nowhere = {i: ops for i, ops in self.ok_by_order.items() if i not in self.orders and i not in self.dead_ids}
        self.losses = losses(history, final, self.tolerance_ns)
        # What a lost store may cost. From here on nobody knows more of these orders than of a timeout.
        self.excused = excused(history, final, nowhere, self.tolerance_ns, int(bounds.heal_s * 1e9))
        if self.excused:
            history = without(history, self.excused)
            self.ok_by_order = _yeses(history.operations)
        self.history = history
        self.lost = [i for i in nowhere if i not in self.excused]
        self.by_key = _by_key(history.operations, final.orders)
        self.bases = bases(final)
        self.all_known = self._all_known()
        # Of what is in the store now. A rebuild installs what the ledger has, and goes on counting from its base.
        self.all_stored = self.all_known or self._all_stored()
        # And what each of them has taken: of an order set aside only its client can tell.
        self.all_read = self.all_stored and all(i in self.ok_by_order for i in self.dead_ids)
        # Of a rebuilt campaign nobody knows what counted for whom between two lives.
        self.limits_judged = final.campaign.limits_kept and self.all_known and not self.repaired
        self.windows = fault_windows(history.faults)
        # A fault is felt for a while after it is healed.
        self.troubles = merged((a, b + int(bounds.heal_s * 1e9)) for a, b in self.windows)
        self._trouble_starts = [a for a, _ in self.troubles]
        self.delivered: dict[tuple[str, str], int] = {}  # order, topic -> by when it was first done
        for d in final.deliveries:
            at_ns, place = history.mono_ns(d.at_ns), (d.order_id, d.topic)
            self.delivered[place] = min(at_ns, self.delivered.get(place, at_ns))
        self.clock_trusted = self._clock_trusted()
        self.spans = [self._span(order) for order in self.orders.values()]
        self.lost_spans = [self._lost_span(i, e) for i, e in self.excused.items()]

    def troubled(self, start_ns: int, end_ns: int) -> bool:
        """Whether a fault, or its aftermath, falls between the two."""
        at = bisect_left(self._trouble_starts, end_ns + 1)
        return at > 0 and self.troubles[at - 1][1] >= start_ns

    def implied(self, event: OrderEvent) -> tuple[str, ...]:
        """The messages that the flow writes with an event; none for a move that the flow does not know."""
        if event.from_state is None:
            return self.final.flow.opening
        move = self.moves.get((event.from_state, event.action))
        return () if move is None else move.messages

    def operations_of(self, orders: Iterable[OrderFacts]) -> list[int]:
        """The numbers of the operations that became these orders, one each where there is one."""
        found = []
        for order in orders:
            ops = self.ok_by_order.get(order.order_id) or self.by_key.get((order.channel, order.key), [])
            found += [op.ask.n for op in ops[:1]]
        return found

    def _all_known(self) -> bool:
        """Whether every order that the store ever accepted is known by its number: no unknown one hides."""
        final = self.final
        if any(r.epoch != 1 for r in final.readings) or any(
            d.seq is None or not d.order_id for d in final.dead_letters
        ):
            return False
        seqs: dict[int, set[int]] = defaultdict(set)
        for order in final.orders:
            seqs[order.shard].add(order.seq)
        for dead in final.dead_letters:
            seqs[dead.shard].add(dead.seq or 0)
        return all(len(seqs[r.shard]) == r.seq for r in final.readings)

    def _all_stored(self) -> bool:
        """Whether each order that came after the last rebuild of its shard is known by its number."""
        known = {(o.shard, o.epoch, o.seq) for o in self.final.orders}
        known |= {(d.shard, d.epoch, d.seq or 0) for d in self.final.dead_letters if d.order_id}
        return all(
            (r.shard, r.epoch) in self.bases
            and all((r.shard, r.epoch, n) in known for n in range(self.bases[r.shard, r.epoch] + 1, r.seq + 1))
            for r in self.final.readings
        )

    def _clock_trusted(self) -> bool:
        """Whether the store's clock agrees with the client's, wherever both saw the same acceptance."""
        for order_id, ops in self.ok_by_order.items():
            order = self.orders.get(order_id)
            if order is None:
                continue
            at_ns = self.history.mono_ns(order.accepted_ms * MS)
            # The attempt that was accepted may be an earlier one, without an answer.
            attempts = self.by_key[ops[0].ask.channel, ops[0].ask.key]
            first_ns = min(op.ask.at_ns for op in attempts)
            if not first_ns - self.tolerance_ns <= at_ns <= first_ok_ns(ops) + self.tolerance_ns:
                return False
        return True

    def _span(self, order: OrderFacts) -> Span:
        mono, tolerance = self.history.mono_ns, self.tolerance_ns
        accepted_ns = mono(order.accepted_ms * MS)
        attempts = [op for op in self.by_key.get((order.channel, order.key), ()) if not _refused(op)]
        limits_from = first_ok_ns(self.ok_by_order.get(order.order_id, ()))
        maybe_from = min((op.ask.at_ns for op in attempts), default=ALWAYS)
        if self.clock_trusted:
            limits_from = min(limits_from, accepted_ns + tolerance)
            if not self._reborn(order, maybe_from):
                maybe_from = max(maybe_from, accepted_ns - tolerance)
        elif limits_from == NEVER:
            limits_from = self.history.end_ns
        sure_from, sure_to, maybe_to, limits_maybe_from = limits_from, NEVER, NEVER, maybe_from
        if self.allocates:
            sure_from = maybe_from = NEVER
        for event in order.events:
            at_ns, topics = mono(event.at_ns), self.implied(event)
            if self.allocates and "allocate" in topics:
                maybe_from = at_ns - tolerance
            elif self.allocates and event.action == "allocated":
                sure_from = at_ns + tolerance
            for topic in COMING_BACK:
                if topic in topics:
                    sure_to = min(sure_to, at_ns - tolerance)
                    done_ns = self.delivered.get((order.order_id, topic), NEVER - self.lease_ns - tolerance)
                    maybe_to = min(maybe_to, done_ns + self.lease_ns + tolerance)
        if order.order_id in self.repaired:  # nobody wrote down when
            sure_to = min(sure_to, limits_from)
        return Span(order, dict(order.items), sure_from, sure_to, maybe_from, maybe_to, limits_from, limits_maybe_from)

    def _reborn(self, order: OrderFacts, asked_ns: int) -> bool:
        """Whether an earlier attempt of the key may have been accepted too, in a life of the store that was lost."""
        mono = self.history.mono_ns
        return any(1 < r.epoch <= order.epoch and mono(r.at_ns) > asked_ns for r in self.final.rebuilds)

    def _lost_span(self, order_id: str, lost: Excused) -> Span:
        """Until the store was lost it had its units like any other, and it may have had them until the rebuild."""
        ask = lost.first.ask
        order = OrderFacts(
            order_id, 0, 0, ask.channel, ask.key, ask.buyer, ask.items, 0, "", 0, 0, 0, [], ask.ip, ask.device
        )
        attempts = [op.ask.at_ns for op in self.by_key.get((ask.channel, ask.key), ())]
        maybe_from, sure_from = min(attempts, default=ask.at_ns), lost.first_ok_ns
        maybe_to = lost.loss.back_ns + self.lease_ns + self.tolerance_ns
        units_from = NEVER if self.allocates else sure_from
        return Span(order, dict(ask.items), units_from, lost.loss.begin_ns, maybe_from, maybe_to, sure_from, maybe_from)


def _yeses(operations: list[Operation]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = defaultdict(list)
    for op in operations:
        if op.ask.op == "order" and isinstance(op.answer, Ok):
            found[op.answer.order_id].append(op)
    return found


def _refused(op: Operation) -> bool:
    return op.answer is not None and not isinstance(op.answer, Ok | Unknown)


def first_ok_ns(ops: Iterable[Operation]) -> int:
    """When the first yes was seen; NEVER: none was."""
    return min((op.answer.at_ns for op in ops if isinstance(op.answer, Ok)), default=NEVER)


def _by_key(operations: list[Operation], orders: list[OrderFacts]) -> dict[tuple[str, str], list[Operation]]:
    """Orders by channel and key, but for keys that were only ever refused: of these there are a million."""
    told = {(o.channel, o.key) for o in orders}
    for op in operations:
        if op.ask.op == "order" and (not _refused(op) or (op.answer is not None and op.answer.code == "key_reused")):
            told.add((op.ask.channel, op.ask.key))
    found: dict[tuple[str, str], list[Operation]] = {}
    for op in operations:
        if op.ask.op == "order" and (op.ask.channel, op.ask.key) in told:
            found.setdefault((op.ask.channel, op.ask.key), []).append(op)
    return found


def merged(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Windows that do not touch each other, in order."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(windows):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def fault_windows(faults: list[Fault | Mending | Healed]) -> list[tuple[int, int]]:
    """From the beginning of a fault until no fault is left, in order."""
    windows: list[tuple[int, int]] = []
    begun: dict[str, int] = {}
    for event in sorted(faults, key=lambda e: e.at_ns):
        if isinstance(event, Fault):
            begun.setdefault(event.name, event.at_ns)
        elif isinstance(event, Healed) and event.name in begun:
            windows.append((begun.pop(event.name), event.at_ns))
    return merged([*windows, *((start, NEVER) for start in begun.values())])


def counted(items: Iterable[tuple[str, int]]) -> Counter[str]:
    """Units by SKU."""
    found: Counter[str] = Counter()
    for sku, units in items:
        found[sku] += units
    return found


def definite(answer: Answer | None) -> bool:
    """Whether somebody decided: a yes, or a no that is not for want of room."""
    return answer is not None and not isinstance(answer, Unknown) and answer.status != 429


def asked_restocks(operations: list[Operation]) -> dict[str, tuple[Invoke, int]]:
    """Move id -> the first restock of it that got a yes, and when the yes was seen."""
    found: dict[str, tuple[Invoke, int]] = {}
    for op in operations:
        if op.ask.move_id and isinstance(op.answer, Ok):
            known = found.get(op.ask.move_id)
            if known is None or op.answer.at_ns < known[1]:
                found[op.ask.move_id] = op.ask, op.answer.at_ns
    return found
