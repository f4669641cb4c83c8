"""One campaign's waiting room as a gateway process knows it: read a few times a second, told from memory.

However many ask, the store hears of it LOOKS times a second; those who join go to it in batches. What waits for a place
wakes when the place is admitted, not at each look.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from core.desk.room import Reach, RoomDesk
from core.errors import CampaignLost, Fault, LedgerUnavailable, Overloaded, StoreUnavailable
from gateway.catalogue import Sale
from gateway.line_view import Pace, Stock, place_of
from lua.connection import Command, Reply, SharedConnection
from lua.room import MAX_JOINS, Joining, Kept, RoomCode, Rooms, Standing

logger = logging.getLogger("rushgate.gateway")

LOOK_S = 0.25
STOCK_LOOKS = 2  # looks from one look at the stock to the next
IDLE_S = 120.0  # after so long without a question nobody looks any more; the room waits in the store
PACE_S = 10.0  # over so long the paces are measured
PACE_SAMPLES = 8  # at least
MAX_QUEUE = 20_000  # buyers who are about to join
WOKEN, WAKE_S = 250, 0.01  # of those who wait for the opening, so many wake at once; and the pause after it
FAR = 1 << 62  # the place of those who have none yet

Wanted = tuple[Joining, "asyncio.Future[int]"]


class Sample(NamedTuple):
    """How far the room was at a time."""

    at_s: float
    admitted: int
    taken: int


class LiveRoom:
    """The room of `sale.campaign`. Its task runs from the first question until nobody has asked for IDLE_S."""

    def __init__(
        self, sale: Sale, store: SharedConnection, desk: RoomDesk, ttl_s: int, pressed: Callable[[], bool],
        stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`pressed`, `stopping`: as in gateway/line.py."""
        self.sale = sale
        self.stock = Stock(0, 0, False)
        self.standing: Standing | None = None
        self.kept: Kept | None = None
        self._store = store
        self._rooms = Rooms(store)
        self._desk = desk
        self._ttl_ms = ttl_s * 1000
        self._pressed = pressed
        self._stopping = stopping
        self._samples: deque[Sample] = deque(maxlen=int(PACE_S / LOOK_S))
        self._paced: deque[Sample] = deque(maxlen=int(PACE_S / LOOK_S))  # while nothing but the rate held buyers back
        self._reach: Reach | None = None
        self._taken = 0
        self._known = False  # whether the stock was ever seen
        self._queue: deque[Wanted] = deque()
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._carrier: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._first: asyncio.Task[None] | None = None
        self._asked_s = 0.0
        self._why: Fault | None = None
        self._loop = asyncio.get_running_loop()

    async def ready(self) -> Standing:
        """The room as last seen; the first question waits for a look. Raises: StoreUnavailable, LedgerUnavailable."""
        self._asked_s = self._loop.time()
        if self._reader is None or self._reader.done():
            self._reader = self._start(self._keep_looking())
            self.standing = None  # what was known is of long ago
            self._samples.clear()
        if self.standing is None:
            if self._first is None or self._first.done():
                self._first = self._start(self._look_first())
                self._first.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(self._first)
        assert self.standing is not None  # noqa: S101 - a look sees it or raises
        return self.standing

    async def join(self, joining: Joining) -> int:
        """The buyer's number.

        Raises: StoreUnavailable, LedgerUnavailable, CampaignLost; Overloaded: the line is full.
        """
        if len(self._queue) >= MAX_QUEUE:
            raise Overloaded("too many join the line at once")
        future: asyncio.Future[int] = self._loop.create_future()
        self._queue.append((joining, future))
        if self._carrier is None or self._carrier.done():
            self._carrier = self._start(self._carry())
        number = await future
        if not number:
            raise Overloaded("the line is full", 60)
        return number

    @property
    def pace(self) -> Pace:
        """What was measured over the last seconds."""
        admitted, taken = _ends(self._paced), _ends(self._samples)
        return Pace(
            (admitted[1].admitted - admitted[0].admitted) / (admitted[1].at_s - admitted[0].at_s) if admitted else 0.0,
            max(0, taken[1].taken - taken[0].taken) / (taken[1].at_s - taken[0].at_s) if taken else 0.0,
        )

    @property
    def waiting(self) -> int:
        """How many wait for a change of their place."""
        return self._waiting

    async def change(self, number: int, wait_s: float) -> None:
        """The place of the number was admitted, or the room has changed for all; or `wait_s` are over."""
        future: asyncio.Future[None] = self._loop.create_future()
        at = place_of(self.standing, number) if self.standing else None
        self._count += 1
        heappush(self._heap, (at if at is not None else FAR, self._count, future))
        self._waiting += 1
        try:
            await asyncio.wait_for(future, wait_s)
        except TimeoutError:
            return
        finally:
            self._waiting -= 1
            if len(self._heap) > 2 * self._waiting + 1_000:  # those who went away
                self._heap = [one for one in self._heap if not one[2].done()]
                heapify(self._heap)

    async def stop(self) -> None:
        """No task of it runs, nobody waits."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all(StoreUnavailable("the gateway stops"))
        self._wake_all()

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def idle(self) -> bool:
        """Whether nobody has asked lately."""
        return not self._waiting and not self._queue and self._loop.time() - self._asked_s > IDLE_S

    async def _keep_looking(self) -> None:
        looks = 0
        while not self.idle:
            await asyncio.sleep(LOOK_S)
            if self._stopping():
                self._wake_all()
                continue
            try:
                if looks % STOCK_LOOKS == 0 or not self._known:
                    await self._look_at_stock()
                await self._look()
                if self._why is not None:
                    self._why = None
                    logger.info("waiting room goes on", extra={"campaign": self.sale.campaign})
            except Fault as exc:
                if self._why is None:
                    self._why = exc
                    logger.warning("waiting room waits", extra={"campaign": self.sale.campaign, "why": exc.detail})
            looks += 1

    async def _look_first(self) -> None:
        """For all who ask before the room was seen."""
        try:
            await self._look_at_stock()
            await self._look()
        except Fault as exc:
            self._why = exc
            raise

    async def _look(self) -> None:
        await self._call([])

    async def _call(self, joins: list[Joining]) -> list[int]:
        """The numbers of those who join, and the room as it stands. Raises: as `join`."""
        campaign = self.sale.campaign
        keys, kept = self._desk.keys(campaign), self.kept
        for _ in range(3):
            if not self._store.run_id:
                await self._store.exchange([("PING",)])
            life = self._store.run_id
            if kept is None:
                kept = self.kept = await self._desk.install(campaign, self.sale.spec, life)
            code, standing, numbers = await self._rooms.room(
                keys, kept.room_id, life, self._ttl_ms, self._sells, self._pressed(), secrets.token_hex(16), joins
            )
            if code is RoomCode.LOST:
                raise CampaignLost(f"the store does not hold campaign {campaign}")
            if standing is not None:
                self._see(standing)
                return numbers
            kept = None
        raise StoreUnavailable("the store changes: the waiting room is not there yet")

    @property
    def _sells(self) -> bool:
        return self.stock.left > 0 or not self._known

    def _see(self, now: Standing) -> None:
        before, self.standing = self.standing, now
        now_s = self._loop.time()
        if _held_up(before, now) or not self._sells:
            self._paced.clear()
        if not self._samples or now_s - self._samples[-1].at_s >= LOOK_S:
            sample = Sample(now_s, now.admitted, self._taken)
            self._samples.append(sample)
            self._paced.append(sample)
        if before is None or (before.phase, before.early) != (now.phase, now.early):
            self._wake_all()
        while self._heap and self._heap[0][0] <= now.admitted:
            self._wake(heappop(self._heap)[2])
        if now.turn:
            self._start(self._note(now))

    async def _note(self, now: Standing) -> None:
        """The ledger knows how far the room is; an operator's newer rate is in the store."""
        kept, before = self.kept, self._reach or Reach(now.joined, now.admitted)
        if kept is None:
            return
        self._reach = Reach(now.joined, now.admitted)
        try:
            setting = await self._desk.note(self.sale.campaign, kept.room_id, kept.setting, now, before)
            if setting > kept.setting:
                self.kept = await self._desk.install(self.sale.campaign, self.sale.spec, self._store.run_id)
        except (LedgerUnavailable, StoreUnavailable):
            return  # the next turn is a second away

    async def _look_at_stock(self) -> None:
        commands: list[Command] = []
        for keys in self.sale.keys:
            commands += [("HGETALL", keys.stock), ("HLEN", keys.moves)]
        replies = await self._store.exchange(commands)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
        left, held, sold, moving = count(replies)
        # A store without the stock says nothing about it.
        there = all(replies[::2])
        empty = there and not (left or held or moving)
        sure = empty and self._known and not (self.stock.left or self.stock.held)
        woken = sure != self.stock.sure or (left > 0) != (self.stock.left > 0)
        self.stock = Stock(left, held + moving, sure)
        self._known = there
        self._taken = held + sold
        if woken:
            self._wake_all()

    async def _carry(self) -> None:
        while self._queue:
            taken: list[Wanted] = []
            while self._queue and len(taken) < MAX_JOINS:
                one = self._queue.popleft()
                if not one[1].done():  # its buyer has gone, and nothing was sent yet
                    taken.append(one)
            if not taken:
                continue
            try:
                numbers = await self._call([joining for joining, _ in taken])
            except Exception as exc:
                if not isinstance(exc, Fault):
                    logger.exception("joining broken off")
                fault = exc if isinstance(exc, Fault) else StoreUnavailable("joining was broken off")
                self._queue.extendleft(reversed(taken))
                self._fail_all(fault)  # who waits behind them is told at once
                return
            for (_, future), number in zip(taken, numbers, strict=True):
                if not future.done():
                    future.set_result(number)

    def _fail_all(self, fault: Fault) -> None:
        while self._queue:
            future = self._queue.popleft()[1]
            if not future.done():
                future.set_exception(fault)
                future.exception()  # its buyer may have gone

    def _wake_all(self) -> None:
        heap, self._heap = sorted(self._heap), []
        if heap:
            self._start(self._wake_in_turn([future for _, _, future in heap]))

    async def _wake_in_turn(self, waiting: "list[asyncio.Future[None]]") -> None:
        """All wake, the first ones first; orders have their turns between them."""
        try:
            while waiting:
                for future in waiting[:WOKEN]:
                    self._wake(future)
                del waiting[:WOKEN]
                await asyncio.sleep(WAKE_S)
        finally:
            for future in waiting:
                self._wake(future)

    @staticmethod
    def _wake(future: "asyncio.Future[None]") -> None:
        if not future.done():
            future.set_result(None)


def _held_up(before: Standing | None, now: Standing) -> bool:
    """Whether something else than the rate as it is held buyers back since the look before: a pace that was measured
    meanwhile says nothing about how long a line will take."""
    if before is None or before.phase != now.phase or now.joined <= now.admitted or before.holes != now.holes:
        return True
    return before.mode != now.mode or (now.mode == "fixed" and before.rate != now.rate)


def _ends(samples: deque[Sample]) -> tuple[Sample, Sample] | None:
    """The first and the last of enough samples to tell a pace by."""
    return (samples[0], samples[-1]) if len(samples) >= PACE_SAMPLES else None


def count(replies: list[Reply]) -> tuple[int, int, int, int]:
    """Units left, held and sold, and transfers under way, of pairs of a stock hash and a number of notes."""
    left = held = sold = moving = 0
    for stock, notes in zip(replies[::2], replies[1::2], strict=True):
        moving += int(notes)
        for n in range(0, len(stock), 2):
            kind, units = stock[n][:2], int(stock[n + 1])
            if kind == b"h:":
                held += units
            elif kind == b"s:":
                sold += units
            elif b":" not in stock[n]:
                left += max(0, units)
    return left, held, sold, moving
