"""More ways to spoil a right run: money, units that come back, holds, limits, partners, and other order types."""

from typing import Any

from msgspec.structs import replace

from loadtest.history import Fail, Invoke, Ok
from loadtest.history_final import LimitsOf, Move, OrderFacts, PartnerReport, PartnerSaw, PaymentFacts, RefundFacts
from tests.unit.history_spoilers import Run, Spoil, find_no_hold, sell_before_the_restock


def give_two_orders_for_one_key(run: Run) -> set[object]:
    one, two = run.order("completed"), run.order("expired")
    return {run.again(run.operation(one), Ok(0, 0, 202, "", two.order_id, True)), one.order_id, two.order_id}


def pay_back_twice(run: Run) -> set[object]:
    order = run.order("refunded")
    again = RefundFacts(order.order_id, "ref_99", order.amount, "approved")
    run.put(refunds=[*run.final.refunds, again])
    return {order.order_id}


def forget_to_pay_back(run: Run) -> set[object]:
    """The message is said to be delivered, the order to be refunded; no partner is there to deny it."""
    order = run.order("refunded")
    run.put(refunds=[r for r in run.final.refunds if r.order_id != order.order_id], partners=None, reports=None)
    return {order.order_id}


def pay_back_less(run: Run) -> set[object]:
    order = run.order("refunded")
    run.put(refunds=[replace(r, amount=r.amount - 1) if r.order_id == order.order_id else r for r in run.final.refunds],
            partners=None, reports=None)  # fmt: skip
    return {order.order_id}


def pay_back_unasked(run: Run) -> set[object]:
    order = run.order()
    run.put(refunds=[*run.final.refunds, RefundFacts(order.order_id, "ref_98", 1, "approved")])
    return {order.order_id}


def keep_the_money_of_an_expired_order(run: Run) -> set[object]:
    order = run.order("expired")
    run.put(payments=[*run.final.payments, PaymentFacts(order.order_id, "late", "paid", order.amount)])
    return {order.order_id}


def sell_for_nothing(run: Run) -> set[object]:
    order = run.order()
    run.put(payments=[p for p in run.final.payments if p.order_id != order.order_id], reports=None)
    return {order.order_id}


def sell_for_less(run: Run) -> set[object]:
    order = run.order()
    run.put(payments=[replace(p, amount=p.amount - 1) if p.order_id == order.order_id else p
                      for p in run.final.payments], reports=None)  # fmt: skip
    return {order.order_id}


def never_return_what_was_sold(run: Run) -> set[object]:
    """Its message is delivered with its outcome, and neither journal nor store know of it."""
    [reading] = run.final.readings
    items = {o.order_id: o.items for o in run.final.orders}
    done = next(d for d in run.final.deliveries if d.outcome == "returned" and d.order_id in items
                and all(reading.left[sku] >= n for sku, n in items[d.order_id]))  # fmt: skip
    gone = [m for m in run.final.campaign.moves if m.kind == "return" and f".{done.order_id}." in m.move_id]
    left, allocation = dict(reading.left), dict(reading.allocation)
    for move in gone:
        left[move.sku] -= move.units
        allocation[move.sku] -= move.units
    moves = [m for m in run.final.campaign.moves if m not in gone]
    run.put(campaign=replace(run.final.campaign, moves=moves))
    run.put(readings=[replace(reading, left=left, allocation=allocation)])
    return {done.order_id}


def return_what_nobody_gave_back(run: Run) -> set[object]:
    order = run.order()
    [reading] = run.final.readings
    sku = order.items[0][0]
    more = Move(f"return.{order.order_id}.9.{sku}", sku, "return", 1, 0)
    left, allocation = dict(reading.left), dict(reading.allocation)
    left[sku] += 1
    allocation[sku] += 1
    run.put(campaign=replace(run.final.campaign, moves=[*run.final.campaign.moves, more]))
    run.put(readings=[replace(reading, left=left, allocation=allocation)])
    return {order.order_id}


def keep_the_units_of_a_cancelled_order(run: Run) -> set[object]:
    """All is delivered, and the hold is there as if nothing had been: sums of the store are right among themselves."""
    order = run.order("cancelled")
    [reading] = run.final.readings
    held, left = dict(reading.held), dict(reading.left)
    for sku, units in order.items:
        held[sku] = held.get(sku, 0) + units
        left[sku] -= units
    ids = [*(reading.hold_ids or []), order.order_id]
    run.put(readings=[replace(reading, held=held, left=left, holds=reading.holds + 1, hold_ids=ids)])
    return {order.order_id}


def swap_a_hold(run: Run) -> set[object]:
    """As many holds as there should be, one of them of an order that ended."""
    order = run.order()
    [reading] = run.final.readings
    run.put(readings=[replace(reading, hold_ids=[*(reading.hold_ids or [])[1:], order.order_id])])
    return {order.order_id}


