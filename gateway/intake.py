"""Batches of requests on owned connections: what arrived while the last batch was in flight is the next batch.

Each connection has one owner task; one connection is the default, as two split the batches. Nobody waits for a batch
to fill, but for what is in the sockets already; no request is dropped silently; a caller that goes away drops only its
own future, never the order.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from core.errors import Overloaded, StoreUnavailable
from core.flood import SampledLog
from gateway.catalogue import Sale
from gateway.room import Room
from gateway.tally import Tally
from gateway.watch import StoreWatch
from lua.connection import Command, StoreConnection
from lua.durability import Unconfirmed
from lua.reserve import (
    MAX_LINES,
    AllAccepted,
    Answers,
    Ask,
    Fenced,
    Lease,
    Outcome,
    ReserveCode,
    all_accepted,
    pack,
    read,
)
from lua.source import LuaSource

logger = logging.getLogger("rushgate.gateway")
broken_off = SampledLog(logger, logging.ERROR, "intake batch broken off", with_exception=True)

RESERVE = LuaSource.read("reserve")
FULL = "as many requests wait as can be served in time"
LATE = "the request waited as long as one may"
MAX_TAKEN = 1_024  # requests in one exchange, at most
WAIT_MS = 1_000
# Turns of the event loop before a batch is taken: what has arrived in the sockets by then goes with it. No time is
# waited. Two make 25,000 orders/s of 18,000 with 64 connections, and nothing worse with 256; more make no difference.
TURNS = 2
SWEPT = 8  # requests that had their time, answered by each new one: more than one, so that they cannot pile up


class Waiting(Protocol):
    """A request in the queue: for which sale, on which of its shards, what, since when (loop time), and who waits.

    Who waits is told without a turn of the event loop; none of the methods may raise.
    """

    sale: Sale
    slot: int
    ask: Ask
    since_s: float

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def accepted(self, pay_by_ms: int, /) -> None:
        """The store's answer is ACCEPTED, under the id that it was asked with."""

    def set_result(self, outcome: Outcome, /) -> None:
        """The store's answer."""

    def set_exception(self, exc: Exception, /) -> None:
        """There is none."""


class Awaited:
    """A request that a task awaits."""

    __slots__ = ("answer", "ask", "sale", "since_s", "slot")
    since_s: float

    def __init__(self, sale: Sale, slot: int, ask: Ask, answer: "asyncio.Future[Outcome]") -> None:
        self.sale = sale
        self.slot = slot
        self.ask = ask
        self.answer = answer

    def done(self) -> bool:
        return self.answer.done()

    def accepted(self, pay_by_ms: int) -> None:
        self.answer.set_result(Outcome(ReserveCode.ACCEPTED, self.ask.order_id, pay_by_ms))

    def set_result(self, outcome: Outcome) -> None:
        self.answer.set_result(outcome)

    def set_exception(self, exc: Exception) -> None:
        self.answer.set_exception(exc)
        self.answer.exception()  # a caller that has gone away leaves no "never retrieved" behind


class Group:
    """Requests of one call of the script: one sale, one shard."""

    __slots__ = ("lines", "sale", "slot", "waiting")

    def __init__(self, sale: Sale, slot: int) -> None:
        self.sale = sale
        self.slot = slot
        self.waiting: list[Waiting] = []
        self.lines = 0


class Refusal(NamedTuple):
    """Why no new order is taken now, and when it is worth to come again."""

    why: str
    retry_after_s: int


OnLeases = Callable[[Sale, int, list[Lease], float], None]
OnVersion = Callable[[Sale, int], None]
OnSeq = Callable[[Sale, int, int, str], None]


