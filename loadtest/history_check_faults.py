"""Invariants 11 and 12: overload is answered fast, and after a fault everything heals by itself."""

from bisect import bisect_left
from collections.abc import Iterator

from msgspec import Struct

from loadtest.history_check_facts import MS, NEVER, Facts, Violation, definite
from loadtest.history_check_sweep import moment


class Heal(Struct, frozen=True):
    """From a fault's end to the next definite answer; None: there was none, or nobody asked."""

    healed_ns: int
    seconds: float | None


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
        until_ns = heal.healed_ns + heal_ns
        again = bisect_left(starts, heal.healed_ns)
        if heal.seconds is not None and heal.seconds <= facts.bounds.heal_s:
            continue
        if until_ns > facts.history.end_ns or (again < len(starts) and starts[again] < until_ns):
            continue  # there was not the time to see it
        # Asked in its first half, so that an answer in time was possible.
        first, last = (bisect_left(asked, (t, 0)) for t in (heal.healed_ns, heal.healed_ns + heal_ns // 2))
        if first < last:
            took = "no" if heal.seconds is None else f"{heal.seconds:.1f} s to the first"
            when = moment(facts.history, heal.healed_ns)
            words = f"the fault was over {when}: {took} definite answer, {facts.bounds.heal_s} s are allowed"
            yield Violation(12, "not_healed", [n for _, n in asked[first : first + 1]], [], words)
    if facts.bounds.drained:
        final = facts.final
        for what, left in (("intake", final.intake), ("outbox", len(final.outbox)), ("leases", final.leases)):
            if left:
                orders = [m.order_id for m in final.outbox[:10]] if what == "outbox" else []
                yield Violation(12, "left_over", [], orders, f"{what}: {left} left when all should be done")


def heals(facts: Facts) -> list[Heal]:
    """Each moment at which no fault was left, and how long a definite answer to an order took from then."""
    answered = sorted(
        op.answer.at_ns
        for op in facts.history.operations
        if op.ask.op == "order" and op.answer is not None and definite(op.answer)
    )
    found = []
    for _, end_ns in facts.windows:
        if end_ns < NEVER:
            at = bisect_left(answered, end_ns)
            found.append(Heal(end_ns, (answered[at] - end_ns) / 1e9 if at < len(answered) else None))
    return found
