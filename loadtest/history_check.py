"""The judge: a history and the final facts against the 12 invariants of the design. Pure, and fast enough for a million
operations.

It judges soundly: a run that was right is never called wrong, whatever it did between two observations. What that
leaves unseen is told with each judge.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from msgspec import Struct

from loadtest.history import Fault, History
from loadtest.history_check_balance import excused_sold_outs, judge_balance, judge_sold_out
from loadtest.history_check_facts import Bounds, Facts, Violation
from loadtest.history_check_faults import Heal, heals, judge_healing, judge_refusals, slowest_refusals
from loadtest.history_check_flow import judge_events, judge_messages, judge_winners
from loadtest.history_check_money import judge_money, judge_returns, judge_stuck
from loadtest.history_check_orders import judge_asked, judge_kept, judge_keys
from loadtest.history_check_partners import judge_partners
from loadtest.history_check_refused import judge_over_limit
from loadtest.history_check_sweep import judge_limits, judge_stock
from loadtest.history_final import Final

__all__ = ["Bounds", "Verdict", "Violation", "check"]

SHOWN = 100  # violations of one invariant that are told; all are counted

JUDGES: tuple[Callable[[Facts], Iterator[Violation]], ...] = (
    judge_stock,
    judge_kept,
    judge_asked,
    judge_keys,
    judge_balance,
    judge_limits,
    judge_over_limit,
    judge_sold_out,
    judge_events,
    judge_winners,
    judge_money,
    judge_returns,
    judge_messages,
    judge_partners,
    judge_refusals,
    judge_healing,
    judge_stuck,
)


class Stats(Struct, frozen=True):
    """What was judged, and what could not be."""

    operations: dict[str, int]  # "order ok", "cancel unknown", …
    orders: int
    faults: dict[str, int]
    heals: list[Heal]
    violations: dict[int, int]  # invariant -> how many, beyond those that are told
    unjudged: list[str]
    refusals_ms: tuple[float, float] = (0.0, 0.0)  # the slowest 429 or 503: while no fault was felt, and while one was
    lost: int = 0  # orders that were accepted and went with a lost store, as they may
    excused_sold_outs: int = 0  # would be wrong, had no units been on their way between shards after a fault


class Verdict(Struct, frozen=True):
    """The violations by invariant, at most 100 of each, and the figures."""

    violations: list[Violation]
    stats: Stats


def check(history: History, final: Final, bounds: Bounds | None = None) -> Verdict:
    """The verdict on a run. Raises ValueError if history and facts are of different campaigns."""
    if history.header.campaign != final.campaign.name:
        raise ValueError(f"the history is of {history.header.campaign}, the facts are of {final.campaign.name}")
    facts = Facts(history, final, bounds or Bounds())
    told: list[Violation] = []
    counts: Counter[int] = Counter()
    for judge in JUDGES:
        for violation in judge(facts):
            counts[violation.invariant] += 1
            if counts[violation.invariant] <= SHOWN:
                told.append(violation)
    operations = Counter(f"{op.ask.op} {op.result}" for op in history.operations)
    in_transit = excused_sold_outs(facts)
    stats = Stats(
        dict(sorted(operations.items())),
        len(facts.orders),
        dict(Counter(f.name for f in history.faults if isinstance(f, Fault))),
        heals(facts),
        dict(counts),
        list(_unjudged(facts, in_transit)),
        slowest_refusals(facts),
        len(facts.excused),
        in_transit,
    )
    return Verdict(told, stats)


def _unjudged(facts: Facts, in_transit: int) -> Iterator[str]:
    if not facts.history.whole:
        yield "3: the history was broken off, so an order without an attempt may have had one"
        if not facts.all_known:
            yield "7: orders may be hidden that nobody recorded, so no sold_out is judged"
    if not facts.clock_trusted:
        yield "1, 6: the store's clock differs from the client's: orders without an answer count from the end only"
    if not facts.all_read:
        yield "5: what some orders have taken is not known, so too much in the store is not judged"
    if not facts.bounds.sells_out:
        yield "7: nobody said that demand exceeded the stock, so unsold units are not judged"
    if in_transit:
        yield f"7: {in_transit} sold_out while a fault may have left units on their way between shards are excused"
    if not facts.limits_judged:
        yield "6: the limits were changed, or orders may be hidden, so no over_limit is judged"
    if any(r.hold_ids is None for r in facts.final.readings):
        yield "5: which orders have a hold is not known, only how many"
    if facts.final.partners is None:
        yield "10: the partners' own records are not known"