class Intake:
    """The queue before the store, and the tasks that carry it there."""

    def __init__(
        self,
        connections: Sequence[StoreConnection],
        bound: int,
        batch: int,
        watch: StoreWatch | None = None,
        wait_ms: int = WAIT_MS,
    ) -> None:
        """`bound`: most requests that may wait, and `wait_ms` how long; `batch`: most requests in one script call."""
        self._watch = watch or StoreWatch()
        self._connections = connections
        self._wait_s = wait_ms / 1000
        self._room = Room(bound, self._wait_s, batch, MAX_TAKEN)
        self._batch = batch
        self._queue: deque[Waiting] = deque()
        self._sleepers: deque[asyncio.Future[None]] = deque()
        self._owners: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_the_way = 0  # requests, to the store and back
        self.asked = 0  # requests that the store has answered
        self.accepted = 0  # of these
        self.batches = 0  # calls of the script that told so
        self.sent_s = 0.0  # monotonic; when the batch was sent that is being answered
        self.refusal: Refusal | None = None  # set by gateway/pressure.py
        self.tally: Tally | None = None  # counts answers and what they took
        self.on_leases: OnLeases = lambda sale, slot, leases, sent_s: None
        self.on_version: OnVersion = lambda sale, version: None
        self.on_seq: OnSeq = lambda sale, slot, seq, run_id: None

    def start(self) -> None:
        """The owner tasks run."""
        # Kept: asking for the running loop costs a getpid() each time in Python 3.11, a tenth of the hot path's CPU.
        loop = self._loop = asyncio.get_running_loop()
        self._idle.clear()  # until the owners find nothing to do
        self._owners = [loop.create_task(self._own(c), name="intake owner") for c in self._connections]

    def submit(self, sale: Sale, slot: int, ask: Ask) -> "asyncio.Future[Outcome]":
        """The request is in the queue; the future gets what `put` tells. Raises: as `put`."""
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.put(Awaited(sale, slot, ask, answer))
        return answer

    def put(self, waiting: Waiting) -> None:
        """The request is in the queue, `since_s` is set; it is told the outcome, Fenced or StoreUnavailable.

        It is told Overloaded if its turn did not come in time; the store was never asked.

        Raises: Overloaded if as many wait as can be served in time, or the backlog behind the store is above its mark;
            the request was not queued.
        """
        if self.refusal is not None:
            raise Overloaded(*self.refusal)
        queue, now_s = self._queue, self._loop.time()
        if queue:
            if queue[0].since_s < now_s - self._wait_s:
                self._sweep(now_s - self._wait_s)
            if len(queue) >= self._room.most:
                raise Overloaded(FULL)
        waiting.since_s = now_s
        queue.append(waiting)
        if self._sleepers:
            self._wake()

    def _wake(self) -> None:
        self._idle.clear()
        while self._sleepers:
            sleeper = self._sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                break

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def room(self) -> int:
        """So many may wait, as fast as the store is now."""
        return self._room.most

    def full(self) -> bool:
        """Whether a new request would be refused because too many wait."""
        queue = self._queue
        if len(queue) < self._room.most:
            return False
        self._sweep(self._loop.time() - self._wait_s)
        return len(queue) >= self._room.most

    async def flush(self) -> None:
        """All that was queued has its answer."""
        await self._idle.wait()

    async def stop(self) -> None:
        """The owners and their connections are gone; what still waited failed with StoreUnavailable."""
        for task in self._owners:
            task.cancel()
        await asyncio.gather(*self._owners, return_exceptions=True)
        for connection in self._connections:
            await connection.close()
        while self._queue:
            _fail(self._queue.popleft(), StoreUnavailable("the gateway stops"))

    def _sweep(self, too_old_s: float) -> None:
        """The oldest that had their time are refused, at most SWEPT."""
        queue = self._queue
        for _ in range(SWEPT):
            if not queue or queue[0].since_s >= too_old_s:
                break
            _fail(queue.popleft(), Overloaded(LATE))

    async def _own(self, connection: StoreConnection) -> None:
        loop = self._loop
        while True:
            if not self._queue:
                if not self._in_flight:
                    self._idle.set()
                sleeper = loop.create_future()
                self._sleepers.append(sleeper)
                await sleeper
                continue
            for _ in range(TURNS):
                await asyncio.sleep(0)
            sent_s = loop.time()
            taken = self._take(sent_s - self._wait_s)
            if not taken:
                continue
            self._in_flight += 1
            orders = sum(len(group.waiting) for group in taken)
            self.on_the_way += orders
            try:
                if await self._carry(connection, taken):
                    self._room.carried(orders, sent_s, loop.time())
            except BaseException as exc:
                if isinstance(exc, Exception):
                    broken_off()
                stops = isinstance(exc, asyncio.CancelledError)
                why = "the gateway stops" if stops else f"the batch was broken off: {type(exc).__name__}"
                fault = StoreUnavailable(why)
                for group in taken:
                    for waiting in group.waiting:
                        _fail(waiting, fault)
                if not isinstance(exc, Exception):
                    raise
            finally:
                self._in_flight -= 1
                self.on_the_way -= orders

    def _take(self, too_old_s: float) -> list[Group]:
        """What waits, grouped into calls: same sale and shard, within the script's bounds.

        Who waits since before `too_old_s` is refused: served late it would only make those behind it late too.
        """
        groups: dict[tuple[int, int], Group] = {}
        found: list[Group] = []
        group: Group | None = None  # of the request before: mostly they are all of one
        queue = self._queue
        for _ in range(min(len(queue), self._room.take)):
            waiting = queue.popleft()
            if waiting.done():  # its caller has gone away, and nothing was sent yet
                continue
            if waiting.since_s < too_old_s:
                _fail(waiting, Overloaded(LATE))
                continue
            sale, slot = waiting.sale, waiting.slot
            if group is None or group.sale is not sale or group.slot != slot:
                group = groups.get((id(sale), slot))
            more = len(waiting.ask.lines) >> 1
            if group is None or len(group.waiting) >= self._batch or group.lines + more > MAX_LINES:
                group = groups[id(sale), slot] = Group(sale, slot)
                found.append(group)
            group.waiting.append(waiting)
            group.lines += more
        return found

    async def _carry(self, connection: StoreConnection, groups: list[Group]) -> bool:
        """All in the groups are answered. Whether that tells how fast the store is: a refused connection does not."""
        calls: list[Command] = []
        for group in groups:
            sale = group.sale
            calls.append(pack(sale.keys[group.slot], sale.campaign, sale.epoch, [w.ask for w in group.waiting]))
        sent_s, began_s = self._loop.time(), time.monotonic()
        try:
            try:
                replies = await connection.run(RESERVE, calls)
            except StoreUnavailable as exc:
                if isinstance(exc, Unconfirmed) or isinstance(exc.__cause__, TimeoutError):
                    raise  # it had its time: a second wait would only make the queue's longer
                # Whether it was executed is unknown. Once more on a new connection: the same keys and ids make it safe.
                replies = await connection.run(RESERVE, calls)
        except StoreUnavailable as exc:
            self._watch.lost(exc, refused=isinstance(exc, Unconfirmed))
            for group in groups:
                for waiting in group.waiting:
                    _fail(waiting, exc)
            # Who waits behind them is told at once, not after the same wait again and again.
            while self._queue:
                _fail(self._queue.popleft(), exc)
            return isinstance(exc.__cause__, TimeoutError)  # it took too long: fewer at once, and fewer wait
        if self.tally is not None:
            self.tally.round_trip_s.add(time.monotonic() - began_s)
        self.sent_s = began_s
        refused: StoreUnavailable | None = None
        for group, reply in zip(groups, replies, strict=True):
            found = all_accepted(reply)
            if found is not None:
                self._hand_out_accepted(group, found, connection.run_id)
                continue
            try:
                answers = read(reply, [w.ask for w in group.waiting])
            except (Fenced, StoreUnavailable) as exc:
                if isinstance(exc, StoreUnavailable):
                    refused = exc
                for waiting in group.waiting:
                    _fail(waiting, exc)
            else:
                self._hand_out(group, answers, sent_s, connection.run_id)
        if refused is None:
            self._watch.answered(reserved=True)
        else:
            self._watch.lost(refused, refused=True)
        return refused is None

    def _hand_out_accepted(self, group: Group, found: AllAccepted, run_id: str) -> None:
        self.on_seq(group.sale, group.slot, found.seq, run_id)
        self._count(len(group.waiting), len(group.waiting))
        pay_by_ms = found.pay_by_ms
        for waiting in group.waiting:
            if not waiting.done():
                waiting.accepted(pay_by_ms)
        if self.tally is not None:
            self.tally.answered(group.waiting, time.monotonic())
        if found.version != group.sale.version:
            self.on_version(group.sale, found.version)

    def _count(self, asked: int, accepted: int) -> None:
        self.asked += asked
        self.accepted += accepted
        self.batches += 1

    def _hand_out(self, group: Group, answers: Answers, sent_s: float, run_id: str) -> None:
        sale, slot = group.sale, group.slot
        self.on_seq(sale, slot, answers.seq, run_id)
        self._count(len(group.waiting), sum(o.code is ReserveCode.ACCEPTED for o in answers.outcomes))
        for waiting, outcome in zip(group.waiting, answers.outcomes, strict=True):
            if not waiting.done():
                waiting.set_result(outcome)
        if self.tally is not None:
            self.tally.answered(group.waiting, time.monotonic())
        if answers.leases:
            self.on_leases(sale, slot, answers.leases, sent_s)
        if answers.version != sale.version:
            self.on_version(sale, answers.version)


def _fail(waiting: Waiting, exc: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(exc)
