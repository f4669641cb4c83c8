"""The rush: an open loop. Every request has its due time, and no slow answer delays the next one's.

Latency counts from the due time. A generator that counts from the sending leaves out the time in which a slow
server kept it from sending, and reports a stall as a few slow answers (coordinated omission).
"""

import asyncio
import gc
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from heapq import heappop, heappush
from random import Random

import msgspec

from loadtest.campaign import ask_campaign, orders_path, request_head
from loadtest.client import Pool, mono_s
from loadtest.exchange import Answer, Target
from loadtest.options import RushOptions
from loadtest.outcomes import Outcome, outcome_of
from loadtest.plan import Planned, build_plan, paced
from loadtest.report import Percentiles, RushReport
from loadtest.samples import Samples
from loadtest.truths import EXAMPLES_MAX, Truths

PROGRESS_S = 0.125
RETRY_S_MAX = 1.0
RETRY_S_FIRST = 0.05  # doubles with each repeat when the answer names no time
TURN = 512  # requests offered in one turn of the event loop; more would keep answers waiting
NAP_S_MIN = 0.001  # uvloop's timers count milliseconds: a shorter nap is none, and takes a core from the server
MOST = 0.95  # of the 202s, for their rate
TICK_S = 0.005  # the longest nap, so that a repeat is at most this late


class Progress(msgspec.Struct, frozen=True):
    """Where a rush is; given to `on_progress` about eight times a second and once at the end."""

    elapsed_s: float
    requests: int
    offered: int  # whose due time has come
    answered: int  # with a last outcome
    in_flight: int
    waiting: int  # for a free connection
    retried: int
    outcomes: dict[str, int]
    late_ms: float = 0.0  # the latest that the generator was, since the last time


class _Request:
    """One planned request under way."""

    __slots__ = ("due_s", "planned", "tries")

    def __init__(self, planned: Planned, due_s: float) -> None:
        self.planned = planned
        self.due_s = due_s
        self.tries = 0


