"""A verdict in words: the figures, what could not be judged, and each violation with all that was seen of it."""

from collections import defaultdict
from collections.abc import Iterator

from loadtest.history import Fault, History, Operation
from loadtest.history_check import Verdict, Violation
from loadtest.history_check_facts import fault_windows
from loadtest.history_final import Final, OrderFacts

SHOWN = 20  # violations that are told; all are counted
OPERATIONS_SHOWN = 20  # of one violation
ORDERS_SHOWN = 3  # whose stories are told, of one violation


def lines(verdict: Verdict, history: History, *, drained: bool = True, final: Final | None = None) -> Iterator[str]:
    """The verdict for people. With the facts, the story of each order that a violation names."""
    stats = verdict.stats
    yield f"campaign {history.header.campaign}: {sum(stats.operations.values()):,} operations, {stats.orders:,} orders"
    yield "  " + ", ".join(f"{name} {count:,}" for name, count in stats.operations.items())
    if stats.faults:
        yield "  faults: " + ", ".join(f"{name} {count}" for name, count in sorted(stats.faults.items()))
    heals: dict[str, list[float]] = defaultdict(list)
    for heal in stats.heals:
        if heal.seconds is not None:
            heals[heal.name].append(heal.seconds)
    for name, seconds in sorted(heals.items()):
        yield f"  a definite answer after {name}: max {max(seconds):.2f} s of {len(seconds)}"
    if stats.lost:
        yield f"  lost: {stats.lost:,} accepted orders that were not drained went with the store, as they may"
    for words in stats.unjudged:
        yield f"  not judged: {words}"
    if not drained:
        yield "  not judged: 12: nobody plays the partners, so their messages wait by design"
    total = sum(stats.violations.values())
    if not total:
        yield "no invariant is violated"
        return
    some = ", ".join(f"{count:,} of invariant {n}" for n, count in sorted(stats.violations.items()))
    yield f"{total:,} violation{'s' * (total > 1)}: {some}"
    told = _Told(history, final)
    for violation in verdict.violations[:SHOWN]:
        yield from told.violation(violation)
    if total > SHOWN:
        yield f"  … and {total - SHOWN:,} more"


class _Told:
    """Tells violations; seconds count from the history's beginning."""

    def __init__(self, history: History, final: Final | None) -> None:
        self._history = history
        self._operations = {op.ask.n: op for op in history.operations}
        self._final = final
        self._orders = {o.order_id: o for o in final.orders} if final else {}
        self._seen: set[str] = set()

    def violation(self, violation: Violation) -> Iterator[str]:
        """It, its operations as they were asked and answered, its orders as the ledger has them."""
        yield f"  invariant {violation.invariant}, {violation.what}: {violation.words}"
        for n in sorted(violation.operations)[:OPERATIONS_SHOWN]:
            yield "    " + self._operation(self._operations[n])
        for order_id in violation.orders[:ORDERS_SHOWN]:
            if order_id in self._orders and order_id not in self._seen:
                self._seen.add(order_id)
                yield from (f"    {line}" for line in self._story(self._orders[order_id]))

    def _at(self, mono_ns: int) -> str:
        return f"{(mono_ns - self._history.header.started_mono_ns) / 1e9:.3f}"

    def _wall(self, wall_ns: int) -> str:
        return self._at(self._history.mono_ns(wall_ns))

    def _operation(self, op: Operation) -> str:
        ask, answer = op.ask, op.answer
        what = f"#{ask.n} {ask.op}"
        if ask.op == "order":
            basket = ", ".join(f"{units} {sku}" for sku, units in ask.items)
            what += f" of {basket} by {ask.buyer}, {ask.channel} {ask.key}, body {ask.body}"
        elif ask.op == "restock":
            what += f" {ask.move_id}: {ask.units} {ask.sku}"
        else:
            what += f" {ask.order_id}"
        if answer is None:
            return f"{self._at(ask.at_ns)} s  {what} -> no answer{self._during(ask.at_ns, self._history.end_ns)}"
        told = [str(answer.status) if answer.status else "no answer", answer.code, answer.sku, answer.order_id]
        words = " ".join(filter(None, told)) + (" (replayed)" if answer.replayed else "")
        during = self._during(ask.at_ns, answer.at_ns)
        return f"{self._at(ask.at_ns)} s  {what} -> {self._at(answer.at_ns)} s  {words}{during}"

    def _during(self, start_ns: int, end_ns: int) -> str:
        names = {
            event.name
            for event in self._history.faults
            if isinstance(event, Fault)
            for a, b in fault_windows([e for e in self._history.faults if e.name == event.name])
            if a <= end_ns and b >= start_ns
        }
        return f"  [{', '.join(sorted(names))}]" if names else ""

    def _story(self, order: OrderFacts) -> Iterator[str]:
        assert self._final is not None  # noqa: S101 - there are no orders without it
        basket = ", ".join(f"{units} {sku}" for sku, units in order.items)
        yield (
            f"order {order.order_id}: {order.state}, {basket} for {order.amount}; shard {order.shard}, number "
            f"{order.seq}, epoch {order.epoch}; {order.channel} {order.key}"
        )
        steps = [
            (e.at_ns, f"v{e.version} {e.action} -> {e.to_state}  ({e.actor or 'nobody'}: {e.reason})")
            for e in order.events
        ]
        steps += [
            (d.at_ns, f"v{d.version} {d.topic} delivered: {d.outcome}, attempt {d.attempts}")
            for d in self._final.deliveries
            if d.order_id == order.order_id
        ]
        for at_ns, words in sorted(steps, key=lambda step: step[0]):
            yield f"  {self._wall(at_ns)} s  {words}"
        for op in self._history.operations:
            ask = op.ask
            if ask.order_id == order.order_id or (ask.channel, ask.key) == (order.channel, order.key):
                yield f"  client: {self._operation(op)}"
        for p in self._final.payments:
            if p.order_id == order.order_id:
                yield f"  payment {p.payment_no} {p.status}: {p.amount}"
        for r in self._final.refunds:
            if r.order_id == order.order_id:
                yield f"  refund {r.refund_no} {r.state}: {r.amount}"
        for saw in self._final.partners or ():
            if saw.order_id == order.order_id and (saw.amount or (saw.received, saw.effects, saw.others) != (1, 1, 0)):
                money = f", {saw.amount} {saw.number}".rstrip() if saw.amount else ""
                yield f"  partner: v{saw.version} {saw.topic} came {saw.received} times, {saw.effects} effects{money}"
