"""Invariants 2, 3 and 4: every yes is an order, every order was asked for, and one key is one order."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from loadtest.history import Fail, Ok, Operation, summed
from loadtest.history_check_facts import NEVER, Facts, Violation, first_ok_ns
from loadtest.history_check_loss import gaps
from loadtest.history_final import OrderFacts

REFUSALS = frozenset({"sold_out", "over_limit", "not_open", "closed", "paused"})  # verdicts on a key, if it is new
GAPS_SHOWN = 5


def judge_kept(facts: Facts) -> Iterator[Violation]:
    """2: every yes is in the ledger or set aside, exactly once; the numbers of a shard have no gap."""
    final = facts.final
    times = Counter(o.order_id for o in final.orders)
    aside = Counter(d.order_id for d in final.dead_letters if d.order_id is not None)
    for order_id in facts.lost:
        numbers = [op.ask.n for op in facts.ok_by_order[order_id][:1]]
        yield Violation(2, "lost", numbers, [order_id], f"order {order_id} was accepted and is nowhere")
    for order_id in sorted(i for i in {*times, *aside} if times[i] + aside[i] > 1):
        words = f"order {order_id} is {times[order_id]} times in the ledger and {aside[order_id]} times set aside"
        numbers = [op.ask.n for op in facts.ok_by_order.get(order_id, ())[:1]]
        yield Violation(2, "not_once", numbers, [order_id], words)
    yield from _gaps(facts)
    yield from _untold(facts)
    yield from _denied(facts)


def _denied(facts: Facts) -> Iterator[Violation]:
    """`unknown_order` for an order that was accepted before, unless the store was lost and not rebuilt just then: but
    not if the ledger surely had the order before, for the ledger had lost nothing."""
    denied = [op for op in facts.history.operations if op.answer is not None and op.answer.code == "unknown_order"]
    known_ns = _known_ns(facts, {op.ask.order_id for op in denied})
    for op in denied:
        if op.answer is None or op.ask.order_id not in facts.orders:
            continue
        if first_ok_ns(facts.ok_by_order.get(op.ask.order_id, ())) >= op.ask.at_ns:
            continue
        if not any(
            loss.begin_ns <= op.answer.at_ns
            and op.ask.at_ns <= loss.back_ns
            and known_ns[op.ask.order_id] >= min(loss.begin_ns, op.ask.at_ns)
            for loss in facts.losses
        ):
            words = f"order {op.ask.order_id} was accepted, and {op.ask.op} was told that there is no such order"
            yield Violation(2, "denied", [op.ask.n], [op.ask.order_id], words)


def _known_ns(facts: Facts, order_ids: set[str]) -> dict[str, int]:
    """By when the ledger surely had each of these orders; the time of its first event is the store's, and no proof."""
    known_ns = dict.fromkeys(order_ids, NEVER)
    proofs = [(d.order_id, facts.history.mono_ns(d.at_ns) + facts.tolerance_ns) for d in facts.final.deliveries]
    for order_id in order_ids & facts.orders.keys():
        later = (facts.history.mono_ns(e.at_ns) for e in facts.orders[order_id].events if e.version > 1)
        proofs += [(order_id, at_ns + facts.tolerance_ns) for at_ns in later]
    for order_id, at_ns in proofs:
        if order_id in known_ns:
            known_ns[order_id] = min(at_ns, known_ns[order_id])
    return known_ns


def _untold(facts: Facts) -> Iterator[Violation]:
    """What a lost store cost is in the gaps of its rebuilds, as far as the gateways that had answered it lived on."""
    heard = {i: lost for i, lost in facts.excused.items() if lost.heard}
    # A gap is of all numbers up to the base, so the last one of a shard has those of earlier losses in it.
    gap = sum(r.gap for r in gaps(facts.final, facts.losses).values())
    if gap < len(heard):
        words = f"{len(heard)} orders that living gateways had answered went with the store, the rebuilds tell of {gap}"
        numbers = [lost.first.ask.n for lost in heard.values()]
        yield Violation(2, "gap_untold", sorted(numbers), sorted(heard), words)


