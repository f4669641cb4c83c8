"""Invariants 5 and 7: the store's numbers against the ledger's orders, and every `sold_out` against what was left."""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator

from loadtest.history import Fail, Invoke, Ok, Operation
from loadtest.history_check_classes import APART, beyond
from loadtest.history_check_facts import ALWAYS, NEVER, Facts, Violation, asked_restocks, counted
from loadtest.history_check_sweep import moment
from loadtest.history_check_transit import Transit
from loadtest.history_final import OrderFacts, ShardReading

Range = dict[str, tuple[int, int]]


def judge_balance(facts: Facts) -> Iterator[Violation]:
    """5: allocation = left + held + sold, as opened and moved, and as the ledger's orders have it."""
    campaign, readings = facts.final.campaign, facts.final.readings
    for r in readings:
        for sku in sorted({*r.left, *r.allocation}):
            parts = r.left.get(sku, 0), r.held.get(sku, 0), r.sold.get(sku, 0)
            if min(parts) < 0 or sum(parts) != r.allocation.get(sku, 0):
                words = f"shard {r.shard}: {sku}: {r.allocation.get(sku, 0)} allocated; left, held, sold: {parts}"
                yield Violation(5, "store_balance", [], [], words)
        if r.epoch == 1 and r.requests != r.seq:
            words = f"shard {r.shard}: {r.seq} orders accepted, {r.requests} keys kept"
            yield Violation(5, "store_keys", [], [], words)
    wanted, pending = Counter(campaign.allocation), set()
    for move in campaign.moves:
        if move.state == "pending":
            pending.add(move.sku)
        elif move.state == "applied" and move.kind != "open":
            wanted[move.sku] += move.units
    for sku in sorted(wanted.keys() - pending):
        there = sum(r.allocation.get(sku, 0) + r.moving.get(sku, 0) for r in readings)
        if there != wanted[sku]:
            words = f"{sku}: {there} units allocated in the store, {wanted[sku]} by the ledger"
            yield Violation(5, "allocation", [], [], words)
    yield from _against_ledger(facts)


def _against_ledger(facts: Facts) -> Iterator[Violation]:
    """Held and sold per shard: at least what surely is, at most what may be."""
    by_shard: dict[int, list[OrderFacts]] = defaultdict(list)
    for order in facts.orders.values():
        by_shard[order.shard].append(order)
    # A lost order may have ended in any way before it was lost; one that was set aside has nobody to sell it.
    lost, aside = (
        counted(item for i in ids for op in facts.ok_by_order.get(i, ())[:1] for item in op.ask.items)
        for ids in (facts.lost, facts.dead_ids)
    )
    for r in facts.final.readings:
        ranges = {"held": Counter[str](), "sold": Counter[str]()}
        most = {"held": lost + aside, "sold": Counter(lost)}
        holds = [0, len(facts.lost) + len(facts.final.dead_letters)]
        for order in by_shard[r.shard]:
            sure, may, has_units = _where(facts, order)
            for kind in may:
                units = counted(order.items) if has_units else Counter[str]()
                most[kind].update(units)
                if sure:
                    ranges[kind].update(units)
            holds[0] += sure and "held" in may
            holds[1] += "held" in may
        for kind, there in (("held", r.held), ("sold", r.sold)):
            for sku in sorted({*there, *most[kind]}):
                least, at_most, found = ranges[kind][sku], most[kind][sku], there.get(sku, 0)
                bounded = facts.all_read if kind == "held" else facts.all_stored
                if found < least or (bounded and found > at_most):
                    orders = _suspects(facts, r, kind, sku)
                    words = f"shard {r.shard}: {sku}: {found} {kind} in the store, {least} to {at_most} by the ledger"
                    yield Violation(5, f"{kind}_disagree", [], orders, words)
        if r.holds < holds[0] or (facts.all_stored and r.holds > holds[1]):
            words = f"shard {r.shard}: {r.holds} holds in the store, {holds[0]} to {holds[1]} by the ledger"
            yield Violation(5, "holds_disagree", [], [], words)
        yield from _holds_by_id(facts, r, by_shard[r.shard])