def hold_for_nobody(run: Run) -> set[object]:
    [reading] = run.final.readings
    run.put(readings=[replace(reading, hold_ids=[*(reading.hold_ids or []), "ghost"])])
    return {"ghost"}


def refuse_below_the_limit(run: Run) -> set[object]:
    ask = Invoke(run.history.end_ns - 1000, 0, "order", "app", "first", "x", "new", "", "", (("a", 1),))
    return {run.add(ask, Fail(run.history.end_ns, 0, 409, "over_limit"))}


def saw_of(run: Run, topic: str) -> PartnerSaw:
    return next(p for p in run.final.partners or [] if p.topic == topic)


def partner_pays_back_another_sum(run: Run) -> set[object]:
    saw = saw_of(run, "refund")
    run.put(partners=[replace(p, amount=p.amount + 1) if p is saw else p for p in run.final.partners or []])
    return {saw.order_id}


def partner_pays_back_under_two_ids(run: Run) -> set[object]:
    saw = saw_of(run, "refund")
    run.put(partners=[*(run.final.partners or []), replace(saw, message_id="again")])
    return {saw.order_id}


def partner_pays_back_of_itself(run: Run) -> set[object]:
    order = run.order()
    saw = PartnerSaw(order.order_id, 0, "refund", "x", 1, 1, order.amount, "ref_97")
    run.put(partners=[*(run.final.partners or []), saw])
    return {order.order_id}


def partner_never_pays_back(run: Run) -> set[object]:
    saw = saw_of(run, "refund")
    run.put(partners=[replace(p, effects=0) if p is saw else p for p in run.final.partners or []])
    return {saw.order_id}


def sum_changes_on_the_way(run: Run) -> set[object]:
    saw = saw_of(run, "payment")
    run.put(partners=[replace(p, others=1) if p is saw else p for p in run.final.partners or []])
    return {saw.order_id}


def act_for_nobody(run: Run) -> set[object]:
    run.put(partners=[*(run.final.partners or []), replace(saw_of(run, "payment"), order_id="ghost")])
    return {"ghost"}


def act_unasked(run: Run) -> set[object]:
    """A partner acted for an order that expired, and the ledger says that it sent it."""
    order = run.order("expired")
    saw = PartnerSaw(order.order_id, 2, "bill", "y", 1, 1)
    run.put(partners=[*(run.final.partners or []), saw])
    return {order.order_id}


def forget_a_report(run: Run) -> set[object]:
    order = run.order()
    report = PartnerReport(order.order_id, "payment", "paid", "unheard", order.amount, 1)
    run.put(reports=[*(run.final.reports or []), report])
    return {order.order_id}


def forget_what_the_warehouse_said(run: Run) -> set[object]:
    order = run.order("expired")
    run.put(reports=[*(run.final.reports or []), PartnerReport(order.order_id, "warehouse", "recalled", "r", 0, 1)])
    return {order.order_id}


def send_two_parcels(run: Run) -> set[object]:
    report = next(r for r in run.final.reports or [] if r.action == "ship")
    run.put(reports=[*(run.final.reports or []), replace(report, number="another")])
    return {report.order_id}


def ship_only_in_words(run: Run) -> set[object]:
    report = next(r for r in run.final.reports or [] if r.action == "ship" and r.taken)
    run.put(reports=[r for r in run.final.reports or [] if r is not report])
    return {report.order_id}


def forget(run: Run, order: OrderFacts, beyond: int, state: str) -> OrderFacts:
    """The order stands where it was at a version, and nothing later was ever sent."""

    def kept(some: "list[Any]") -> "list[Any]":
        return [x for x in some if x.order_id != order.order_id or x.version <= beyond]

    run.change(order, events=order.events[:beyond], version=beyond, state=state)
    run.put(deliveries=kept(run.final.deliveries), partners=kept(run.final.partners or []))
    run.put(reports=[r for r in run.final.reports or [] if r.order_id != order.order_id or r.action == "paid"])
    return order


def put_back_hold(run: Run, order: OrderFacts, source: str) -> None:
    [reading] = run.final.readings
    held, other = dict(reading.held), dict(getattr(reading, source))
    for sku, units in order.items:
        held[sku] = held.get(sku, 0) + units
        other[sku] -= units
    ids = [*(reading.hold_ids or []), order.order_id]
    run.put(readings=[replace(reading, held=held, holds=reading.holds + 1, hold_ids=ids, **{source: other})])


def never_expire(run: Run) -> set[object]:
    run.put(campaign=replace(run.final.campaign, limits=LimitsOf(), limits_kept=False))
    [reading] = run.final.readings
    seen = {op.answer.order_id for op in run.history.operations if isinstance(op.answer, Ok)}
    *_, order = (o for o in run.final.orders if o.state == "expired" and o.order_id in seen
                 and all(reading.left[sku] >= n for sku, n in o.items))  # fmt: skip
    forget(run, order, 1, "accepted")
    put_back_hold(run, order, "left")
    return {order.order_id}