class _Rush:
    """One run: offers what is due, sorts what comes back."""

    def __init__(self, options: RushOptions, plan: list[Planned], target: Target) -> None:
        self.options = options
        self.plan = plan
        self.head = request_head("POST", orders_path(options.campaign), target, options.channel_key)
        self.pool: Pool[_Request] = Pool(target, options.connections, options.timeout_s, self._done)
        self.truths = Truths()
        self.outcomes: Counter[str] = Counter()
        self.fault_answers: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.samples = Samples()
        self.late_now_s = 0.0
        self.offered = self.answered = self.retried = 0
        self.late_s = 0.0
        self.started_s = self.last_answer_s = 0.0
        self.first_sent_s: float | None = None
        self.started_wall_s = 0.0
        self.stopping = False
        self._retries: list[tuple[float, int, _Request]] = []
        self._jitter = Random(options.seed)  # noqa: S311  spreads repeats, guards nothing

    async def run(self, on_progress: Callable[[Progress], None] | None) -> None:
        """Return when every request has its outcome, at the latest `finish_s` after the last due time."""
        await self.pool.warm()
        self.started_wall_s = time.time()
        self.started_s = mono_s()
        stop_s = self.started_s + self.plan[-1].due_s + self.options.finish_s
        progress_s = self.started_s
        while self.answered < len(self.plan):
            now = mono_s()
            if now >= stop_s:
                self._give_up()
                break
            more = self._offer(now)
            self._repeat(now)
            if on_progress is not None and now >= progress_s:
                on_progress(self.progress(now))
                progress_s = now + PROGRESS_S
            await asyncio.sleep(0 if more else self._nap_s())
        if on_progress is not None:
            on_progress(self.progress(mono_s()))

    def progress(self, now: float) -> Progress:
        late_s, self.late_now_s = self.late_now_s, 0.0
        return Progress(
            elapsed_s=now - self.started_s,
            requests=len(self.plan),
            offered=self.offered,
            answered=self.answered,
            in_flight=self.pool.in_flight,
            waiting=self.pool.waiting,
            retried=self.retried,
            outcomes=dict(self.outcomes),
            late_ms=late_s * 1000,
        )

    def _offer(self, now: float) -> bool:
        """Submit what is due, at most TURN requests; return whether more is due already."""
        plan, offered, started_s = self.plan, self.offered, self.started_s
        end = min(len(plan), offered + TURN)
        due_by_s = now - started_s
        if offered < end and plan[offered].due_s <= due_by_s:
            self.late_now_s = max(self.late_now_s, due_by_s - plan[offered].due_s)
            self.late_s = max(self.late_s, self.late_now_s)
        note_lag = self.samples.lag_s.append
        while offered < end and plan[offered].due_s <= due_by_s:
            planned = plan[offered]
            offered += 1
            note_lag(due_by_s - planned.due_s)
            self.pool.submit(_Request(planned, started_s + planned.due_s), self.head + planned.wire)
        self.offered = offered
        return offered < len(plan) and plan[offered].due_s <= due_by_s

    def _repeat(self, now: float) -> None:
        for _ in range(TURN):
            if not self._retries or self._retries[0][0] > now:
                break
            request = heappop(self._retries)[2]
            self.pool.submit(request, self.head + request.planned.wire)

    def _nap_s(self) -> float:
        if self.offered == len(self.plan):
            return TICK_S
        wait_s = self.started_s + self.plan[self.offered].due_s - mono_s()
        return min(max(wait_s, NAP_S_MIN), TICK_S)

    def _give_up(self) -> None:
        self.stopping = True
        now = mono_s()
        self.pool.stop()
        for _, _, request in self._retries:
            self._finish(request, Outcome.UNKNOWN, now)
        self._retries.clear()
        for planned in self.plan[self.offered :]:
            self.samples.lag_s.append(0.0)  # it was never due
            self._finish(_Request(planned, self.started_s + planned.due_s), Outcome.UNSENT, now)
        self.offered = len(self.plan)

    def _done(self, request: _Request, answer: Answer) -> None:
        planned = request.planned
        outcome, order_id = outcome_of(answer, planned.kind)
        sent_s = answer.sent_s
        if sent_s is not None:
            if self.first_sent_s is None or sent_s < self.first_sent_s:
                self.first_sent_s = sent_s
            if answer.status:
                self.samples.service_s.append(answer.answered_s - sent_s)
        if order_id:
            self.truths.accept(planned, order_id, answer.replayed, answer.answered_s)
            if outcome is Outcome.ACCEPTED:
                self.samples.accepted_s.append(answer.answered_s - request.due_s)
                self.samples.accepted_at_s.append(answer.answered_s)
        elif outcome is Outcome.UNAVAILABLE or outcome is Outcome.UNKNOWN:
            self.fault_answers[outcome] += 1
            if request.tries < self.options.retries and not self.stopping:
                self._retry(request, answer)
                return
        else:
            self.truths.refuse(planned, outcome, sent_s)
            if outcome is Outcome.UNEXPECTED and len(self.unexpected) < EXAMPLES_MAX:
                body = answer.body[:160].decode(errors="replace")
                self.unexpected.append(f"unexpected: {planned.kind} got {answer.status} {body}")
        self._finish(request, outcome, answer.answered_s)

    def _retry(self, request: _Request, answer: Answer) -> None:
        if answer.retry_after_s is not None:
            wait_s = min(answer.retry_after_s, RETRY_S_MAX)
        else:
            wait_s = min(RETRY_S_FIRST * 2**request.tries, RETRY_S_MAX) * self._jitter.uniform(0.5, 1.0)
        request.tries += 1
        self.retried += 1
        # `retried` is unique and breaks ties, so that requests themselves are never compared.
        heappush(self._retries, (answer.answered_s + wait_s, self.retried, request))

    def _finish(self, request: _Request, outcome: Outcome, now: float) -> None:
        self.outcomes[outcome] += 1
        self.answered += 1
        self.samples.note(request.due_s - self.started_s, now - request.due_s, outcome)
        self.last_answer_s = now

    def report(self, run_id: str) -> RushReport:
        orders = self.truths.accepted_orders()
        first_s = self.started_s if self.first_sent_s is None else self.first_sent_s
        elapsed_s = max(self.last_answer_s - first_s, 1e-9)
        options = self.options
        return RushReport(
            campaign=options.campaign,
            url=options.url,
            run_id=run_id,
            seed=options.seed,
            buyers=options.buyers,
            spread_s=options.spread_s,
            connections=options.connections,
            started_at=datetime.fromtimestamp(self.started_wall_s, UTC).isoformat(timespec="milliseconds"),
            elapsed_s=round(elapsed_s, 6),
            requests=len(self.plan),
            sent=self.pool.sent,
            retried=self.retried,
            fault_answers=dict(self.fault_answers),
            outcomes=dict(self.outcomes),
            orders=len(orders),
            accepted_per_s=round(_rate(self.samples.accepted_at_s, first_s), 1),
            requests_per_s=round(self.answered / elapsed_s, 1),
            late_ms=round(self.late_s * 1000, 3),
            latency=Percentiles.of(self.samples.latency_s),
            latency_accepted=Percentiles.of(self.samples.accepted_s),
            service=Percentiles.of(self.samples.service_s),
            inconsistent=dict(self.truths.inconsistent),
            examples=(self.truths.examples + self.unexpected)[: 2 * EXAMPLES_MAX],
            accepted_orders=orders,
            rate=options.rate,
            poisson=options.poisson,
            lag=Percentiles.of(self.samples.lag_s),
            timeline=self.samples.timeline([planned.due_s for planned in self.plan]),
        )


def _rate(at_s: Sequence[float], first_s: float) -> float:
    """A second, over the first MOST of them: units that come back and are sold in the last moment are no measure."""
    count = math.ceil(MOST * len(at_s))
    return count / max(sorted(at_s)[count - 1] - first_s, 1e-9) if count else 0.0


async def rush(options: RushOptions, on_progress: Callable[[Progress], None] | None = None) -> RushReport:
    """Send the crowd, and return what came back. Arguments and errors: as `measured_rush`."""
    return (await measured_rush(options, on_progress))[0]


async def measured_rush(
    options: RushOptions, on_progress: Callable[[Progress], None] | None = None
) -> tuple[RushReport, Samples]:
    """Send the crowd, or requests at their rate; return what came back, and each latency.

    The cyclic garbage collector rests while the requests are under way: a collection would stop the clock of
    every request at once, and nothing of the rush is cyclic garbage but the connections.

    Args:
        on_progress: called from the event loop; its time is taken from the rush, so keep it to milliseconds.

    Raises:
        RushError: the campaign could not be read; nothing was sent.
    """
    target = Target.from_url(options.url, options.verify_tls)
    campaign = await ask_campaign(target, options.campaign, options.channel_key, options.timeout_s)
    run_id = options.run_id or secrets.token_hex(4)
    paces = options.requests
    plan = build_plan(
        campaign, paces or options.buyers, options.spread_s, options.seed, run_id, options.mix, options.by_price
    )
    if paces:
        plan = paced(plan[:paces], options.rate, options.poisson, options.seed)
    run = _Rush(options, plan, target)
    collected = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        await run.run(on_progress)
    finally:
        if collected:
            gc.enable()
        await run.pool.close()
    return run.report(run_id), run.samples
