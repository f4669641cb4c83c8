"""A link of the nemesis in a thread of its own: for tests whose own loop stands still while they call a gateway."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from tests.faults.nemesis.proxy import Link, Trouble

HOST = "127.0.0.1"


class Proxy:
    """Listens on a free port of 127.0.0.1 and leads to another port there."""

    def __init__(self, target: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._link = Link("proxy", (HOST, target))
        self._do(self._link.start())

    @property
    def port(self) -> int:
        return self._link.port

    def turn_to(self, target: int) -> None:
        """Open connections are cut, with all that was on its way; new ones go to that port, without trouble."""
        self._do(self._turn(target))

    def set(self, trouble: Trouble) -> None:
        """As Link.set."""
        self._do(self._set(trouble))

    def close(self) -> None:
        """Nothing listens, nothing is open, no thread runs."""
        self._do(self._link.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _turn(self, target: int) -> None:
        self._link.target = (HOST, target)
        self._link.set("none")
        self._link.abort_all()

    async def _set(self, trouble: Trouble) -> None:
        self._link.set(trouble)
