"""The signs of life: which processes of the deployment work, on what, how fast, and how far they are behind.

Each process writes one field of one hash once a second; whoever wants to know reads the hash. Times are the store's, so
machines whose clocks differ still see each other. It is information, and nothing depends on it: a store that is away or
slow costs a process its sign, never its work. Neither durability nor admission is asked of the store for it.
"""

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import math
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import RedisError

from core.errors import Fault, StoreUnavailable
from lua.connection import Exchange, StoreConnection
from lua.keys import processes_key
from lua.source import LuaSource

logger = logging.getLogger("rushgate.registry")

EVERY_S = 1.0  # between two signs
STEADY_S = 3.0  # over so long rates and shares are averaged
ALIVE_MS = 5_000  # older: the process is dead, frozen, or cut off from the store
FORGET_MS = 60_000  # older: its field is removed by whoever comes by
EXCHANGE_S = 2.0  # longest wait for the store
LOOK_S = 2.0  # longest wait for what waits
STOP_S = 0.5  # of a graceful stop, for the farewell
MOST_BYTES = 16_384  # of one sign; a longer one is written without `more`

SIGN = LuaSource.read("sign")


class Sign(msgspec.Struct, kw_only=True):
    """One process as it said it is. Times: ms of the store's clock; `rate`: orders or messages a second lately."""

    id: str
    kind: str
    host: str = ""
    pid: int = 0
    started_at: int = 0
    seen_at: int = 0
    version: str = ""
    metrics: str = ""  # where it can be scraped, "" = nowhere
    reads: str = ""  # what it works on, in words
    rate: float = 0.0
    lag_orders: int = 0  # orders or messages that wait for all of its kind
    lag_s: float = 0.0  # since when the oldest of them waits
    busy: float = 0.0  # share of its time that it works, 0 to 1
    more: dict[str, Any] = msgspec.field(default_factory=dict)


class Work(NamedTuple):
    """What a process has done since its start."""

    done: float  # orders or messages
    idle_s: float | None = None  # without work to do; None: it is as busy as its CPU time tells
    totals: Mapping[str, float] = {}  # told as `<name>_per_s` in `more`
    facts: Mapping[str, Any] = {}  # told as they are


class Lag(NamedTuple):
    """What waits now."""

    orders: int = 0
    age_s: float = 0.0
    facts: Mapping[str, Any] = {}


class _Mark(NamedTuple):
    """The totals at one moment."""

    at_s: float
    done: float
    idle_s: float | None
    cpu_s: float
    machine: tuple[float, float]
    totals: Mapping[str, float]


_sign_of: msgspec.json.Decoder[Sign] = msgspec.json.Decoder(Sign)


async def read_signs(exchange: Exchange) -> tuple[list[Sign], int]:
    """The living processes, by kind and start, and the store's time in ms. Raises StoreUnavailable."""
    living, _, now_ms = await read_all_signs(exchange)
    return living, now_ms


async def read_all_signs(exchange: Exchange) -> tuple[list[Sign], list[Sign], int]:
    """The living processes, those that fell silent within FORGET_MS without a farewell, and the store's time in ms.

    Both by kind and start. What is long dead is forgotten. Raises: StoreUnavailable.
    """
    fields, now = await exchange([("HGETALL", processes_key()), ("TIME",)])
    for reply in (fields, now):
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    living, silent, old = list[Sign](), list[Sign](), list[bytes]()
    for name, text in zip(fields[::2], fields[1::2], strict=True):
        try:
            sign = _sign_of.decode(text)
        except msgspec.DecodeError:
            old.append(name)  # no program of ours wrote it
            continue
        # A store whose clock was set back, or that took over from one that went before it, has signs of a time to come:
        # who lives gives a new one within a second.
        age_ms = abs(now_ms - sign.seen_at)
        if age_ms > FORGET_MS:
            old.append(name)
        else:
            (living if age_ms <= ALIVE_MS else silent).append(sign)
    if old:
        await exchange([("HDEL", processes_key(), *old)])
    for found in (living, silent):
        found.sort(key=lambda s: (s.kind, s.started_at, s.id))
    return living, silent, now_ms


