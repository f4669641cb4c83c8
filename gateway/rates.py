"""Rate limits before the intake: what arrived while the last call was in flight is the next call, as in the intake.

A request that is let through goes on into the intake's queue; one that is not is told so. The store decides, at one
instant for all of a call (lua/rate.lua), so it does not matter how many gateways there are. Without an answer of the
store nobody is let through: 503, as for an order.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from core.errors import Overloaded, StoreUnavailable
from core.rates import KINDS, Rates, parse_rate
from gateway.catalogue import Sale
from gateway.intake import FULL, LATE, TURNS, WAIT_MS, Intake, Waiting
from gateway.rate_policy import Holder, Policy, Stand
from gateway.watch import StoreWatch
from lua.connection import Command, StoreConnection
from lua.keys import rate_keys
from lua.rate import MAX_REQUESTS, Column, Verdict, pack, read
from lua.source import LuaSource

logger = logging.getLogger("rushgate.gateway")

RATE = LuaSource.read("rate")
MAX_TAKEN = 1_024  # requests in one exchange, at most


class Channels(Protocol):
    """What the limiter must know of channels: gateway.access.Access."""

    rated: bool  # some channel has rates of its own

    def rates(self, channel: str, /) -> Mapping[str, str]:
        """A channel's own, by kind; the same object until they may have changed."""


class Passing:
    """A request that does not go on into the intake: who awaits it is told that it may go on."""

    __slots__ = ("passed", "sale")

    def __init__(self, sale: Sale, passed: "asyncio.Future[None]") -> None:
        self.sale = sale
        self.passed = passed

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return self.passed.done()

    def set_exception(self, exc: Exception) -> None:
        """It may not."""
        self.passed.set_exception(exc)
        self.passed.exception()  # a caller that has gone away leaves no "never retrieved" behind


class Asking(NamedTuple):
    """A request in the queue."""

    waiting: Waiting | Passing
    holder: Holder
    campaign: str
    policy: Policy
    names: list[str]
    since_s: float


