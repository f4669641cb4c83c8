"""What a gateway process counts: orders by their answer, how long it took, and what the batches are like.

Made for the hot path: an answer is one number of a list that goes up by one, and times are counted for a whole batch.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from core.metrics import Buckets, Row
from core.metrics_table import ANSWER_S, ORDERS, SHORT_S
from gateway.problems import CODES, OF_OUTCOME
from lua.reserve import ReserveCode

MAX_CHANNELS = 100
OTHER = "(others)"  # channels beyond those; no channel can be called so
NOBODY = ""  # the channel of a request whose caller is not known

# An outcome of the store has its code's place; the problems that the store does not know follow.
FIRST = ("accepted", "replayed", *(OF_OUTCOME[code] for code in sorted(OF_OUTCOME)))
OUTCOMES = (*FIRST, *(code for code in CODES if code not in FIRST))
PLACE = {name: n for n, name in enumerate(OUTCOMES)}
assert all(PLACE[name] == code for code, name in OF_OUTCOME.items())  # noqa: S101 - at import; ReserveCode is an int
assert (ReserveCode.ACCEPTED, ReserveCode.REPLAYED) == (0, 1)  # noqa: S101 - likewise


class Answers(dict[str, list[int]]):
    """Channel -> how many of its orders got which of OUTCOMES. Bounded, whatever channels there are."""

    def __missing__(self, channel: str) -> list[int]:
        if len(self) >= MAX_CHANNELS and channel != OTHER:
            return self[OTHER]
        counts = self[channel] = [0] * len(OUTCOMES)
        return counts


class Since(Protocol):
    """What waited, since when (loop time)."""

    since_s: float


class Tally:
    """The counts of one process. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.short, self.long, self.batch = Answers(), Answers(), Answers()
        self.refused = 0  # before they were looked at
        self.order_s = Buckets(ANSWER_S)
        self.reserve_orders = Buckets(ORDERS)
        self.round_trip_s = Buckets(SHORT_S)
        self.batch_lines = Buckets(ORDERS)

    def answered(self, waiting: Sequence[Since], now_s: float) -> None:
        """The orders of one call of the script, the longest waiting first, have their answers now."""
        self.reserve_orders.add(len(waiting))
        self.order_s.add_since([one.since_s for one in waiting], now_s)

    def rows(self) -> Iterable[Row]:
        """All of it; of the outcomes those that there were, and `accepted` of every channel."""
        for way, answers in (("short", self.short), ("long", self.long), ("batch", self.batch)):
            for channel, counts in answers.items():
                for n, count in enumerate(counts):
                    if count or not n:
                        yield "rushgate_orders_total", (channel, OUTCOMES[n], way), count
        yield "rushgate_orders_total", (NOBODY, "overloaded", "refused"), self.refused
        yield "rushgate_order_seconds", (), self.order_s
        yield "rushgate_reserve_orders", (), self.reserve_orders
        yield "rushgate_store_round_trip_seconds", (), self.round_trip_s
        yield "rushgate_batch_lines", (), self.batch_lines