class SignOfLife:
    """Says once a second that its process lives. Every method returns soon and raises nothing, whatever the store does.

    Args:
        url: of the store.
        kind: gateway, ledger, expiry, relay, reconcile or console.
        name: of the process; made unlike any other's.
        work: what was done so far; cheap.
        lag: what waits now; may ask the store on this connection, or the ledger. While there is no new answer the last
            one is told.
        reads: what the process works on, in words.
        metrics: gives the scrape URL, "" = none.
    """

    def __init__(
        self, url: str, kind: str, name: str, work: Callable[[], Work],
        lag: Callable[[StoreConnection], Awaitable[Lag]] | None = None, *, reads: str = "",
        metrics: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        self._connection = StoreConnection(url, "memory", EXCHANGE_S, f"{name}-sign")
        self._work = work
        self._ask_lag = lag
        self._metrics = metrics
        self._sign = Sign(
            id=f"{name}-{secrets.token_hex(4)}", kind=kind, host=socket.gethostname()[:64], pid=os.getpid(),
            version=version(), reads=reads,
        )  # fmt: skip
        self._began_s = time.monotonic()
        self._clock_ms: tuple[float, float] | None = None  # the store's time at one of our monotonic seconds
        self._lag = Lag()
        self._marks: deque[_Mark] = deque(maxlen=math.ceil(STEADY_S / EVERY_S) + 1)
        self._failed = ""  # why the last sign was not written
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The field of the hash."""
        return self._sign.id

    def start(self) -> None:
        """It says so until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._keep_saying(), name="sign of life")

    async def stop(self) -> None:
        """No task of it runs; the process is off the hash, if the store answers soon."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(Fault, TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self._connection.exchange([("HDEL", processes_key(), self.id)])
        await self._connection.close()

    async def _keep_saying(self) -> None:
        loop = asyncio.get_running_loop()
        swept = False
        while True:
            began_s = loop.time()
            try:
                await self.say()
                if not swept:  # processes that die again and again must not fill the hash where nobody reads it
                    await read_signs(self._connection.exchange)
                    swept = True
                self._failed = ""
            except Exception as exc:
                why = exc.detail if isinstance(exc, Fault) else f"{type(exc).__name__}: {exc}"
                if not self._failed:
                    logger.log(
                        logging.DEBUG if isinstance(exc, Fault) else logging.ERROR,
                        "sign of life not written", extra={"why": why}, exc_info=not isinstance(exc, Fault),
                    )  # fmt: skip
                self._failed = why
            await asyncio.sleep(max(0.05, began_s + EVERY_S - loop.time()))

    async def say(self) -> Sign:
        """One sign, as it is written. Raises StoreUnavailable."""
        if self._clock_ms is None:
            await self._ask_clock()
        if self._ask_lag is not None:
            with contextlib.suppress(Fault, TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    self._lag = await self._ask_lag(self._connection)
        sign = self._made()
        text = msgspec.json.encode(sign)
        if len(text) > MOST_BYTES:
            text = msgspec.json.encode(msgspec.structs.replace(sign, more={}))
        [now_ms] = await self._connection.run(SIGN, [(1, processes_key(), self.id, text)], confirm=False)
        if isinstance(now_ms, RedisError):
            raise StoreUnavailable(f"the store answers {type(now_ms).__name__}: {now_ms}")
        self._clock_ms = now_ms, time.monotonic()
        return sign

    async def _ask_clock(self) -> None:
        [now] = await self._connection.exchange([("TIME",)])
        if isinstance(now, RedisError):
            raise StoreUnavailable(f"the store answers {type(now).__name__}: {now}")
        self._clock_ms = int(now[0]) * 1000 + int(now[1]) / 1000, time.monotonic()

    def _made(self) -> Sign:
        assert self._clock_ms is not None  # noqa: S101 - for mypy: asked before
        work, now_s = self._work(), time.monotonic()
        mark = _Mark(now_s, work.done, work.idle_s, time.process_time(), machine_s(), work.totals)
        self._marks.append(mark)
        first = self._marks[0]
        took_s = max(mark.at_s - first.at_s, 1e-3)
        cpu = _share((mark.cpu_s - first.cpu_s) / took_s)
        busy = cpu
        if mark.idle_s is not None and first.idle_s is not None and first is not mark:
            busy = _share(1 - (mark.idle_s - first.idle_s) / took_s)
        used_s, all_s = mark.machine[0] - first.machine[0], mark.machine[1] - first.machine[1]
        rates = {f"{k}_per_s": round((v - first.totals.get(k, 0.0)) / took_s, 3) for k, v in work.totals.items()}
        seen_ms = self._clock_ms[0] + (now_s - self._clock_ms[1]) * 1000
        return msgspec.structs.replace(
            self._sign,
            started_at=int(seen_ms - (now_s - self._began_s) * 1000),
            seen_at=int(seen_ms),
            metrics=self._metrics(),
            rate=round((mark.done - first.done) / took_s, 3),
            lag_orders=self._lag.orders,
            lag_s=round(self._lag.age_s, 3),
            busy=round(busy, 4),
            more={
                "done": work.done,
                "cpu": round(cpu, 4),
                "cores": os.cpu_count() or 1,
                "machine_busy": round(used_s / all_s, 4) if all_s > 0 else 0.0,
                "memory_bytes": _memory_bytes(),
                **rates,
                **work.facts,
                **self._lag.facts,
            },
        )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def machine_s() -> tuple[float, float]:
    """CPU seconds of all cores of this machine, at work and altogether; zeros where the system does not tell."""
    try:
        with Path("/proc/stat").open() as file:
            ticks = [int(part) for part in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0
    # idle and iowait are no work; what another guest of the host took (steal) is not there for us.
    every = sum(ticks) / os.sysconf("SC_CLK_TCK")
    return every - (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK"), every


def _memory_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@functools.cache
def version() -> str:
    """Of this program, "" if it was never installed."""
    try:
        return importlib.metadata.version("rushgate")
    except importlib.metadata.PackageNotFoundError:
        return ""