def _holds_by_id(facts: Facts, r: ShardReading, orders: list[OrderFacts]) -> Iterator[Violation]:
    """Each hold belongs to an order that may have one, each order that surely has one has it."""
    if r.hold_ids is None:
        return
    there, known = set(r.hold_ids), {order.order_id for order in orders}
    for order in orders:
        sure, may, _ = _where(facts, order)
        has = order.order_id in there
        if has and "held" not in may:
            words = f"order {order.order_id}: it is {order.state}, all is delivered, and its hold is still in the store"
        elif sure and may == ("held",) and not has:
            words = f"order {order.order_id}: it is {order.state}, and has no hold in the store"
        else:
            continue
        yield Violation(5, "hold_astray", facts.operations_of([order]), [order.order_id], words)
    if facts.all_stored:
        for order_id in sorted(there - known - facts.dead_ids - set(facts.lost)):
            yield Violation(
                5, "hold_of_nobody", [], [order_id], f"order {order_id}: a hold, and no order of the ledger"
            )


def _where(facts: Facts, order: OrderFacts) -> tuple[bool, tuple[str, ...], bool]:
    """Whether it is sure, where the hold is (held, sold, nowhere), and whether it has units."""
    topics = [t for e in order.events for t in facts.implied(e)]
    done = {t for t in topics if (order.order_id, t) in facts.delivered}
    actions = {e.action for e in order.events}
    attempted = not facts.history.whole or (order.channel, order.key) in facts.by_key
    sure = attempted and order.order_id not in facts.repaired
    has_units = not facts.allocates or ("allocate" in topics and "too_late" not in actions)
    if facts.allocates and has_units and "allocated" not in actions:
        sure = False
    if "settle" in topics and "release" in topics:
        return False, ("held", "sold"), has_units
    if "settle" in topics:
        return (sure, ("sold",), has_units) if "settle" in done else (False, ("held", "sold"), has_units)
    if "release" in topics:
        return (sure, (), has_units) if "release" in done else (False, ("held",), has_units)
    return sure, ("held",), has_units


def _suspects(facts: Facts, r: ShardReading, kind: str, sku: str) -> list[str]:
    """At most ten orders of that shard and SKU that should be there; a sum names nobody for sure."""
    orders = (o for o in facts.orders.values() if o.shard == r.shard and any(s == sku for s, _ in o.items))
    return [o.order_id for o in orders if kind in _where(facts, o)[1]][:10]


def judge_sold_out(facts: Facts) -> Iterator[Violation]:
    """7: each `sold_out` had a moment at which too few can have been left; what was wanted is sold in the end."""
    for op, wanted, excused in _too_early(facts):
        if not excused:
            basket = ", ".join(f"{units} of {sku}" for sku, units in wanted)
            words = f"operation {op.ask.n} wanted {basket} {moment(facts.history, op.ask.at_ns)}: there was enough"
            yield Violation(7, "sold_out_too_early", [op.ask.n], [], words)
    if facts.bounds.sells_out:
        for sku in facts.final.campaign.allocation:
            left = sum(r.left.get(sku, 0) + r.moving.get(sku, 0) for r in facts.final.readings)
            if left > 0:
                yield Violation(7, "unsold", [], [], f"{sku}: {left} units are unsold, and more were wanted")
        holds = sum(r.holds for r in facts.final.readings)
        if holds:
            open_ones = [o.order_id for o in facts.orders.values() if "held" in _where(facts, o)[1]]
            yield Violation(7, "open_holds", [], open_ones[:10], f"{holds} holds are open at the end")


def excused_sold_outs(facts: Facts) -> int:
    """How many `sold_out` would be wrong, had no units been on their way between shards."""
    if facts.final.campaign.spread == 1 or not beyond(facts.history.faults, APART):
        return 0  # the common case, which is not worked out twice
    return sum(excused for _, _, excused in _too_early(facts))


def _too_early(facts: Facts) -> Iterator[tuple[Operation, list[tuple[str, int]], bool]]:
    """Each `sold_out` while there was enough, what it was of, and whether a transfer that was cut short excuses it.

    It does not where so much was left all the time that it was enough for every shard.
    """
    shortages, transit = _Shortages(facts), Transit(facts)
    spread = facts.final.campaign.spread
    for op in facts.history.operations:
        answer = op.answer
        if not (isinstance(answer, Fail) and answer.code == "sold_out" and op.ask.op == "order"):
            continue
        start_ns, end_ns = op.ask.at_ns, answer.at_ns
        wanted = [(sku, units) for sku, units in op.ask.items if answer.sku in ("", sku)]
        if spread == 1:
            if not any(shortages.any(sku, units, start_ns, end_ns) for sku, units in wanted):
                yield op, wanted, False
        elif not any(shortages.any_piecemeal(sku, units, start_ns, end_ns) for sku, units in wanted):
            excused = transit.possible(start_ns, end_ns) and any(
                shortages.any_piecemeal(sku, units * spread, start_ns, end_ns) for sku, units in wanted
            )
            yield op, wanted, excused


