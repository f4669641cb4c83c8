"""Cross-origin calls from browsers: pages of the origins in RUSHGATE_CORS_ORIGINS may call what buyers call.

No cookies are read anywhere, so none are allowed either. Other origins get no header: their browsers keep the answer to
themselves.
"""

from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

PATHS = ("/v1/campaigns/", "/v1/orders")  # what a buyer's page calls
METHODS = b"GET, POST, PATCH"
REQUEST_HEADERS = b"Authorization, Content-Type, Idempotency-Key, Last-Event-ID, traceparent"
ANSWER_HEADERS = b"Location, Idempotent-Replayed, Retry-After, RateLimit, RateLimit-Policy"
KEPT_S = b"600"  # how long a browser remembers what it may send

Headers = list[tuple[bytes, bytes]]


class Cors:
    """The origins of one deployment."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._headers: dict[bytes, Headers] = {}
        self._lines: dict[bytes, bytes] = {}
        for text in origins:
            origin = text.encode()
            headers = [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", ANSWER_HEADERS),
                (b"vary", b"Origin"),
            ]
            self._headers[origin] = headers
            self._lines[origin] = b"\r\n" + b"".join(b"%b: %b\r\n" % header for header in headers)

    def __bool__(self) -> bool:
        return bool(self._headers)

    def lines(self, origin: bytes) -> bytes:
        """What stands in a raw answer in place of its first line's end; b"" for an origin that is none of ours."""
        return self._lines.get(origin, b"")

    def headers(self, origin: bytes) -> Headers:
        """What is added to an answer to this origin."""
        return self._headers.get(origin, [])

    @staticmethod
    def preflight(headers: Headers) -> Headers:
        """The whole head of an answer to a browser that asks what it may send."""
        return [
            *headers,
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", REQUEST_HEADERS),
            (b"access-control-max-age", KEPT_S),
        ]


class CorsApplication:
    """The application behind it, with the headers that browsers want."""

    def __init__(self, app: ASGIApp, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            return await self._app(scope, receive, send)
        origin, asks = b"", False
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value
            elif name == b"access-control-request-method":
                asks = True
        headers = self._cors.headers(origin)
        if not headers:
            return await self._app(scope, receive, send)
        if asks and scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": 204, "headers": self._cors.preflight(headers)})
            return await send({"type": "http.response.body", "body": b""})

        async def send_with(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        return await self._app(scope, receive, send_with)
