"""Invariants 9 and 12 beyond the flow: money, units that come back after a sale, and orders that got stuck.

A compensation is complete when all of it is on record: what was paid and is not kept has gone back, and the units of an
order that was sold and came back are journalled once, just as they were taken.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from loadtest.history_check_facts import ALWAYS, Facts, Violation, counted
from loadtest.history_final import Move, OrderFacts, RefundFacts

PAYING = ("pay", "pay_again")
BACK_IN_FULL = ("refund_pending", "refunded")
RETURN = "return."


def judge_money(facts: Facts) -> Iterator[Violation]:
    """9: each payment moved its order once; what goes back never exceeds it, and leaves what the order costs."""
    paid: dict[str, list[int]] = defaultdict(list)
    back: dict[str, list[RefundFacts]] = defaultdict(list)
    for p in facts.final.payments:
        if p.status == "paid":
            paid[p.order_id].append(p.amount)
    for r in facts.final.refunds:
        if r.state in ("approved", "done"):
            back[r.order_id].append(r)
    for order in facts.orders.values():
        fault = _money_astray(facts, order, paid[order.order_id], back[order.order_id])
        if fault is not None:
            what, words = fault
            numbers = facts.operations_of([order])
            yield Violation(9, what, numbers, [order.order_id], f"order {order.order_id}: {words}")


def _money_astray(facts: Facts, order: OrderFacts, paid: list[int], back: list[RefundFacts]) -> tuple[str, str] | None:
    moves = [e.action for e in order.events if e.action in PAYING]
    if len(moves) != len(paid):
        return "payment_unused", f"{len(paid)} payments are on record, and {len(moves)} events of a payment"
    came, went = sum(paid), sum(r.amount for r in back)
    if went > came:
        return "refund_too_much", f"{went} goes back, and {came} was paid"
    asked = {f"ref_{e.version}" for e in order.events if "refund" in facts.implied(e)}
    unasked = [r.refund_no for r in back if r.refund_no not in asked]
    if unasked:
        return "refund_unasked", f"no event asked for the refund {unasked[0]}"
    if len({r.refund_no for r in back}) < len(back):
        return "refund_twice", "one refund is on record more than once"
    if order.state in BACK_IN_FULL:
        return None if went == came else ("refund_missing", f"{came} was paid, and {went} of it goes back")
    kept, due = came - went, order.amount if "pay" in moves else 0
    in_part = any(e.action == "refund" for e in order.events)
    if kept > due or (kept < due and not in_part):
        return "money_kept", f"it is {order.state}, costs {order.amount}, and {kept} of what was paid is kept"
    return None


def judge_returns(facts: Facts) -> Iterator[Violation]:
    """9: sold units that came back are journalled once each, for orders that gave them back and for no others."""
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for move in facts.final.campaign.moves:
        if move.kind == "return" and move.state == "applied":
            given[_order_of(move)][move.sku] += move.units
    returned = {d.order_id for d in facts.final.deliveries if d.topic == "restock"}
    for order in facts.orders.values():
        if order.order_id in facts.repaired:
            continue
        there = given[order.order_id]
        asked = any("restock" in facts.implied(e) for e in order.events)
        if asked and order.order_id in returned and there != counted(order.items):
            words = f"{dict(there)} units are journalled as come back, and it had {dict(counted(order.items))}"
        elif there and not asked:
            words = f"{dict(there)} units are journalled as come back, and no event asked for it"
        else:
            continue
        numbers = facts.operations_of([order])
        yield Violation(9, "return_astray", numbers, [order.order_id], f"order {order.order_id}: {words}")


def _order_of(move: Move) -> str:
    """The order whose units came back: `return.<order>.<version>.<sku>`."""
    return move.move_id.removeprefix(RETURN).partition(".")[0]


def judge_stuck(facts: Facts) -> Iterator[Violation]:
    """12: in the end no order waits for a step that only we make: its expiry, or the allocation of its units."""
    if not facts.bounds.drained:
        return
    waiting = {(m.order_id, m.topic) for m in (*facts.final.outbox, *facts.final.dead_messages)}
    for order in facts.orders.values():
        words = ""
        due_ns = facts.history.mono_ns(order.pay_by_ms * 1_000_000)
        # Every history is over before its facts are collected; what is due then was due long enough.
        if order.state == facts.final.flow.first and ALWAYS < due_ns < facts.history.end_ns and facts.clock_trusted:
            words = "its time to pay is over, and it has not expired"
        moves = {m.messages for m in facts.final.flow.moves if m.to == order.state}
        if any("allocate" in m for m in moves) and (order.order_id, "allocate") not in waiting:
            words = f"it is {order.state}, and nothing is on its way that would take its units"
        if words:
            numbers = facts.operations_of([order])
            yield Violation(12, "stuck", numbers, [order.order_id], f"order {order.order_id}: {words}")
