"""The faults: each a class by name, that does its harm when entered and undoes it when left."""

import asyncio
import contextlib
import os
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeAlias

from redis.asyncio import Redis

from ops.embedded import ServerProcess
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.faults.nemesis.load import Load
from tests.faults.nemesis.stack import Stack

mono_s = time.monotonic


class Scene:
    """What a fault works on."""

    def __init__(self, stack: Stack, load: Load, campaign: str, draw: random.Random) -> None:
        self.stack, self.load, self.campaign, self.draw = stack, load, campaign, draw
        self.faults = 0  # that have begun
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextlib.asynccontextmanager
    async def alone(self, touches: tuple[str, ...]) -> AsyncIterator[None]:
        """Nobody else touches these parts."""
        async with contextlib.AsyncExitStack() as held:
            for part in sorted(touches):
                await held.enter_async_context(self._locks[part])
            self.faults += 1
            yield

    def redis(self) -> Any:  # redis-py's own types leave half of its commands untyped
        """A client of the store, past all proxies; close it by `async with`."""
        return Redis.from_url(self.stack.store.url, socket_timeout=10)


class Skipped(Exception):
    """This machine or this program cannot have the fault; the words say why. It is counted as skipped, never passed."""


class Fault(NamedTuple):
    """One class: `harm` is entered and left; `touches` are the parts that no other fault may touch meanwhile;
    `missing` says what it would need and has not, "" if it can be made; drawn rounds hold it for `hold_s` at least."""

    harm: Callable[[Scene], AbstractAsyncContextManager[None]]
    touches: tuple[str, ...]
    missing: str
    hold_s: float = 0.0


async def until(is_so: Callable[[], bool], longest_s: float) -> bool:
    """Whether it became so in time."""
    until_s = mono_s() + longest_s
    so = is_so()
    while not so and mono_s() < until_s:
        await asyncio.sleep(0.02)
        so = is_so()
    return so


FAULTS: dict[str, Fault] = {}
Make: TypeAlias = Callable[[Scene], AsyncIterator[None]]


def fault(*touches: str, missing: str = "", hold_s: float = 0.0) -> Callable[[Make], Make]:
    """Known by its function's name. Faults that touch different parts may overlap."""

    def known(make: Make) -> Make:
        FAULTS[make.__name__] = Fault(contextlib.asynccontextmanager(make), touches, missing, hold_s)
        return make

    return known


@contextlib.asynccontextmanager
async def meanwhile(act: Callable[[], Awaitable[object]], every_s: float) -> AsyncIterator[None]:
    """The act is done again and again; what it raises is raised at the end. It is never cancelled: redis-py may swallow
    a cancellation, and would go on for ever."""
    stopping = asyncio.Event()

    async def again_and_again() -> None:
        while not stopping.is_set():
            await act()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), every_s)

    task = asyncio.get_running_loop().create_task(again_and_again())
    try:
        yield
    finally:
        stopping.set()
        await task


@contextlib.contextmanager
def launched_with(server: EmbeddedStore | EmbeddedLedger, extra: Mapping[str, str]) -> Iterator[None]:
    """The server, and nothing else that is started meanwhile, is launched with this in its environment."""
    plain = server._launch

    def launch() -> ServerProcess:
        before = {name: os.environ.get(name) for name in extra}
        os.environ.update(extra)
        try:
            return plain()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    server.__dict__["_launch"] = launch
    try:
        yield
    finally:
        del server.__dict__["_launch"]
