"""Backpressure: orders are refused while more wait for the ledger than should, and taken again when they have gone.

Each gateway process looks by itself, a few times a second. What was accepted is never dropped; what is refused was
never asked of the store, a repeated key neither: it gets its order again when the pressure is off.
"""

import asyncio
import logging
import math
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from core.settings import Settings
from gateway.catalogue import Catalogue
from gateway.intake import Intake, Refusal
from gateway.witness import Witness
from lua.connection import SharedConnection
from lua.keys import call_key
from lua.scripts import Backlog, Scripts

logger = logging.getLogger("rushgate.gateway")

LOOK_S = 0.2
LOW = 0.5  # of the marks for orders and age: taken again below
MEMORY_STEP = 0.05  # of maxmemory: holds stay when orders are drained, so half of the mark might never come
MAX_RETRY_S = 30  # a longer promise would be a guess
CLOSED_FOR = timedelta(minutes=1)  # by our clock, while the store's decides
STEADY_S = 3.0  # over so long the drain rate is averaged


class Load(NamedTuple):
    """One look. `memory`: share of the store's maxmemory, 0 if it has none."""

    at_s: float
    shards: dict[int, Backlog]
    memory: float

    @property
    def orders(self) -> int:
        return sum(b.orders for b in self.shards.values())

    @property
    def age_s(self) -> float:
        return max((b.age_ms for b in self.shards.values()), default=0) / 1000


class Marks(NamedTuple):
    """High-water marks."""

    orders: int
    age_s: float
    memory: float

    @classmethod
    def of(cls, settings: Settings) -> "Marks":
        """Those of a deployment."""
        return cls(settings.intake_high_orders, settings.intake_max_age_s, settings.store_memory_high)

    def passed(self, load: Load, refusing: bool) -> list[str]:
        """What is above its mark, as words for people; while `refusing`, above its low one."""
        share, step = (LOW, MEMORY_STEP) if refusing else (1.0, 0.0)
        words = []
        if load.orders > self.orders * share:
            words.append(f"{load.orders} orders wait for the ledger, {self.orders} are the mark")
        if load.age_s > self.age_s * share:
            words.append(f"the oldest waits since {load.age_s:.0f} s, {self.age_s:.0f} s are the mark")
        if load.memory > self.memory - step:
            words.append(f"the store has used {load.memory:.0%} of its memory, {self.memory:.0%} are the mark")
        return words


def drained(before: Load, now: Load) -> int:
    """Orders that left the intakes between two looks, as far as the numbers tell."""
    gone = 0
    for shard, old in before.shards.items():
        new = now.shards.get(shard)
        if new is None or not old.entries:
            continue
        if new.entries and new.sale == old.sale:
            gone += max(0, new.first - old.first)
        else:
            gone += max(0, old.orders - new.orders)
    return gone


class Pressure:
    """Looks at the store and tells the intake what to do with new orders."""

    def __init__(
        self,
        store: SharedConnection,
        catalogue: Catalogue,
        intake: Intake,
        settings: Settings,
        witness: Witness | None = None,
    ) -> None:
        """`witness` is called when the store calls for it."""
        self._witness = witness
        self._store = store
        self._catalogue = catalogue
        self._intake = intake
        self._marks = Marks.of(settings)
        self._least_s = settings.retry_after_s
        self._before: Load | None = None
        self._rate = 0.0  # orders drained per second
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """It looks, every LOOK_S, until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._keep_looking(), name="pressure")

    async def stop(self) -> None:
        """No task of it runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_looking(self) -> None:
        while True:
            try:
                self.judge(await self.look())
            except StoreUnavailable:
                # Nothing is known, so nothing is refused for it: a store that is away or full says so itself.
                self._intake.refusal = self._before = None
            await asyncio.sleep(LOOK_S)

    @property
    def share(self) -> float:
        """How near the last look was to the nearest mark, 1.0 = there; 0.0 = nothing is known."""
        load, marks = self._before, self._marks
        return 0.0 if load is None else max(load.orders / marks.orders, load.age_s / marks.age_s)

    async def look(self) -> Load:
        """What waits on the shards of the campaigns that this process sells. Raises StoreUnavailable."""
        over = datetime.now(UTC) - CLOSED_FOR  # what has closed gets no more orders; a process may know thousands
        selling = [sale for sale in self._catalogue.sales.values() if sale.spec.closes_at > over]
        shards = sorted({shard for sale in selling for shard in sale.shards})
        found = await Scripts(self._store).backlog(shards)
        info, called = await self._store.exchange([("INFO", "memory"), ("GET", call_key())])
        for reply in (info, called):
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
        if self._witness is not None:
            await self._witness.called(self._store, called or b"")
        return Load(asyncio.get_running_loop().time(), found, memory_share(info))

    def judge(self, load: Load) -> None:
        """The intake refuses or takes new orders, as this look wants it."""
        refusing = self._intake.refusal is not None
        if self._before is not None:
            took_s = load.at_s - self._before.at_s
            part = min(1.0, took_s / STEADY_S) if self._rate else 1.0
            self._rate += part * (drained(self._before, load) / took_s - self._rate)
        self._before = load
        passed = self._marks.passed(load, refusing)
        self._intake.refusal = Refusal("; ".join(passed), self._retry_after_s(load)) if passed else None
        if passed and not refusing:
            logger.warning("intake refuses orders", extra={"why": "; ".join(passed)})
        elif refusing and not passed:
            logger.info("intake takes orders again", extra={"orders": load.orders})

    def _retry_after_s(self, load: Load) -> int:
        """When the backlog will be below the low mark, at the rate at which it has been drained lately."""
        too_many = load.orders - self._marks.orders * LOW
        if load.age_s > self._marks.age_s * LOW or load.memory > self._marks.memory - MEMORY_STEP:
            too_many = load.orders  # the oldest must go, and memory is freed by what goes
        if self._rate < 1.0:
            return max(self._least_s, MAX_RETRY_S)
        return max(self._least_s, min(MAX_RETRY_S, math.ceil(too_many / self._rate)))


def memory_share(info: bytes) -> float:
    """Used part of maxmemory from the text of INFO memory; 0.0 without a limit."""
    facts = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    most = int(facts.get(b"maxmemory", 0))
    return int(facts[b"used_memory"]) / most if most else 0.0
