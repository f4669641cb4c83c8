"""The ceiling: a bare ASGI app that reads an order and answers what it was given at the start. No store, no JSON."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

STATUS = int(os.environ["ECHO_STATUS"])
BODY = os.environ["ECHO_BODY"].encode()
HEADERS = [(b"content-type", os.environ["ECHO_TYPE"].encode()), (b"content-length", b"%d" % len(BODY))]


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """One request, one answer."""
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": STATUS, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
