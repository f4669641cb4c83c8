"""Invariants 1 and 6 by one sweep line: units that were surely out at once, against what there was, or a limit."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from loadtest.history import History
from loadtest.history_check_facts import MS, NEVER, Facts, Span, Violation, asked_restocks
from loadtest.history_final import OrderFacts

BACK, MORE, TAKEN, FEWER = range(4)  # at one moment in this order: the one that accuses least


class Taking(NamedTuple):
    """Units out from one moment until another."""

    start: int
    end: int
    units: int
    order: OrderFacts


class Excess(NamedTuple):
    """The first moment at which more was out than there was."""

    at_ns: int
    out: int
    most: int
    orders: list[OrderFacts]  # the fewest that exceed it


def first_excess(takings: Iterable[Taking], most: int, changes: Iterable[tuple[int, int]] = ()) -> Excess | None:
    """Where the units out first exceed `most`, which changes by the units of `changes` (moment, units); None: never."""
    line: list[tuple[int, int, int, Taking | None]] = [(t, MORE if n > 0 else FEWER, n, None) for t, n in changes]
    for t in takings:
        if t.start < t.end:
            line.append((t.start, TAKEN, t.units, t))
            if t.end < NEVER:
                line.append((t.end, BACK, -t.units, t))
    line.sort(key=lambda step: step[:2])
    out: dict[int, Taking] = {}
    total = 0
    for at_ns, rank, units, taking in line:
        if taking is None:
            most += units
        else:
            total += units
            if rank == BACK:
                del out[id(taking)]
                continue
            out[id(taking)] = taking
        if total > most and out:
            return Excess(at_ns, total, most, _fewest(list(out.values()), most))
    return None


def _fewest(takings: list[Taking], most: int) -> list[OrderFacts]:
    found, total = [], 0
    for taking in sorted(takings, key=lambda t: -t.units):
        found.append(taking.order)
        total += taking.units
        if total > most:
            break
    return found


def judge_stock(facts: Facts) -> Iterator[Violation]:
    """1: at no moment more units of a SKU are surely out than can have been on sale by then."""
    takings: dict[str, list[Taking]] = defaultdict(list)
    for span in (*facts.spans, *facts.lost_spans):
        for sku, units in span.units.items():
            takings[sku].append(Taking(span.sure_from, span.sure_to, units, span.order))
    changes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    asked = asked_restocks(facts.history.operations)
    for move in facts.final.campaign.moves:
        if move.kind in ("open", "return") or move.state == "refused":
            continue
        if move.units > 0:
            changes[move.sku].append((facts.history.mono_ns(move.at_ns) - facts.tolerance_ns, move.units))
        elif move.state == "applied":
            done_ns = asked[move.move_id][1] if move.move_id in asked else NEVER - 1
            changes[move.sku].append((done_ns, move.units))
    allocation = facts.final.campaign.allocation
    for sku in sorted(takings):
        found = first_excess(takings[sku], allocation.get(sku, 0), changes[sku])
        if found is not None:
            orders = [o.order_id for o in found.orders]
            words = f"{sku}: {found.out} units out {moment(facts.history, found.at_ns)}, {found.most} were on sale"
            yield Violation(1, "oversold", facts.operations_of(found.orders), orders, words)


def judge_limits(facts: Facts) -> Iterator[Violation]:
    """6: at no moment more units are surely counted for a buyer, IP or device than the loosest limit."""
    limits, spread = facts.final.campaign.limits, facts.final.campaign.spread
    # Of IP and device each shard counts its own, so that a campaign lets `spread` times the limit through at most.
    kinds = (
        ("buyer", limits.buyer),
        ("buyer_sku", limits.buyer_sku),
        ("ip", None if limits.ip is None else limits.ip * spread),
        ("device", None if limits.device is None else limits.device * spread),
    )
    for kind, most in kinds:
        if most is None:
            continue
        takings: dict[str, list[Taking]] = defaultdict(list)
        for span in (*facts.spans, *facts.lost_spans):
            for who, units in _counted_for(kind, span):
                takings[who].append(Taking(span.limits_from, span.sure_to, units, span.order))
        for who, theirs in takings.items():
            if sum(t.units for t in theirs) <= most:
                continue
            found = first_excess(theirs, most)
            if found is not None:
                orders = [o.order_id for o in found.orders]
                words = f"{kind} {who}: {found.out} units {moment(facts.history, found.at_ns)}, the limit is {most}"
                yield Violation(6, f"over_limit_{kind}", facts.operations_of(found.orders), orders, words)


def _counted_for(kind: str, span: Span) -> list[tuple[str, int]]:
    order = span.order
    if kind == "buyer_sku":
        return [(f"{order.buyer} {sku}", units) for sku, units in span.units.items()]
    who = {"buyer": order.buyer, "ip": order.ip, "device": order.device}[kind]
    return [(who, sum(span.units.values()))] if who else []


def moment(history: History, at_ns: int) -> str:
    """A moment in words, since the history began."""
    return f"{(at_ns - history.header.started_mono_ns) / MS:.3f} ms after the start"