def _gaps(facts: Facts) -> Iterator[Violation]:
    final = facts.final
    owners: dict[tuple[int, int], dict[int, str]] = defaultdict(dict)
    for order in final.orders:
        known = owners[order.shard, order.epoch].setdefault(order.seq, order.order_id)
        if known != order.order_id:
            words = f"shard {order.shard}: orders {known} and {order.order_id} both have number {order.seq}"
            yield Violation(2, "number_twice", [], [known, order.order_id], words)
    unread: Counter[tuple[int, int]] = Counter()
    for dead in final.dead_letters:
        if dead.seq is None:
            unread[dead.shard, dead.epoch] += 1
        else:
            owners[dead.shard, dead.epoch].setdefault(dead.seq, dead.order_id or "")
    last = {(r.shard, r.epoch): r.seq for r in final.readings}
    allowed = gaps(final, facts.losses)
    left = {shard: r.gap for shard, r in allowed.items()}  # numbers that a lost store took along
    for place in sorted({*owners, *last}):
        (shard, epoch), have = place, owners[place]
        if unread[place]:
            continue  # an entry that cannot be read may have had any of them
        first, end = facts.bases.get(place, 0) + 1, max(max(have, default=0), last.get(place, 0))
        if shard in allowed and epoch < allowed[shard].epoch:
            end = min(end, allowed[shard].base or 0)  # the numbers above it went with the store, nobody knows how many
        missing = end - first + 1 - sum(first <= n <= end for n in have)
        if missing > 0 and shard in allowed and epoch < allowed[shard].epoch:
            lost = min(missing, left[shard])
            missing, left[shard] = missing - lost, left[shard] - lost
        if missing > 0 and not facts.lost:  # a lost order is the better word for it
            missed = [n for n in range(first, end + 1) if n not in have][:GAPS_SHOWN]
            words = f"shard {shard}, epoch {epoch}: {missing} of {end} numbers are missing, first of all {missed}"
            yield Violation(2, "gap", [], [], words)
        elif place in last and max(have, default=0) > last[place]:
            words = f"shard {shard}: the ledger has number {max(have)}, the store has only come to {last[place]}"
            yield Violation(2, "beyond", [], [have[max(have)]], words)


def judge_asked(facts: Facts) -> Iterator[Violation]:
    """3: behind every order is an attempt that asked for just this, and was not surely refused."""
    for order in facts.orders.values():
        attempts = facts.by_key.get((order.channel, order.key), [])
        if not attempts:
            if facts.history.whole:
                words = f"order {order.order_id}: nobody ever sent {order.channel} {order.key}"
                yield Violation(3, "phantom", [], [order.order_id], words)
            continue
        alike = [op for op in attempts if _asks_for(op, order)]
        if not alike:
            words = f"order {order.order_id} is not what {order.channel} {order.key} asked for"
            yield Violation(3, "altered", [op.ask.n for op in attempts[:1]], [order.order_id], words)
        elif all(isinstance(op.answer, Fail) for op in alike) and facts.history.whole:
            words = f"order {order.order_id}: every attempt of {order.channel} {order.key} was refused"
            yield Violation(3, "refused_and_taken", [op.ask.n for op in alike], [order.order_id], words)


def _asks_for(op: Operation, order: OrderFacts) -> bool:
    ask = op.ask
    given = ask.device in ("", order.device) and ask.ip in ("", order.ip)
    return given and ask.buyer == order.buyer and ask.items == summed(order.items)


