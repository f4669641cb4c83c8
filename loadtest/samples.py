"""Each latency of a rush, kept as it was: percentiles of percentiles are none."""

from array import array
from bisect import bisect_left

from loadtest.outcomes import Outcome
from loadtest.report import Moment, Percentiles

MOMENTS_MAX = 120
_WIDTHS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
_OUTCOMES = tuple(Outcome)
_NUMBER = {outcome: number for number, outcome in enumerate(_OUTCOMES)}


class Samples:
    """Seconds, in arrays: 33 bytes a request. `due_s`, `latency_s` and `outcome` are of one request at one place, in
    the order of the answers; `lag_s` is in the order of the plan."""

    def __init__(self) -> None:
        self.due_s, self.latency_s, self.outcome = array("d"), array("d"), array("B")
        self.lag_s = array("d")
        self.service_s = array("d")  # from sending to answer, of each attempt that was answered
        self.accepted_s = array("d")  # from due time to the answer, of orders that were accepted
        self.accepted_at_s = array("d")  # when these came, by the monotonic clock

    def note(self, due_s: float, latency_s: float, outcome: Outcome) -> None:
        """One request has its outcome; `due_s` counts from the start of the rush."""
        self.due_s.append(due_s)
        self.latency_s.append(latency_s)
        self.outcome.append(_NUMBER[outcome])

    def timeline(self, plan_due_s: list[float]) -> list[Moment]:
        """The rush in at most about MOMENTS_MAX pieces of equal width; `plan_due_s`: of the plan, sorted."""
        if not self.due_s:
            return []
        end_s = max(due + latency for due, latency in zip(self.due_s, self.latency_s, strict=True))
        width_s = next((w for w in _WIDTHS_S if end_s <= w * MOMENTS_MAX), _WIDTHS_S[-1])
        count = int(end_s / width_s) + 1
        answers: list[dict[str, int]] = [{} for _ in range(count)]
        latencies = [array("d") for _ in range(count)]
        for due_s, latency_s, number in zip(self.due_s, self.latency_s, self.outcome, strict=True):
            there, name = answers[int((due_s + latency_s) / width_s)], _OUTCOMES[number].value
            there[name] = there.get(name, 0) + 1
            latencies[int(due_s / width_s)].append(latency_s)
        moments = []
        for n in range(count):
            first, last = (bisect_left(plan_due_s, at * width_s) for at in (n, n + 1))
            lag_s = max(self.lag_s[first:last], default=0.0)
            of = Percentiles.of(latencies[n])
            moments.append(Moment(round(n * width_s, 3), width_s, last - first, answers[n], of, round(lag_s * 1000, 3)))
        return moments
