"""Invariants 8, 9 and 10: events along the flow, one winner and stock back once, every message delivered."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from loadtest.history import Ok
from loadtest.history_check_facts import Facts, Violation
from loadtest.history_final import Delivery, OrderFacts

EFFECTIVE = {"released": "release", "settled": "settle", "returned": "restock"}


def judge_events(facts: Facts) -> Iterator[Violation]:
    """8: versions 1, 2, 3 …, each event a row of the flow, the last one where the order is."""
    doubled = {order.order_id for order in facts.orders.values() if len(_leaving(facts, order)) > 1}
    for order in facts.orders.values():
        fault = None if order.order_id in doubled else _astray(facts, order)  # two winners are judged by 9
        if fault:
            words = f"order {order.order_id}: {fault}"
            yield Violation(8, "events", facts.operations_of([order]), [order.order_id], words)


def _astray(facts: Facts, order: OrderFacts) -> str:
    if [e.version for e in order.events] != list(range(1, order.version + 1)):
        return f"version {order.version}, and its events have {[e.version for e in order.events]}"
    state, at_ns = None, None
    for event in order.events:
        if event.from_state != state:
            return f"version {event.version} goes on from {event.from_state}, and the order was {state}"
        if state is None:
            wanted = facts.final.flow.first
        else:
            move = facts.moves.get((state, event.action))
            if move is None:
                return f"version {event.version}: the flow has no {event.action} in {state}"
            wanted = move.to
        if event.to_state != wanted:
            return f"version {event.version}: {event.action} leads to {wanted}, not to {event.to_state}"
        if at_ns is not None and event.at_ns < at_ns - facts.tolerance_ns:
            return f"version {event.version} is older than the one before"
        # The first event has the store's time, all others the ledger's: these two are not compared.
        at_ns = event.at_ns if state is not None else None
        state = event.to_state
    return "" if state == order.state else f"it is {order.state}, and its last event left it {state}"


def _leaving(facts: Facts, order: OrderFacts) -> list[str]:
    """The actions that took the order out of its first state."""
    first = facts.final.flow.first
    return [e.action for e in order.events if e.from_state == first != e.to_state]


def judge_winners(facts: Facts) -> Iterator[Violation]:
    """9: one way out of the first state; a hold ends once and sold units come back at most once."""
    effects: dict[str, list[Delivery]] = defaultdict(list)
    nothing: dict[str, list[Delivery]] = defaultdict(list)
    for d in facts.final.deliveries:
        if d.topic == EFFECTIVE.get(d.outcome):
            effects[d.order_id].append(d)
        elif d.topic in ("release", "settle") and d.outcome == "nothing":
            nothing[d.order_id].append(d)
    for order in facts.orders.values():
        ways = _leaving(facts, order)
        if len(ways) > 1:
            words = f"order {order.order_id}: {' and '.join(ways)} both won"
            yield Violation(9, "two_winners", facts.operations_of([order]), [order.order_id], words)
        done = Counter(d.topic for d in effects[order.order_id])
        if done["release"] + done["settle"] > 1 or done["restock"] > 1 or (done["release"] and done["restock"]):
            words = f"order {order.order_id}: its hold or its units came back more than once: {dict(done)}"
            yield Violation(9, "back_twice", facts.operations_of([order]), [order.order_id], words)
        ended = done["release"] + done["settle"]
        if not ended and order.order_id not in facts.repaired:
            for d in nothing[order.order_id]:
                if d.attempts == 1 and not _troubled_since(facts, order, d):
                    words = f"order {order.order_id}: {d.topic} found no hold at its very first attempt"
                    yield Violation(9, "no_hold", facts.operations_of([order]), [order.order_id], words)
                    break
    yield from _answered(facts)


def _troubled_since(facts: Facts, order: OrderFacts, d: Delivery) -> bool:
    since_ns = next((e.at_ns for e in order.events if e.version == d.version), d.at_ns)
    return facts.troubled(facts.history.mono_ns(since_ns), facts.history.mono_ns(d.at_ns))


def _answered(facts: Facts) -> Iterator[Violation]:
    """A cancel or a payment that got a yes is on record."""
    paid = {p.order_id for p in facts.final.payments}
    for op in facts.history.operations:
        ask = op.ask
        if ask.op not in ("cancel", "pay") or not isinstance(op.answer, Ok):
            continue
        order = facts.orders.get(ask.order_id)
        if order is None:
            continue  # judged by 2, if it was ever accepted
        known = ask.order_id in paid if ask.op == "pay" else any(e.action == "cancel" for e in order.events)
        if not known:
            words = f"order {ask.order_id}: {ask.op} got a yes and is not on record"
            yield Violation(9, "yes_forgotten", [ask.n], [ask.order_id], words)


def judge_messages(facts: Facts) -> Iterator[Violation]:
    """10: each message that an event brought about was delivered, under one id and with one effect."""
    final = facts.final
    delivered = {(d.order_id, d.version, d.topic): d for d in final.deliveries}
    waiting = {(m.order_id, m.version, m.topic) for m in final.outbox}
    buried = {(m.order_id, m.version, m.topic) for m in final.dead_messages}
    money = _money(facts)
    refunds = {(r.order_id, r.refund_no) for r in final.refunds}
    wanted = set()
    for order in facts.orders.values():
        for event in order.events:
            for topic in facts.implied(event):
                message = (order.order_id, event.version, topic)
                wanted.add(message)
                if message in delivered or message in waiting or message in buried:
                    continue
                due = (order.order_id, f"ref_{event.version}") in refunds or money[order.order_id] > 0
                if topic != "refund" or due:  # where nothing is left to pay back there is no such message
                    words = f"order {order.order_id}: {topic} of version {event.version} was never delivered"
                    yield Violation(10, "undelivered", facts.operations_of([order]), [order.order_id], words)
    for order_id, version, topic in sorted(buried):
        words = f"order {order_id}: {topic} of version {version} was given up"
        if facts.bounds.drained:
            yield Violation(10, "given_up", [], [order_id], words)
    for order_id, version, topic in sorted(delivered.keys() - wanted):
        known = facts.orders.get(order_id)
        if known is not None and order_id not in facts.repaired and not _astray(facts, known):
            words = f"order {order_id}: {topic} of version {version} was delivered, and no event asked for it"
            yield Violation(10, "unasked", [], [order_id], words)


def _money(facts: Facts) -> Counter[str]:
    """What was paid and is not on its way back, of orders that owe it to their buyer, in minor units."""
    owed: Counter[str] = Counter()
    for p in facts.final.payments:
        order = facts.orders.get(p.order_id)
        if p.status == "paid" and order is not None and order.state in ("refund_pending", "refunded"):
            owed[p.order_id] += p.amount
    for r in facts.final.refunds:
        if r.order_id in owed and r.state in ("approved", "done"):
            owed[r.order_id] -= r.amount
    return owed
