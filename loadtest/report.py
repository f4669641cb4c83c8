"""What a rush found: counts, latencies and the accepted orders, to print, to check and to write as JSON."""

import math
from array import array
from pathlib import Path

import msgspec

from loadtest.outcomes import DENIED, FAULTS, Outcome
from loadtest.truths import AcceptedOrder

LAG_WARN_MS = 10.0  # the 99th percentile of the generator's own lag: above it the figures are not the server's alone
LATE_WARN_MS = 50.0  # the latest that it was


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds, nearest rank: each is a latency that really was; all 0 when `n` is 0."""

    n: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: "array[float]") -> "Percentiles":
        if not seconds:
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        ranked = sorted(seconds)

        def at(share: float) -> float:
            return round(ranked[max(0, math.ceil(share * len(ranked)) - 1)] * 1000, 3)

        return cls(len(ranked), at(0.50), at(0.95), at(0.99), at(1.0))


class Moment(msgspec.Struct, frozen=True):
    """A piece of the rush, `width_s` long from `at_s` on. Answers by when they came, all else by when it was due."""

    at_s: float
    width_s: float
    due: int
    answers: dict[str, int]
    latency: Percentiles
    lag_ms: float  # the latest that the generator itself was


class RushReport(msgspec.Struct, frozen=True):
    """The result of one rush.

    Every planned request is counted once in `outcomes`, by its last answer: they add up to `requests`.
    `latency` runs from the due time to the last answer, repeats and waiting included, and has every request,
    given up or not; `service` runs from the sending to the answer, of each attempt that was answered.
    """

    campaign: str
    url: str
    run_id: str
    seed: int
    buyers: int
    spread_s: float
    connections: int
    started_at: str  # wall clock, RFC 3339
    elapsed_s: float  # from the first sending to the last answer
    requests: int  # planned
    sent: int  # written to a connection, repeats after a fault included
    retried: int  # repeats after a fault
    fault_answers: dict[str, int]  # attempts that ended in a fault, by outcome, repeated or not
    outcomes: dict[str, int]
    orders: int  # keys that got a 202
    accepted_per_s: float  # the first 95 % of the 202s that are no replays / time from the first sending to them
    requests_per_s: float  # all answers / elapsed_s: another span, so it may be less than accepted_per_s
    late_ms: float  # how late the generator itself offered a request at most: its own fault, not the server's
    latency: Percentiles
    latency_accepted: Percentiles
    service: Percentiles
    inconsistent: dict[str, int]
    examples: list[str]  # of inconsistent and unexpected answers; bounded
    accepted_orders: list[AcceptedOrder]
    rate: float = 0.0  # requests a second that were due; 0: a crowd
    poisson: bool = False
    lag: Percentiles = Percentiles(0, 0.0, 0.0, 0.0, 0.0)  # how late the generator offered each request
    timeline: list[Moment] = []

    def count(self, outcome: Outcome) -> int:
        return self.outcomes.get(outcome, 0)

    @property
    def faults(self) -> int:
        """Requests whose outcome is still not known after the last attempt."""
        return sum(self.count(outcome) for outcome in FAULTS)

    @property
    def denied(self) -> int:
        """Answers that say the rush itself was set up wrongly: 401, 403, 404, 413."""
        return sum(self.count(outcome) for outcome in DENIED)

    @property
    def ok(self) -> bool:
        """Nothing unexpected, inconsistent or denied. A fault that was reported as one does not count."""
        return not (self.count(Outcome.UNEXPECTED) or self.inconsistent or self.denied)

    def write_json(self, path: Path) -> None:
        """Write the whole report.

        Raises:
            OSError: the file cannot be written.
        """
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def late(report: RushReport) -> str:
    """The warning that the generator itself was late; empty if it was not."""
    if report.lag.p99_ms < LAG_WARN_MS and report.late_ms < LATE_WARN_MS:
        return ""
    return (
        f"The generator itself was late: {report.lag.p99_ms:,.1f} ms at the 99th percentile, {report.late_ms:,.0f} ms"
        " at most. Latency counts from the due time, so these figures blame the server for it: use a machine of its"
        " own for the generator, a lower rate, or several generators."
    )