class _Shortages:
    """When fewer units than so many can have been left, per SKU; each number of units is worked out once."""

    def __init__(self, facts: Facts) -> None:
        self._blind = not facts.all_known and not facts.history.whole  # orders may be hidden that nobody recorded
        self._steps: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._cache: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        self._sums: dict[str, tuple[list[int], list[int], list[int]]] = {}
        campaign = facts.final.campaign
        for sku, units in campaign.allocation.items():
            self._steps[sku].append((ALWAYS, units))
        asked = asked_restocks(facts.history.operations)
        for move in campaign.moves:
            if move.kind in ("open", "return") or move.state == "refused":
                continue
            if move.units < 0:
                self._steps[move.sku].append((facts.history.mono_ns(move.at_ns) - facts.tolerance_ns, move.units))
            elif move.move_id in asked:
                sure_ns = asked[move.move_id][1] + facts.lease_ns + facts.tolerance_ns
                self._steps[move.sku].append((sure_ns, move.units))
        for span in (*facts.spans, *facts.lost_spans):
            if span.maybe_from < span.maybe_to:
                for sku, units in span.units.items():
                    self._steps[sku] += (span.maybe_from, -units), (span.maybe_to, units)
        for ask in self._unseen(facts):
            for sku, units in ask.items:
                self._steps[sku].append((ask.at_ns, -units))

    def _unseen(self, facts: Facts) -> Iterator[Invoke]:
        """Attempts that are in no ledger and may have taken units all the same."""
        known = {(o.channel, o.key) for o in facts.orders.values()}
        for key, ops in facts.by_key.items():
            if key not in known:
                bodies = {op.ask.body for op in ops if isinstance(op.answer, Ok)}
                # With a yes, the attempt that was accepted may be an earlier one of the same body.
                for body in bodies or (set() if facts.all_known and facts.all_read else {op.ask.body for op in ops}):
                    maybe = [op.ask for op in ops if op.ask.body == body and not isinstance(op.answer, Fail)]
                    if maybe:
                        yield min(maybe, key=lambda ask: ask.at_ns)

    def any(self, sku: str, units: int, start_ns: int, end_ns: int) -> bool:
        """Whether fewer than `units` can have been left at some moment between the two."""
        if self._blind or sku not in self._steps:
            return True
        starts, ends = self._cache.get((sku, units)) or self._periods(sku, units)
        at = bisect_right(starts, end_ns)
        return at > 0 and ends[at - 1] >= start_ns

    def any_piecemeal(self, sku: str, units: int, start_ns: int, end_ns: int) -> bool:
        """The same for shards that are read one after another: a unit may leave one of them after another was read,
        and come back to that one, so that it was seen nowhere. What comes back between the two does not count."""
        if self._blind or sku not in self._steps:
            return True
        moments, left, taken = self._sums.get(sku) or self._sum(sku)
        first, last = bisect_left(moments, start_ns) - 1, bisect_right(moments, end_ns) - 1
        return left[first] - (taken[last] - taken[first]) < units

    def _sum(self, sku: str) -> tuple[list[int], list[int], list[int]]:
        """Moments; what is left after each, and what was taken up to each."""
        moments, left, taken = [ALWAYS - 1], [0], [0]
        for at_ns, change in sorted(self._steps[sku]):
            moments.append(at_ns)
            left.append(left[-1] + change)
            taken.append(taken[-1] + max(0, -change))
        self._sums[sku] = moments, left, taken
        return self._sums[sku]

    def _periods(self, sku: str, units: int) -> tuple[list[int], list[int]]:
        steps = self._steps[sku]
        left = sum(change for at_ns, change in steps if at_ns == ALWAYS)
        short = left < units
        starts, ends = [ALWAYS] if short else [], list[int]()
        for at_ns, change in sorted(step for step in steps if step[0] > ALWAYS):  # of one moment, what takes first
            left += change
            if (left < units) != short:
                short = not short
                (starts if short else ends).append(at_ns)
        if short:
            ends.append(NEVER)
        self._cache[sku, units] = starts, ends
        return starts, ends
