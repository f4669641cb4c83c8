"""Invariant 10 as the partners have it: what came to them, what they did, and what they told us, against the ledger."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from loadtest.history_check_facts import Facts, Violation
from loadtest.history_final import STORE_TOPICS, Delivery, PartnerSaw

Known = tuple[str, int, str]  # order, version, topic


def judge_partners(facts: Facts) -> Iterator[Violation]:
    """10: each message came under one id and had one effect, none came unasked, and no word of a partner is lost."""
    if facts.final.partners is not None:
        yield from _messages(facts, facts.final.partners)
        yield from _money(facts, facts.final.partners)
    yield from _reports(facts)


def _messages(facts: Facts, partners: list[PartnerSaw]) -> Iterator[Violation]:
    delivered: dict[Known, Delivery] = {(d.order_id, d.version, d.topic): d for d in facts.final.deliveries}
    under_way = {(m.order_id, m.version, m.topic) for m in (*facts.final.outbox, *facts.final.dead_messages)}
    asked = {
        (order.order_id, event.version, topic)
        for order in facts.orders.values()
        for event in order.events
        for topic in facts.implied(event)
    }
    seen: dict[Known, list[PartnerSaw]] = defaultdict(list)
    for saw in partners:
        seen[saw.order_id, saw.version, saw.topic].append(saw)
    for message in sorted({*seen, *delivered}):
        order_id, version, topic = message
        if topic in STORE_TOPICS:
            continue
        saws = seen.get(message, [])
        effects, ids = sum(s.effects for s in saws), {s.message_id for s in saws}
        fault = ""
        if order_id not in facts.orders:
            told = order_id in facts.ok_by_order  # judged by 2
            fault = "came to a partner, and the ledger has no such order" if saws and not told else ""
        elif len(ids) > 1:
            fault = f"came under {len(ids)} ids"
        elif effects > 1:
            fault = f"had {effects} effects"
        elif message in delivered and not any(s.received for s in saws):
            fault = "is delivered by the ledger, and its partner never saw it"
        elif message in delivered and not effects and topic not in facts.bounds.idle_topics:
            fault = "had no effect"
        elif saws and message not in delivered and message not in under_way:
            fault = "came to a partner, and the ledger has neither sent it nor will"
        elif saws and message not in asked and order_id not in facts.repaired:
            fault = "came to a partner, and no event asked for it"
        elif any(s.others for s in saws):
            fault = "spoke of one sum first and of another one later"
        if fault:
            known = facts.orders.get(order_id)
            numbers = facts.operations_of([known]) if known is not None else []
            words = f"order {order_id}: {topic} of version {version} {fault}"
            yield Violation(10, "partner", numbers, [order_id], words)


def _money(facts: Facts, partners: list[PartnerSaw]) -> Iterator[Violation]:
    """Each refund at the payment partner is one of the ledger, of that sum, and each is paid back at most once."""
    booked = {(r.order_id, r.refund_no): r for r in facts.final.refunds}
    acted: dict[tuple[str, str], list[PartnerSaw]] = defaultdict(list)
    for saw in partners:
        order = facts.orders.get(saw.order_id)
        if order is None or (not saw.number and saw.topic != "payment"):
            continue
        fault = ""
        if saw.topic == "payment" and saw.amount not in (0, order.amount):
            fault = f"{saw.amount} was asked for, and it costs {order.amount}"
        elif saw.topic == "refund":
            refund = booked.get((saw.order_id, saw.number))
            acted[saw.order_id, saw.number] += [saw] * saw.effects
            if refund is None or refund.state not in ("approved", "done"):
                fault = f"the refund {saw.number} came to the payment centre, and is not booked"
            elif refund.amount != saw.amount:
                fault = f"the refund {saw.number} of {refund.amount} came to the payment centre as {saw.amount}"
            elif len(acted[saw.order_id, saw.number]) > 1:
                fault = f"the refund {saw.number} was paid back {len(acted[saw.order_id, saw.number])} times"
        if fault:
            words = f"order {saw.order_id}: {fault}"
            yield Violation(10, "partner_money", facts.operations_of([order]), [saw.order_id], words)
    for (order_id, number), refund in booked.items():
        if refund.state == "done" and order_id in facts.orders and not acted[order_id, number]:
            words = f"order {order_id}: the refund {number} is done, and the payment centre never paid it back"
            yield Violation(10, "partner_money", [], [order_id], words)


def _reports(facts: Facts) -> Iterator[Violation]:
    """A partner's report that got a yes is on record."""
    paid = {(p.order_id, p.payment_no, p.status, p.amount) for p in facts.final.payments}
    done = {(r.order_id, r.refund_no, r.amount) for r in facts.final.refunds if r.state == "done"}
    parcels: dict[str, set[str]] = defaultdict(set)
    for report in facts.final.reports or ():
        order = facts.orders.get(report.order_id)
        if report.action == "ship":
            parcels[report.order_id].add(report.number)
        if not report.taken or (order is None and report.order_id in facts.ok_by_order):  # lost: judged by 2
            continue
        if order is None:
            fault = "got a yes, and the ledger has no such order"
        elif report.action in ("paid", "failed"):
            known = (report.order_id, report.number, report.action, report.amount) in paid
            fault = "" if known else f"of {report.amount} got a yes, and is not on record"
        elif report.action == "refunded":
            known = (report.order_id, report.number, report.amount) in done
            fault = "" if known else f"of {report.amount} got a yes, and is not on record"
        else:
            fault = "" if any(e.action in _names(report.action) for e in order.events) else "got a yes without an event"
        if fault:
            words = f"order {report.order_id}: the report {report.action} {report.number} {fault}"
            yield Violation(10, "report_forgotten", [], [report.order_id], words)
    if facts.final.reports is not None and facts.final.partners is not None:
        yield from _parcels(facts, parcels)


def _parcels(facts: Facts, parcels: dict[str, set[str]]) -> Iterator[Violation]:
    """At most a parcel for each warehouse message that was acted upon; at least one for each order that was shipped."""
    wanted: Counter[str] = Counter()
    for saw in facts.final.partners or ():
        wanted[saw.order_id] += saw.effects if saw.topic == "warehouse" else 0
    for order_id, numbers in parcels.items():
        if len(numbers) > wanted[order_id]:
            words = f"order {order_id}: {len(numbers)} parcels left, {wanted[order_id]} were asked for"
            yield Violation(10, "parcels", [], [order_id], words)
    for order in facts.orders.values():
        told = any(e.action == "ship" and e.actor.startswith("warehouse") for e in order.events)
        if told and not parcels[order.order_id]:
            words = f"order {order.order_id}: the warehouse is said to have shipped it, and never did"
            yield Violation(10, "parcels", facts.operations_of([order]), [order.order_id], words)


def _names(action: str) -> tuple[str, ...]:
    """What events may be called that a report of this name makes: partners say `provision`, flows `provisioned`."""
    return action, f"{action}ed", f"{action}d"
