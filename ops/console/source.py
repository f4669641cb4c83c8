"""One source of what the console shows: asked again and again, each at its own pace, and remembered when it is away."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from core.errors import Fault

logger = logging.getLogger("rushgate.console")

T = TypeVar("T")
IDLE_EVERY_S = 5.0  # between two looks while no page is open


class Source(Generic[T]):
    """The last value of `read`, when it was had, and why there is no newer one.

    One that is away holds up no other one: each is asked by a task of its own, within `within_s`.
    """

    def __init__(self, name: str, read: Callable[[], Awaitable[T]], first: T, every_s: float, within_s: float) -> None:
        self.name = name
        self.value = first
        self.at_ms = 0  # wall clock; 0 = never had
        self.why = "not asked yet"  # '' = it answered
        self._read = read
        self._every_s = every_s
        self._within_s = within_s

    async def keep_asking(self, watched: Callable[[], bool], hurry: asyncio.Event) -> None:
        """Asks until cancelled; rarely while nobody is there to see it. `hurry`: set when somebody has come."""
        while True:
            began_s = time.monotonic()
            await self.ask()
            pause_s = self._every_s if watched() else max(self._every_s, IDLE_EVERY_S)
            rest_s = max(0.05, began_s + pause_s - time.monotonic())
            if watched():
                await asyncio.sleep(rest_s)
            else:
                try:
                    await asyncio.wait_for(hurry.wait(), rest_s)
                except TimeoutError:
                    continue

    async def ask(self) -> None:
        """Once; raises nothing but a cancellation."""
        try:
            async with asyncio.timeout(self._within_s):
                self.value = await self._read()
        except Fault as exc:
            self.why = exc.detail
        except TimeoutError:
            self.why = f"no answer within {self._within_s:g} s"
        except Exception as exc:
            if not self.why.startswith(type(exc).__name__):
                logger.exception("a source of the console failed", extra={"source": self.name})
            self.why = f"{type(exc).__name__}: {exc}"
        else:
            self.why, self.at_ms = "", time.time_ns() // 1_000_000

    def told(self) -> dict[str, Any]:
        """How it stands, for the page."""
        return {"ok": not self.why, "why": self.why, "at": self.at_ms}
