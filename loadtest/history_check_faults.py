"""Invariants 11 and 12: overload is answered fast, and after a fault everything heals by itself."""

from bisect import bisect_left
from collections.abc import Iterator

from msgspec import Struct

from loadtest.history import Fault, Healed, Mending
from loadtest.history_check_facts import ALWAYS, MS, Facts, Violation, definite
from loadtest.history_check_sweep import moment


class Heal(Struct, frozen=True):
    """From when nothing was left but to undo the fault `name`, to the next definite answer.

    None: there was no answer, or nobody asked. What the undoing takes (a start, a replay) is in it.
    """

    name: str
    mending_ns: int
    seconds: float | None


def slowest_refusals(facts: Facts) -> tuple[float, float]:
    """The longest wait for a 429 or 503, in milliseconds: while no fault was felt, and while one was."""
    slowest = {False: 0, True: 0}
    for op in facts.history.operations:
        if op.answer is not None and op.answer.status in (429, 503):
            inside = facts.troubled(op.ask.at_ns, op.answer.at_ns)
            slowest[inside] = max(slowest[inside], op.answer.at_ns - op.ask.at_ns)
    return slowest[False] / MS, slowest[True] / MS


def judge_refusals(facts: Facts) -> Iterator[Violation]:
    """11: a 429 or 503 comes fast; the slowest one outside of faults and the slowest one inside are named."""
    slowest: dict[bool, tuple[int, int]] = {}
    slow = {False: 0, True: 0}
    for op in facts.history.operations:
        if op.answer is None or op.answer.status not in (429, 503):
            continue
        took_ns = op.answer.at_ns - op.ask.at_ns
        if took_ns <= facts.bounds.refusal_ms * MS:
            continue
        inside = facts.troubled(op.ask.at_ns, op.answer.at_ns)
        if inside and took_ns <= facts.bounds.fault_refusal_ms * MS:
            continue
        slow[inside] += 1
        slowest[inside] = max(slowest.get(inside, (0, 0)), (took_ns, op.ask.n))
    for inside, (took_ns, n) in sorted(slowest.items()):
        where = "while a fault lasted" if inside else "while no fault lasted"
        words = f"operation {n} was refused after {took_ns / MS:.0f} ms {where}, one of {slow[inside]} such"
        yield Violation(11, "slow_refusal", [n], [], words)


def judge_healing(facts: Facts) -> Iterator[Violation]:
    """12: soon after a fault somebody gets a definite answer; in the end nothing is left over."""
    heal_ns = int(facts.bounds.heal_s * 1e9)
    asked = sorted((op.ask.at_ns, op.ask.n) for op in facts.history.operations if op.ask.op == "order")
    starts = [start for start, _ in facts.windows]
    for heal in heals(facts):
        until_ns = heal.mending_ns + heal_ns
        again = bisect_left(starts, heal.mending_ns)
        if heal.seconds is not None and heal.seconds <= facts.bounds.heal_s:
            continue
        if until_ns > facts.history.end_ns or (again < len(starts) and starts[again] < until_ns):
            continue  # there was not the time to see it
        # Asked in its first half, so that an answer in time was possible.
        first, last = (bisect_left(asked, (t, 0)) for t in (heal.mending_ns, heal.mending_ns + heal_ns // 2))
        if first < last:
            took = "no" if heal.seconds is None else f"{heal.seconds:.1f} s to the first"
            when = moment(facts.history, heal.mending_ns)
            words = f"{heal.name} was undone {when}: {took} definite answer, {facts.bounds.heal_s} s are allowed"
            yield Violation(12, "not_healed", [n for _, n in asked[first : first + 1]], [], words)
    if facts.bounds.drained:
        final = facts.final
        for what, left in (("intake", final.intake), ("outbox", len(final.outbox)), ("leases", final.leases)):
            if left:
                orders = [m.order_id for m in final.outbox[:10]] if what == "outbox" else []
                yield Violation(12, "left_over", [], orders, f"{what}: {left} left when all should be done")


def heals(facts: Facts) -> list[Heal]:
    """Each moment from which no fault was left but one that was being undone, and how long an order's answer took."""
    answered = sorted(
        op.answer.at_ns
        for op in facts.history.operations
        if op.ask.op == "order" and op.answer is not None and definite(op.answer)
    )
    found = []
    for name, start_ns in _last_ones(facts.history.faults):
        at = bisect_left(answered, start_ns)
        found.append(Heal(name, start_ns, (answered[at] - start_ns) / 1e9 if at < len(answered) else None))
    return found


def _last_ones(faults: list[Fault | Mending | Healed]) -> list[tuple[str, int]]:
    """Of each time with faults the one that was healed last, and since when it was alone and being undone.

    Without a mark of its mending, since it was healed.
    """
    found: list[tuple[str, int]] = []
    under_way: dict[str, int | None] = {}  # since when it is being undone
    alone_ns = ALWAYS  # since when nothing else lasted
    for event in sorted(faults, key=lambda e: e.at_ns):
        if isinstance(event, Fault):
            under_way.setdefault(event.name, None)
        elif isinstance(event, Mending):
            if event.name in under_way:
                under_way[event.name] = event.at_ns
        elif event.name in under_way:
            since_ns = under_way.pop(event.name)
            if not under_way:
                found.append((event.name, max(alone_ns, event.at_ns if since_ns is None else since_ns)))
            alone_ns = event.at_ns
    return found
