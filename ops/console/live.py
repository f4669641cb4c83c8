"""One sampler for all open pages: it asks the sources, keeps five minutes of points, and hands each page the newest."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from core.flood import SampledLog
from core.settings import Settings
from gateway.replies import encode_json
from lua.registry import Sign
from ops.console.books import Books, Ledger, Stock
from ops.console.picture import picture, point
from ops.console.rates import Meter, Rates
from ops.console.source import IDLE_EVERY_S, Source

not_drawn = SampledLog(
    logging.getLogger("rushgate.console"), logging.ERROR, "no picture can be made", 30.0, with_exception=True
)

EVERY_S = 1.0
LEDGER_EVERY_S = 2.0
HISTORY = 300  # points
PAGES_MAX = 32  # open pages at once
WITHIN_S = 2.0  # longest wait for a source: a page tells soon that one is away


class TooManyPages(Exception):
    """PAGES_MAX pages are open."""


class Live:
    """The sampler. `start`, then `stop`.

    Args:
        books: reads ledger and store.
        scrape: the gathered metrics of all processes.
        signs: the processes that live.
    """

    def __init__(
        self, settings: Settings, books: Books, scrape: Callable[[], Awaitable[str]],
        signs: Callable[[], Awaitable[list[Sign]]],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._meter = Meter()
        self._scrape = scrape
        self.ledger: Source[Ledger] = Source("ledger", books.ledger, Ledger(), LEDGER_EVERY_S, WITHIN_S)
        self.stock: Source[Stock] = Source("store", self._stock, Stock(), EVERY_S, WITHIN_S)
        self.rates: Source[Rates] = Source("metrics", self._rates, Rates(), EVERY_S, WITHIN_S)
        self.signs: Source[list[Sign]] = Source("signs", signs, [], EVERY_S, WITHIN_S)
        self._books = books
        self._sources: list[Source[Any]] = [self.ledger, self.stock, self.rates, self.signs]
        self._tasks: list[asyncio.Task[None]] = []
        self._pages = 0
        self._hurry = asyncio.Event()
        self._new = asyncio.Event()
        self._number = 0
        self._stopping = False
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._newest = b""  # the picture as an event

    async def _stock(self) -> Stock:
        return await self._books.stock(self.ledger.value.campaigns)

    async def _rates(self) -> Rates:
        return self._meter.read(await self._scrape())

    def start(self) -> None:
        """It samples until `stop`."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(source.keep_asking(self._watched, self._hurry), name=f"console {source.name}")
            for source in self._sources
        ]
        self._tasks.append(loop.create_task(self._sample(), name="console picture"))

    async def stop(self) -> None:
        """No page is fed any more, no task is left."""
        self._stopping = True
        self._wake()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sample(self) -> None:
        while True:
            self._take(with_point=True)
            with contextlib.suppress(TimeoutError):
                if self._pages:
                    await asyncio.sleep(EVERY_S)
                else:
                    await asyncio.wait_for(self._hurry.wait(), IDLE_EVERY_S)

    def _take(self, with_point: bool) -> None:
        """The newest picture is what the sources had last; of data that nobody foresaw there is none, and later ones
        come all the same."""
        try:
            found = self.now()
            if with_point:
                found["point"] = point(found)
            event = _event("picture", found)
        except Exception:
            if not_drawn.due():
                not_drawn.write()
            return
        self._newest = event
        if with_point:
            self._history.append(found["point"])
        self._number += 1
        self._wake()

    def _wake(self) -> None:
        self._new.set()
        self._new = asyncio.Event()

    def now(self) -> dict[str, Any]:
        """The picture out of what the sources had last."""
        parts = {source.name: source.told() for source in self._sources}
        seen = self.ledger.value, self.stock.value, self.rates.value, self.signs.value
        return picture(self._settings, parts, *seen)

    async def refresh(self) -> None:
        """After an operator's action: ledger and store are asked at once, and every page hears of it."""
        await self.ledger.ask()
        await self.stock.ask()
        self._take(with_point=False)

    def _watched(self) -> bool:
        return self._pages > 0

    async def feed(self, until_s: float) -> AsyncGenerator[bytes, None]:
        """Server-sent events for one page, until loop time `until_s`: first the past, then each new picture. A page
        that reads slowly misses pictures, and waits for none. Raises TooManyPages before the first."""
        if self._pages >= PAGES_MAX:
            raise TooManyPages
        self._pages += 1
        self._hurry.set()
        try:
            yield _event("history", {"points": list(self._history), "every_s": EVERY_S})
            told = -1
            loop = asyncio.get_running_loop()
            while not self._stopping and loop.time() < until_s:
                if told != self._number and self._newest:
                    told = self._number
                    yield self._newest
                else:
                    new = self._new
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(new.wait(), 2 * IDLE_EVERY_S)
            if not self._stopping:
                yield _event("over", {})
        finally:
            self._pages -= 1
            if not self._pages:
                self._hurry.clear()


def _event(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encode_json(value) + b"\n\n"