def never_allocate(run: Run) -> set[object]:
    order = run.order()
    forget(run, order, 2, "allocating")
    put_back_hold(run, order, "sold")
    return {order.order_id}


def say_allocated_and_take_nothing(run: Run) -> set[object]:
    [reading] = run.final.readings
    sku = run.order().items[0][0]
    left, sold = dict(reading.left), dict(reading.sold)
    left[sku] += 1
    sold[sku] -= 1
    run.put(readings=[replace(reading, left=left, sold=sold)])
    return set()


def sold_out_at_payment(run: Run) -> OrderFacts:
    return next(o for o in run.final.orders if any(e.action == "too_late" for e in o.events))


def keep_the_money_of_one_without_units(run: Run) -> set[object]:
    order = sold_out_at_payment(run)
    run.put(refunds=[r for r in run.final.refunds if r.order_id != order.order_id], partners=None, reports=None)
    return {order.order_id}


def keep_the_hold_of_one_without_units(run: Run) -> set[object]:
    order = sold_out_at_payment(run)
    [reading] = run.final.readings
    ids = [*(reading.hold_ids or []), order.order_id]
    run.put(readings=[replace(reading, holds=reading.holds + 1, hold_ids=ids)])
    return {order.order_id}


def drop_all_of(topic: str) -> Spoil:
    """One message of the topic is nowhere: no delivery, no partner saw it."""

    def spoil(run: Run) -> set[object]:
        gone = next(d for d in run.final.deliveries if d.topic == topic)
        place = (gone.order_id, gone.version, gone.topic)
        run.put(deliveries=[d for d in run.final.deliveries if d is not gone])
        run.put(partners=[p for p in run.final.partners or [] if (p.order_id, p.version, p.topic) != place])
        return {gone.order_id}

    spoil.__name__ = f"drop_{topic}"
    return spoil


def act_twice_for(topic: str) -> Spoil:
    def spoil(run: Run) -> set[object]:
        saw = saw_of(run, topic)
        run.put(partners=[replace(p, effects=2) if p is saw else p for p in run.final.partners or []])
        return {saw.order_id}

    spoil.__name__ = f"{topic}_twice"
    return spoil


def forget_what_billing_said(run: Run) -> set[object]:
    order = run.order("expired")
    run.put(reports=[*(run.final.reports or []), PartnerReport(order.order_id, "billing", "bill", "z", 0, 1)])
    return {order.order_id}


SPOILED_MORE: list[tuple[int, Spoil]] = [
    (4, give_two_orders_for_one_key),
    (5, keep_the_units_of_a_cancelled_order),
    (5, swap_a_hold),
    (5, hold_for_nobody),
    (6, refuse_below_the_limit),
    (9, pay_back_twice),
    (9, forget_to_pay_back),
    (9, pay_back_less),
    (9, pay_back_unasked),
    (9, keep_the_money_of_an_expired_order),
    (9, sell_for_nothing),
    (9, sell_for_less),
    (9, never_return_what_was_sold),
    (9, return_what_nobody_gave_back),
    (10, partner_pays_back_another_sum),
    (10, partner_pays_back_under_two_ids),
    (10, partner_pays_back_of_itself),
    (10, partner_never_pays_back),
    (10, sum_changes_on_the_way),
    (10, act_for_nobody),
    (10, act_unasked),
    (10, forget_a_report),
    (10, forget_what_the_warehouse_said),
    (10, send_two_parcels),
    (10, ship_only_in_words),
    (12, never_expire),
]  # fmt: skip

# Of the other order types: what only they have.
AT_PAYMENT, VIRTUAL = "reserve_at_payment", "virtual"
SPOILED_FLOWS: list[tuple[str, int, Spoil]] = [
    (AT_PAYMENT, 1, sell_before_the_restock), (AT_PAYMENT, 5, say_allocated_and_take_nothing),
    (AT_PAYMENT, 5, keep_the_hold_of_one_without_units), (AT_PAYMENT, 9, keep_the_money_of_one_without_units),
    (AT_PAYMENT, 12, never_allocate), (AT_PAYMENT, 9, return_what_nobody_gave_back),
    (AT_PAYMENT, 10, drop_all_of("allocate")), (AT_PAYMENT, 9, find_no_hold),
    (VIRTUAL, 10, forget_what_billing_said), (VIRTUAL, 9, never_return_what_was_sold), (VIRTUAL, 9, forget_to_pay_back),
    *((VIRTUAL, 10, drop_all_of(topic)) for topic in ("provision", "bill", "unprovision", "unbill", "restock")),
    *((VIRTUAL, 10, act_twice_for(topic)) for topic in ("provision", "bill", "unprovision", "unbill", "refund")),
]  # fmt: skip
