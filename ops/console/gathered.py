"""The metrics of all processes, gathered once for whoever asks within a moment."""

import asyncio
import time

from starlette.responses import PlainTextResponse, Response

from core.errors import StoreUnavailable
from core.metrics import CONTENT_TYPE
from lua.connection import Exchange
from lua.registry import Sign, read_signs
from ops.metrics_gather import ask_all, merged

FRESH_S = 0.5  # so old an exposition is given again


class Gathered:
    """Gathers for the sampler and for scrapers alike: many who ask at once cost one round of scrapes.

    While the store is away nobody can say which processes there are: then those are asked that it named last. They
    tell that it is away; without them each of them would be missed, and nobody would be told why.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._turn = asyncio.Lock()
        self._signs: list[Sign] = []
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
                    self._signs, _ = await read_signs(self._exchange)
                except StoreUnavailable:
                    if not self._signs:
                        raise
                self._text = merged(await ask_all(self._signs))
                self._at_s = time.monotonic()
            return self._text
