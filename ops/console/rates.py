"""Rates and latencies out of two scrapes: counters are compared process by process, so that a restart costs nothing."""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from msgspec import Struct

from core.errors import Fault
from gateway.problems import CODES

ORDERS = "rushgate_orders_total"
LATENCY = "rushgate_order_seconds_bucket"
LINE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\{(?P<labels>.*)\} (?P<value>\S+)", re.MULTILINE)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
# What the charts tell apart; the table has each outcome under its own name.
SHOWN = ("accepted", "replayed", "sold_out", "refused", "fault")
STARTED = "process_start_time_seconds"
FORGET_S = 60.0  # after so long without it a process is not remembered


class NoMetrics(Fault):
    """Nothing can be said of rates."""


class Rates(Struct, frozen=True):
    """Orders a second by outcome, and how long answers took; None = nothing was asked in that time."""

    by_outcome: dict[str, float] = {}
    p50_ms: float | None = None
    p99_ms: float | None = None

    def shown(self) -> dict[str, float]:
        """The outcomes as the chart groups them."""
        found = dict.fromkeys(SHOWN, 0.0)
        for outcome, rate in self.by_outcome.items():
            found[group_of(outcome)] += rate
        return found


def group_of(outcome: str) -> str:
    """Which of SHOWN an outcome counts as."""
    if outcome in SHOWN:
        return outcome
    status, _ = CODES.get(outcome, (500, ""))
    return "fault" if status >= 500 else "refused"


def samples(text: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """The labels and values of one family of an exposition."""
    for match in LINE.finditer(text):
        if match["name"] == name:
            yield dict(LABEL.findall(match["labels"])), float(match["value"])


class Meter:
    """Compares each scrape with the one before."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._wall_s = 0.0
        self._seen_s: dict[str, float] = {}  # process -> when it last told anything
        self._orders: dict[tuple[str, str], float] = {}
        self._buckets: dict[tuple[str, float], float] = {}

    def read(self, text: str) -> Rates:
        """The rates since the last scrape; none with the first. Raises NoMetrics."""
        if f"\n# TYPE {ORDERS} " not in text:
            raise NoMetrics("no living gateway tells its metrics (RUSHGATE_METRICS_LISTEN)")
        now_s = time.monotonic()
        orders: dict[tuple[str, str], float] = defaultdict(float)
        for labels, value in samples(text, ORDERS):
            orders[labels.get("process", ""), labels.get("outcome", "")] += value
        buckets: dict[tuple[str, float], float] = defaultdict(float)
        for labels, value in samples(text, LATENCY):
            buckets[labels.get("process", ""), float(labels["le"])] += value
        took_s, first = now_s - self._at_s, not self._at_s
        # One that missed a scrape is compared with the one before that. What was counted by one that is seen for the
        # first time, and has been running for long, did not happen since the last scrape.
        strange = {
            labels.get("process", "") for labels, began_s in samples(text, STARTED) if began_s < self._wall_s
        } - self._seen_s.keys()
        by_outcome: dict[str, float] = defaultdict(float)
        grown: dict[float, float] = defaultdict(float)
        if not first:
            for key, value in orders.items():
                by_outcome[key[1]] += 0.0 if key[0] in strange else _grown(value, self._orders.get(key)) / took_s
            for (process, bound), value in buckets.items():
                grown[bound] += 0.0 if process in strange else _grown(value, self._buckets.get((process, bound)))
        self._at_s, self._wall_s = now_s, time.time()
        self._remember({process for process, _ in orders}, now_s)
        self._orders = {key: n for key, n in self._orders.items() if key[0] in self._seen_s} | orders
        self._buckets = {key: n for key, n in self._buckets.items() if key[0] in self._seen_s} | buckets
        return Rates(
            {outcome: round(rate, 2) for outcome, rate in sorted(by_outcome.items())},
            quantile_ms(grown, 0.5),
            quantile_ms(grown, 0.99),
        )

    def _remember(self, processes: Iterable[str], now_s: float) -> None:
        self._seen_s |= dict.fromkeys(processes, now_s)
        self._seen_s = {process: at_s for process, at_s in self._seen_s.items() if now_s - at_s <= FORGET_S}


def _grown(now: float, before: float | None) -> float:
    """By how much a counter has grown; one that is smaller than before began anew."""
    return now - before if before is not None and now >= before else now


def quantile_ms(grown: dict[float, float], share: float) -> float | None:
    """The duration that `share` of the answers did not pass, between the bounds of its bucket; None = no answers."""
    bounds = sorted(grown)
    total = grown[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, below, low = share * total, 0.0, 0.0
    for bound in bounds:
        if grown[bound] >= wanted:
            if bound == float("inf"):
                return round(low * 1000, 3)
            inside = grown[bound] - below
            return round((low + (bound - low) * ((wanted - below) / inside if inside else 1.0)) * 1000, 3)
        below, low = grown[bound], bound
    return round(low * 1000, 3)
