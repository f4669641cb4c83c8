"""When units may have been on their way between shards, with nobody left to bring them there."""

from bisect import bisect_left
from itertools import accumulate

from loadtest.history_check_classes import APART, beyond
from loadtest.history_check_facts import NEVER, Facts, definite, fault_windows, merged


class Transit:
    """A transfer that a fault cut short is finished by the next search for its SKU, and a `sold_out` from memory lasts
    a lease. So units may be on their way from the beginning of a fault that can cut one short until the first definite
    answer to an order that was asked after it, and a lease, and the tolerance between clocks."""

    def __init__(self, facts: Facts) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        harmed = fault_windows(beyond(facts.history.faults, APART)) if facts.final.campaign.spread > 1 else []
        if not harmed:
            return
        answered = sorted(
            (op.ask.at_ns, op.answer.at_ns)
            for op in facts.history.operations
            if op.ask.op == "order" and op.answer is not None and definite(op.answer)
        )
        asked = [at_ns for at_ns, _ in answered]
        soonest = [*accumulate((at_ns for _, at_ns in reversed(answered)), min)][::-1]  # of those asked from there on
        more_ns = facts.lease_ns + facts.tolerance_ns
        windows = []
        for start_ns, end_ns in harmed:
            at = bisect_left(asked, end_ns)
            windows.append((start_ns, soonest[at] + more_ns if at < len(asked) else NEVER))
        for start_ns, end_ns in merged(windows):
            self._starts.append(start_ns)
            self._ends.append(end_ns)

    def possible(self, start_ns: int, end_ns: int) -> bool:
        """Whether units may have been on their way at some moment between the two."""
        at = bisect_left(self._starts, end_ns + 1)
        return at > 0 and self._ends[at - 1] >= start_ns