def judge_keys(facts: Facts) -> Iterator[Violation]:
    """4: one key, one outcome, once it is accepted."""
    owner: dict[str, Operation] = {}
    for ops in facts.by_key.values():
        taken = sorted((op for op in ops if isinstance(op.answer, Ok)), key=lambda op: op.ask.at_ns)
        for op in taken:
            assert op.answer is not None  # noqa: S101 - for the type checker
            order_id = op.answer.order_id
            other = owner.setdefault(order_id, op).ask
            if (other.channel, other.key) != (op.ask.channel, op.ask.key):
                words = f"keys {other.key} and {op.ask.key} both got order {order_id}"
                yield Violation(4, "shared_order", [other.n, op.ask.n], [order_id], words)
        if len(ops) > 1:
            yield from _within(ops, taken)
        elif ops[0].answer is not None and ops[0].answer.code == "key_reused":
            yield from _reused(ops[0], ops)
    yield from _twice(facts)


def _within(ops: list[Operation], taken: list[Operation]) -> Iterator[Violation]:
    """The attempts of one key against each other; at most one contradiction of each kind."""
    ids = {op.answer.order_id: op for op in taken if op.answer is not None}
    key = ops[0].ask.key
    if len(ids) > 1:
        a, b = list(ids.values())[:2]
        yield Violation(4, "two_orders", [a.ask.n, b.ask.n], list(ids)[:2], f"key {key} became {len(ids)} orders")
        return
    bodies = {op.ask.body: op for op in taken}
    if len(bodies) > 1:
        a, b = list(bodies.values())[:2]
        yield Violation(4, "two_bodies", [a.ask.n, b.ask.n], list(ids), f"key {key} was accepted with two bodies")
        return
    fresh = [op for op in taken if op.answer is not None and not op.answer.replayed]
    first_ns = first_ok_ns(taken)
    late = next((op for op in fresh if op.ask.at_ns > first_ns), None)
    if len(fresh) > 1 or late:
        pair = fresh[:2] if len(fresh) > 1 else [taken[0], *fresh]
        words = f"key {key} was accepted again, and not as a replay"
        yield Violation(4, "accepted_twice", [op.ask.n for op in pair], list(ids), words)
    for op in ops:
        if not isinstance(op.answer, Fail):
            continue
        code, same = op.answer.code, op.ask.body in bodies
        if code == "key_reused":
            yield from _reused(op, ops)
        elif taken and code in REFUSALS and op.ask.at_ns > first_ns and (same or code != "sold_out"):
            # With other lines `sold_out` may come from memory, which knows keys by their SKU: documented.
            accepted = min(taken, key=lambda o: o.answer.at_ns if o.answer else 0)
            words = f"key {key} was accepted, then answered {code}"
            yield Violation(4, "refused_after_accepted", [accepted.ask.n, op.ask.n], list(ids), words)
            return


def _reused(op: Operation, ops: list[Operation]) -> Iterator[Violation]:
    """`key_reused` is right only if another body may have been accepted by then."""
    assert op.answer is not None  # noqa: S101 - for the type checker
    for other in ops:
        if other.ask.body == op.ask.body and isinstance(other.answer, Ok):
            words = f"key {op.ask.key} is an order of this very body, and was answered key_reused"
            yield Violation(4, "key_reused_same_body", [other.ask.n, op.ask.n], [other.answer.order_id], words)
            return
    may = (o for o in ops if o.ask.body != op.ask.body and not isinstance(o.answer, Fail))
    if not any(o.ask.at_ns < op.answer.at_ns for o in may):
        words = f"key {op.ask.key} was answered key_reused, and no other body can have been accepted"
        yield Violation(4, "key_reused_for_nothing", [op.ask.n], [], words)


def _twice(facts: Facts) -> Iterator[Violation]:
    """Two orders of the ledger with one key, where no two answers showed it."""
    owners: dict[tuple[str, str], OrderFacts] = {}
    for order in facts.orders.values():
        known = owners.setdefault((order.channel, order.key), order)
        if known is not order:
            seen = {op.answer.order_id for op in facts.by_key.get((order.channel, order.key), ()) if op.answer}
            if not {known.order_id, order.order_id} <= seen:
                words = f"{order.channel} {order.key} is two orders in the ledger"
                yield Violation(4, "two_orders", [], [known.order_id, order.order_id], words)
