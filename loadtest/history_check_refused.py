"""Invariant 6, the other side: an `over_limit` was answered only when the limit may have been used up."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator

from loadtest.history import Fail, Invoke
from loadtest.history_check_facts import NEVER, Facts, Span, Violation
from loadtest.history_check_sweep import moment


def judge_over_limit(facts: Facts) -> Iterator[Violation]:
    """6: each `over_limit` had a moment at which what was asked can have been more than the limit left.

    Judged only while nobody changed the limits, and every order of the store is known: a limit that was tighter for a
    while refuses rightly, and so does one that an order nobody knows has used up.
    """
    refused = [op for op in facts.history.operations if isinstance(op.answer, Fail) and op.answer.code == "over_limit"]
    if not refused or not facts.limits_judged:
        return
    used = _Used(facts)
    for op in refused:
        assert op.answer is not None  # noqa: S101 - for the type checker
        if not any(
            used.most(kind, who, op.ask.at_ns, op.answer.at_ns) + units > limit
            for kind, who, units, limit in used.asked(op.ask)
        ):
            words = f"operation {op.ask.n} was over no limit {moment(facts.history, op.ask.at_ns)}"
            yield Violation(6, "over_limit_too_early", [op.ask.n], [], words)


class _Used:
    """How much of each limit may have been in use, by its kind and whose it is."""

    def __init__(self, facts: Facts) -> None:
        limits = facts.final.campaign.limits
        self._limits = {"buyer": limits.buyer, "buyer_sku": limits.buyer_sku, "ip": limits.ip, "device": limits.device}
        self._steps: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        self._sums: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        known = {(o.channel, o.key) for o in facts.orders.values()}
        for span in facts.spans:
            attempts = facts.by_key.get((span.order.channel, span.order.key), ())
            # An address is no part of what a key stands for: the attempt that was taken may have had another one.
            asked = {c for ask in (_as_asked(span), *(op.ask for op in attempts)) for c in self.counted(ask)}
            for kind, who, units in asked:
                self._steps[kind, who] += (span.limits_maybe_from, units), (span.maybe_to, -units)
        for key, ops in facts.by_key.items():
            if key not in known:  # set aside, or nobody knows: each body may be the one that was taken
                for op in ops:
                    if not isinstance(op.answer, Fail):
                        for kind, who, units in self.counted(op.ask):
                            self._steps[kind, who].append((op.ask.at_ns, units))

    def counted(self, ask: Invoke) -> list[tuple[str, str, int]]:
        """What an order counts for: kind, whose, units."""
        units = sum(n for _, n in ask.items)
        found = [("buyer", ask.buyer, units), ("ip", ask.ip, units), ("device", ask.device, units)]
        found += [("buyer_sku", f"{ask.buyer} {sku}", n) for sku, n in ask.items]
        return [(kind, who, n) for kind, who, n in found if who and self._limits[kind] is not None]

    def asked(self, ask: Invoke) -> list[tuple[str, str, int, int]]:
        """The same with the limit."""
        return [(kind, who, n, self._limits[kind] or 0) for kind, who, n in self.counted(ask)]

    def most(self, kind: str, who: str, start_ns: int, end_ns: int) -> int:
        """The most that may have been in use at some moment between the two."""
        moments, sums = self._sums.get((kind, who)) or self._sum(kind, who)
        first, last = bisect_right(moments, start_ns) - 1, bisect_left(moments, end_ns + 1)
        return max(sums[max(first, 0) : max(last, 1)])

    def _sum(self, kind: str, who: str) -> tuple[list[int], list[int]]:
        moments, sums = [-NEVER - 1], [0]
        # Of one moment what takes first: the more that may be in use, the less is anybody accused.
        for at_ns, change in sorted(self._steps[kind, who], key=lambda step: (step[0], -step[1])):
            moments.append(at_ns)
            sums.append(sums[-1] + change)
        self._sums[kind, who] = moments, sums
        return moments, sums


def _as_asked(span: Span) -> Invoke:
    order = span.order
    items = tuple(span.units.items())
    return Invoke(0, 0, "order", order.channel, order.key, "", order.buyer, order.ip, order.device, items)