class Limiter:
    """The queue before the intake's, and the task that carries it to the store."""

    def __init__(
        self,
        connection: StoreConnection,
        intake: Intake,
        channels: Channels,
        rates: Rates,
        bound: int,
        wait_ms: int = WAIT_MS,
        watch: StoreWatch | None = None,
    ) -> None:
        """`rates`: of the deployment; `bound`: most requests that may wait, `wait_ms` how long."""
        self._connection = connection
        self._intake = intake
        self._rates = rates
        self._bound = bound
        self._wait_s = wait_ms / 1_000
        self._watch = watch or StoreWatch()
        self._queue: deque[Asking] = deque()
        self._sleeper: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop
        self.limited = self.passed = 0  # requests that were refused, and let through
        self.on_limited: Callable[[Sale], None] = lambda sale: None  # of a request that was refused
        # Where there are no limits, the hot path looks at these two and at Sale.rated, and no further.
        self.always = any(rate is not None for rate in rates)
        self.channels = channels

    def start(self) -> None:
        """The task runs."""
        self._loop = asyncio.get_running_loop()
        self._idle.clear()  # until the task finds nothing to do
        self._task = self._loop.create_task(self._run(), name="rate limiter")

    def policy(self, sale: Sale, channel: str) -> Policy:
        """The limits of a channel's requests to a campaign. Each kind: the channel's own, else the campaign's, else
        the deployment's."""
        own = self.channels.rates(channel)
        known = sale.policies.get(channel)
        if known is not None and known[0] is own:
            return known[1]  # type: ignore[no-any-return]  # the sale only keeps it
        written = dict(sale.spec.rates.given()) | dict(own)
        kinds = {kind: parse_rate(text) for kind, text in written.items() if kind in KINDS}
        policy = Policy(self._rates._replace(**kinds))
        sale.policies[channel] = own, policy
        return policy

    def concerns(self, sale: Sale) -> bool:
        """Whether there may be a limit for requests to this campaign."""
        return sale.rated or self.always or self.channels.rated

    def put(self, waiting: Waiting, holder: Holder, channel: str) -> None:
        """The request is in this queue, or in the intake's if nothing limits it; it is told what the intake's tells, or
        RateLimited. `holder.standing` is set before it goes on.

        Raises: Overloaded: too many wait, here or there; the request was not queued.
        """
        sale, intake = waiting.sale, self._intake
        policy = self.policy(sale, channel)
        names = policy.names(channel, waiting.ask)
        if not any(names):
            return intake.put(waiting)
        if intake.refusal is not None:
            raise Overloaded(*intake.refusal)  # before it counts
        return self._put(Asking(waiting, holder, sale.campaign, policy, names, self._loop.time()))

    async def join(self, sale: Sale, channel: str, buyer_id: str, client_ip: str, device_id: str) -> None:
        """Joining the campaign's waiting room is let through; "" = no address, no device.

        Raises: RateLimited; Overloaded: too many wait; StoreUnavailable.
        """
        if not self.concerns(sale):
            return
        policy = self.policy(sale, channel)
        names = policy.line_names(buyer_id, client_ip, device_id)
        if any(names):
            passed: asyncio.Future[None] = self._loop.create_future()
            self._put(Asking(Passing(sale, passed), Stand(), sale.campaign, policy, names, self._loop.time()))
            await passed

    def _put(self, asking: Asking) -> None:
        if len(self._queue) >= self._bound:
            raise Overloaded(FULL)
        self._queue.append(asking)
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            self._idle.clear()
            sleeper.set_result(None)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def flush(self) -> None:
        """All that was queued is refused or in the intake's queue."""
        await self._idle.wait()

    async def stop(self) -> None:
        """The task and its connection are gone; what still waited failed with StoreUnavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._connection.close()
        self._fail(StoreUnavailable("the gateway stops"))

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._idle.set()
                sleeper = self._sleeper = self._loop.create_future()
                await sleeper
                continue
            for _ in range(TURNS):
                await asyncio.sleep(0)
            taken = self._take()
            if not taken:
                continue
            try:
                await self._carry(taken)
            except BaseException as exc:
                if isinstance(exc, Exception):
                    logger.exception("rate limits broken off")
                why = f"the rate limits were broken off: {type(exc).__name__}"
                for group in taken:
                    for one in group:
                        _fail(one.waiting, StoreUnavailable(why))
                if not isinstance(exc, Exception):
                    raise

    def _take(self) -> list[list[Asking]]:
        """What waits, grouped into calls: one campaign and policy each. Who had its time is refused."""
        groups: dict[tuple[str, Policy], list[Asking]] = {}
        found: list[list[Asking]] = []
        too_old_s = self._loop.time() - self._wait_s
        for _ in range(min(len(self._queue), MAX_TAKEN)):
            one = self._queue.popleft()
            if one.waiting.done():
                continue
            if one.since_s < too_old_s:
                _fail(one.waiting, Overloaded(LATE))
                continue
            key = one.campaign, one.policy
            group = groups.get(key)
            if group is None or len(group) >= MAX_REQUESTS:
                group = groups[key] = []
                found.append(group)
            group.append(one)
        return found

    async def _carry(self, groups: list[list[Asking]]) -> None:
        """All in the groups are refused or in the intake's queue."""
        calls = [_call(group) for group in groups]
        try:
            try:
                replies = await self._connection.run(RATE, calls, confirm=False)
            except StoreUnavailable as exc:
                if isinstance(exc.__cause__, TimeoutError):
                    raise
                # Once more on a new connection. Was it carried out after all, these requests count twice: nobody is let
                # through who should not be, and who is refused for it is told when to come again.
                replies = await self._connection.run(RATE, calls, confirm=False)
        except StoreUnavailable as exc:
            self._watch.lost(exc)
            for group in groups:
                for one in group:
                    _fail(one.waiting, exc)
            self._fail(exc)  # who waits behind them is told at once, not after the same wait again
            return
        for group, reply in zip(groups, replies, strict=True):
            try:
                verdicts = read(reply)
            except StoreUnavailable as exc:
                self._watch.lost(exc, refused=True)
                for one in group:
                    _fail(one.waiting, exc)
            else:
                self._watch.answered()
                for one, verdict in zip(group, verdicts, strict=True):
                    self._tell(one, verdict)

    def _tell(self, one: Asking, verdict: Verdict) -> None:
        waiting = one.waiting
        if waiting.done():
            return
        if verdict.refused:
            self.limited += 1
            self.on_limited(waiting.sale)
            waiting.set_exception(one.policy.refusal(verdict))
            return
        self.passed += 1
        if verdict.limit:
            one.holder.standing = one.policy.standing(verdict)
        if isinstance(waiting, Passing):
            waiting.passed.set_result(None)
            return
        try:
            self._intake.put(waiting)
        except Overloaded as exc:
            waiting.set_exception(exc)

    def _fail(self, exc: Exception) -> None:
        """Nobody waits any more: all are told this."""
        while self._queue:
            _fail(self._queue.popleft().waiting, exc)


def _call(group: list[Asking]) -> Command:
    """The call of one campaign and policy."""
    policy = group[0].policy
    names = zip(*(one.names for one in group), strict=True)
    columns = [Column(rate, column) for rate, column in zip(policy.rates, names, strict=True)]
    return pack(rate_keys(group[0].campaign), len(group), columns[: policy.own], columns[policy.own :])


def _fail(waiting: Waiting | Passing, exc: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(exc)
