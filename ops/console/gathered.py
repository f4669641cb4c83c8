"""The metrics of all processes, gathered once for whoever asks within a moment."""

import asyncio
import time

from starlette.responses import PlainTextResponse, Response

from core.errors import StoreUnavailable
from core.metrics import CONTENT_TYPE
from lua.connection import Exchange
from lua.registry import Sign, read_all_signs
from ops.metrics_gather import ask_all, merged

FRESH_S = 0.5  # so old an exposition is given again
SILENT_S = 600.0  # so long a process that fell silent is still asked: longer than an alert waits before it fires


class Gathered:
    """Gathers for the sampler and for scrapers alike: many who ask at once cost one round of scrapes.

    While the store is away nobody can say which processes there are: then those are asked that it named last. They
    tell that it is away; without them each of them would be missed, and nobody would be told why.

    A process that hangs gives no sign of life either. It is still asked, and shows as down, until it lives again, or
    has ended, so that its address refuses connections or is another's.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._turn = asyncio.Lock()
        self._signs: list[Sign] = []
        self._silent: dict[str, tuple[Sign, float]] = {}  # id -> its last sign, and when it was missed
        self._text = b""
        self._at_s = float("-inf")

    async def text(self) -> str:
        """The exposition. Raises StoreUnavailable: it is away, and was when we began."""
        return (await self._fresh()).decode()

    async def response(self) -> Response:
        """The same as an answer, 503 in place of the fault."""
        try:
            return Response(await self._fresh(), media_type=CONTENT_TYPE)
        except StoreUnavailable as exc:
            return PlainTextResponse(f"{exc.detail}\n", 503)

    async def _fresh(self) -> bytes:
        async with self._turn:
            if time.monotonic() - self._at_s > FRESH_S:
                try:
                    self._signs, silent, _ = await read_all_signs(self._exchange)
                    self._miss(silent)
                except StoreUnavailable:
                    if not self._signs:
                        raise
                told = await ask_all([*self._signs, *(sign for sign, _ in self._silent.values())])
                for one in told:
                    if one.gone:
                        self._silent.pop(one.sign.id, None)
                living = {sign.id for sign in self._signs}
                self._text = merged([one for one in told if one.sign.id in living or not one.gone])
                self._at_s = time.monotonic()
            return self._text

    def _miss(self, silent: list[Sign]) -> None:
        now_s = time.monotonic()
        for sign in silent:
            self._silent.setdefault(sign.id, (sign, now_s))
        taken = {sign.metrics for sign in self._signs}  # by itself, or by one that was started in its place
        self._silent = {
            name: (sign, at_s)
            for name, (sign, at_s) in self._silent.items()
            if sign.metrics not in taken and now_s - at_s < SILENT_S
        }
