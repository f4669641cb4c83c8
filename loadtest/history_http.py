"""A run judged by what HTTP tells alone: the history, the orders as the ledger lists them, and the server's own audit.

`rushgate check` judges more, but must see the store and the ledger. This needs no more than the admin token, so any
machine can do it. It judges soundly: a run that was right is never called wrong. Orders are listed page by page while
time goes on, so only those count as out that nothing has happened to and whose time to pay is not over; and what other
clients bought counts as bought before this run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from msgspec import Struct

from loadtest.history import Fail, History, Ok, Operation, summed
from loadtest.history_check_facts import Bounds, Facts, Violation, counted
from loadtest.history_check_faults import judge_refusals
from loadtest.history_check_orders import judge_keys
from loadtest.history_final import CampaignFacts, Final, FlowFacts
from loadtest.server_facts import Audit, Seen

SHOWN = 20  # violations of one name that are told; all are counted


class HttpFacts(Struct, frozen=True):
    """What the server told. None: nobody asked, or could.

    `prefix` begins the name of every buyer of this run. `listed_at`: when the list was complete, by the server's clock.
    """

    prefix: str
    orders: Sequence[Seen] | None = None
    listed_at: datetime | None = None
    before: Audit | None = None
    after: Audit | None = None
    limits: Mapping[str, int | None] = {}


class HttpVerdict(Struct, frozen=True):
    """The violations, at most 20 of a name, how many there were of each name, and what could not be judged."""

    violations: list[Violation]
    counts: dict[str, int]
    unjudged: list[str]


def judge(history: History, facts: HttpFacts, bounds: Bounds | None = None) -> HttpVerdict:
    """The verdict on a run."""
    told: list[Violation] = []
    counts: Counter[str] = Counter()
    for violation in _violations(history, facts, bounds or Bounds()):
        counts[violation.what] += 1
        if counts[violation.what] <= SHOWN:
            told.append(violation)
    return HttpVerdict(told, dict(counts), list(_unjudged(history, facts)))


def _unjudged(history: History, facts: HttpFacts) -> Iterator[str]:
    if facts.after is None:
        yield "1, 2, 5: without the server's audit its balance is not judged"
    elif facts.after.in_flight:
        yield f"2: {facts.after.in_flight} orders were still on their way to the ledger"
    if facts.orders is None:
        yield "2, 3, 6, 7, 9: without the list of orders none of them is looked for in the ledger"
    elif not history.whole:
        yield "3: a part of the history is missing or was broken off: orders of this run may be unknown to it"


def _violations(history: History, facts: HttpFacts, bounds: Bounds) -> Iterator[Violation]:
    # Without readings and orders these two judges look at the history alone.
    campaign = CampaignFacts(history.header.campaign, {})
    alone = Facts(history, Final(campaign, FlowFacts("", (), []), [], []), bounds)
    yield from judge_keys(alone)
    yield from judge_refusals(alone)
    if facts.after is not None:
        yield from _audited(facts.after)
    if facts.orders is None:
        return
    orders = {order.order_id: order for order in facts.orders}
    yield from _kept(history, orders, facts)
    yield from _asked(history, orders, facts)
    yield from _recorded(history, orders)
    still = [o for o in orders.values() if o.version == 1 and facts.listed_at and o.pay_by > facts.listed_at]
    yield from _oversold(still, facts)
    yield from _limits(still, facts)
    yield from _sold_out(history, facts)


def _audited(audit: Audit) -> Iterator[Violation]:
    """What the server says of itself."""
    if audit.oversold:
        yield Violation(1, "oversold", [], [], f"the server's audit: {audit.oversold} units oversold")
    if audit.lost:
        yield Violation(2, "lost", [], [], f"the server's audit: {audit.lost} orders lost")
    if audit.phantom:
        yield Violation(3, "phantom", [], [], f"the server's audit: {audit.phantom} orders that nobody was promised")
    if audit.duplicated:
        yield Violation(2, "not_once", [], [], f"the server's audit: {audit.duplicated} orders more than once")
    if audit.over_limit:
        yield Violation(6, "over_limit", [], [], f"the server's audit: {audit.over_limit} are over a limit")
    for sku in audit.skus:
        if sku.left + sku.held + sku.sold != sku.allocation or min(sku.left, sku.held, sku.sold) < 0:
            words = f"{sku.sku}: {sku.allocation} units; left {sku.left}, held {sku.held}, sold {sku.sold}"
            yield Violation(5, "store_balance", [], [], f"the server's audit: {words}")
    if not audit.ok:
        yield Violation(
            5, "audit", [], [], f"the server's audit is not ok: {'; '.join(audit.findings[:5]) or 'no word'}"
        )


def _kept(history: History, orders: Mapping[str, Seen], facts: HttpFacts) -> Iterator[Violation]:
    """2: every yes is in the ledger. As many as were set aside, or are on their way, may be missing."""
    missing: dict[str, Operation] = {}
    for op in history.operations:
        if op.ask.op == "order" and isinstance(op.answer, Ok) and op.answer.order_id not in orders:
            missing.setdefault(op.answer.order_id, op)
    excused = facts.after.in_flight + facts.after.dead_lettered if facts.after is not None else 0
    if len(missing) > excused:
        for order_id, op in missing.items():
            words = f"order {order_id} was accepted, and the ledger does not list it"
            yield Violation(2, "lost", [op.ask.n], [order_id], words)


def _asked(history: History, orders: Mapping[str, Seen], facts: HttpFacts) -> Iterator[Violation]:
    """3: every order of a buyer of this run was asked for, with these lines."""
    yeses = {op.answer.order_id: op for op in history.operations if op.ask.op == "order" and isinstance(op.answer, Ok)}
    open_ones: dict[str, list[Operation]] = defaultdict(list)
    for op in history.operations:
        if op.ask.op == "order" and op.result == "unknown":
            open_ones[op.ask.buyer].append(op)
    for order in orders.values():
        items = summed([(line.sku, line.quantity) for line in order.items])
        known = yeses.get(order.order_id)
        if known is not None:
            if known.ask.items != items or known.ask.buyer != order.buyer_id:
                words = f"order {order.order_id} is not what {known.ask.key} asked for"
                yield Violation(3, "altered", [known.ask.n], [order.order_id], words)
            continue
        ours = order.buyer_id.startswith(facts.prefix) and history.whole
        if ours and not any(op.ask.items == items for op in open_ones[order.buyer_id]):
            words = f"order {order.order_id} of {order.buyer_id}: nobody got a yes for it, or waits for an answer"
            yield Violation(3, "phantom", [], [order.order_id], words)


def _recorded(history: History, orders: Mapping[str, Seen]) -> Iterator[Violation]:
    """9: a cancel or a payment that got a yes has moved its order."""
    for op in history.operations:
        if op.ask.op not in ("cancel", "pay") or not isinstance(op.answer, Ok):
            continue
        order = orders.get(op.ask.order_id)
        if order is not None and order.version == 1:
            words = f"order {op.ask.order_id}: {op.ask.op} got a yes, and it is {order.state} as on its first day"
            yield Violation(9, "yes_forgotten", [op.ask.n], [op.ask.order_id], words)


def _oversold(still: Sequence[Seen], facts: HttpFacts) -> Iterator[Violation]:
    """1: the orders that surely have their units have no more than there are."""
    if facts.after is None:
        return
    out = counted((line.sku, line.quantity) for order in still for line in order.items)
    for sku, units in facts.after.allocation.items():
        if out[sku] > units:
            words = f"{sku}: {out[sku]} units are held by orders that wait, and {units} were put on sale"
            yield Violation(1, "oversold", [], [], words)


def _limits(still: Sequence[Seen], facts: HttpFacts) -> Iterator[Violation]:
    """6: no buyer has more than a limit allows, in orders that surely count."""
    for kind in ("buyer", "buyer_sku"):
        most = facts.limits.get(kind)
        if most is None:
            continue
        held: Counter[str] = Counter()
        theirs: dict[str, list[str]] = defaultdict(list)
        for order in still:
            for line in order.items:
                who = order.buyer_id if kind == "buyer" else f"{order.buyer_id} {line.sku}"
                held[who] += line.quantity
                theirs[who].append(order.order_id)
        for who, units in held.items():
            if units > most:
                words = f"{kind} {who}: {units} units, the limit is {most}"
                yield Violation(6, f"over_limit_{kind}", [], sorted(set(theirs[who])), words)


def _sold_out(history: History, facts: HttpFacts) -> Iterator[Violation]:
    """7: a `sold_out` came only when too few can have been left, whoever had bought what before and had it still.

    Not judged where units were added or withdrawn during the run.
    """
    if facts.before is None or facts.after is None or facts.orders is None or not history.whole:
        return
    if facts.before.allocation != facts.after.allocation or facts.after.in_flight or facts.after.dead_lettered:
        return
    # What anybody else has bought: from the beginning. What we asked for and was not refused: from the asking.
    others = counted(
        (line.sku, line.quantity)
        for order in facts.orders
        if not order.buyer_id.startswith(facts.prefix)
        for line in order.items
    )
    moments: list[tuple[int, int, Operation]] = []
    for op in history.operations:
        if op.ask.op != "order":
            continue
        if not isinstance(op.answer, Fail):
            moments.append((op.ask.at_ns, 0, op))
        elif op.answer.code == "sold_out":
            moments.append((op.answer.at_ns, 1, op))
    taken, counted_keys = others, set[str]()
    for _, answered, op in sorted(moments, key=lambda m: m[:2]):
        if not answered:
            if op.ask.key not in counted_keys:
                counted_keys.add(op.ask.key)
                taken.update(dict(op.ask.items))
            continue
        assert op.answer is not None  # noqa: S101 - for the type checker
        wanted = [(sku, units) for sku, units in op.ask.items if op.answer.sku in ("", sku)]
        if all(taken[sku] + units <= facts.after.allocation.get(sku, 0) for sku, units in wanted):
            sku, units = wanted[0]
            words = f"operation {op.ask.n}: {units} of {sku} were sold out when {taken[sku]} can have been taken"
            yield Violation(7, "sold_out_too_early", [op.ask.n], [], words)
