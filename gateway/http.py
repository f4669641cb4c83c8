"""The HTTP protocol of the gateway: uvicorn's, with a bound on a request's head and a short way for orders.

uvicorn's httptools protocol keeps header bytes for as long as they come; one connection could fill the memory. And a
request costs it more than an order costs us: a scope, a task, an event, two writes. So an order that is plain goes from
the parser to the queue, and from there to the socket; all else goes uvicorn's way, to the same answers.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.intake import FULL
from gateway.problems import problem
from gateway.short import ShortOrder, ShortWay

HEAD_BYTES = 65_536  # request line and headers that span more than one read, at most
_BODY = msgspec.json.encode(problem("head_too_large"))
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)
CAMPAIGNS, ORDERS, BATCH = b"/v1/campaigns/", b"/orders", b"/orders:batch"
SKIPPED = (
    1 << 20
)  # bytes of a refused body that is not looked at, at most: more goes the long way, and is refused there

LONG, REFUSED, SHORT = 0, 1, 2  # which way the request goes that comes now


def overloaded(retry_after_s: int) -> bytes:
    """The whole answer to an order that is refused before it is looked at; the connection stays of use."""
    body = msgspec.json.encode(problem("overloaded", FULL))
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n"
        b"content-length: %d\r\nretry-after: %d\r\n\r\n%b" % (len(body), retry_after_s, body)
    )


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection with 431 when a request's head is larger than HEAD_BYTES and one read together.

    Answers orders with `refused` as long as `full` says that no more may wait, and gives the plain ones to `short_way`,
    if there is one; `serve` sets all three. One order of a connection is on the short way at a time.
    """

    full: Callable[[], bool] = staticmethod(lambda: False)
    refused = b""
    short_way: ShortWay | None = None
    _in_head = False
    _head_bytes = 0
    _way = LONG
    _heads: dict[bytes, bytes]
    _parts: list[bytes]  # of its body
    _quiet = False  # since the last answer no request has begun
    _quiet_since_s = 0.0

    def data_received(self, data: bytes) -> None:
        # What begins in this very read is as large as a read at most; what goes on from earlier ones is counted.
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.write(TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def on_message_begin(self) -> None:
        # Not uvicorn's: the scope that it makes is for requests that go the long way.
        self._in_head, self._head_bytes, self._quiet = True, 0, False
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> Any:
        self._in_head = False
        self._way = self._choose()
        return self._begin_long() if self._way == LONG else None

    def on_body(self, body: bytes) -> None:
        if self._way == SHORT:
            self._parts.append(body)
        elif self._way == LONG:
            super().on_body(body)

    def on_message_complete(self) -> None:
        way, self._way = self._way, LONG
        if way == LONG:
            return super().on_message_complete()
        if way == REFUSED:
            self.transport.write(self.refused)
            return self.on_response_complete()
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        assert self.short_way is not None  # noqa: S101 - it was there when the way was chosen
        if not self.short_way.take(self, self.url[len(CAMPAIGNS) : -len(ORDERS)], self._heads, body):
            self._begin_long()
            super().on_body(body)
            super().on_message_complete()
        return None

    def begin_short(self, order: ShortOrder) -> None:
        """The order's answer is the next thing on this connection; what is pipelined behind it waits."""
        self.cycle = order  # type: ignore[assignment]  # it has all that uvicorn asks of a request under way

    def end_short(self, order: ShortOrder) -> None:
        """Nothing holds the order any more; what waits behind it has its turn."""
        if self.cycle is order:  # type: ignore[comparison-overlap]
            self.cycle = None  # type: ignore[assignment]
        self.on_response_complete()

    def _choose(self) -> int:
        """Which way a request goes, by its head. Not the long one if nothing is special about its turn, its connection
        and its body."""
        url = self.url
        if not url.startswith(CAMPAIGNS):
            return LONG
        if url.endswith(ORDERS):
            way = REFUSED if self.full() else SHORT
        elif url.endswith(BATCH) and self.full():
            way = REFUSED
        else:
            return LONG
        parser, cycle = self.parser, self.cycle
        if (
            b"?" in url
            or (cycle is not None and not cycle.response_complete)
            or self.flow.write_paused  # else who never reads its answers would fill our memory with them
            or parser.get_method() != b"POST"
            or not parser.should_keep_alive()
            or self.server_state.default_headers  # `connection: close` of a server that stops
        ):
            return LONG
        heads = self._heads = dict(self.headers)
        self._parts = []
        # Twice the same header: the long way decides what that means. HTTP 1.0 is kept alive by a header only.
        if (
            len(heads) != len(self.headers)
            or b"expect" in heads
            or b"transfer-encoding" in heads
            or b"upgrade" in heads
            or (b"connection" in heads and parser.get_http_version() != "1.1")
        ):
            return LONG
        length = int(heads.get(b"content-length", b"0"))  # the parser has looked at it
        if way == REFUSED:
            return REFUSED if length <= SKIPPED else LONG
        return SHORT if self.short_way is not None and length <= self.short_way.body_bytes else LONG

    def _begin_long(self) -> Any:
        """The request goes uvicorn's way from here on."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers = self.scope["headers"] = headers
        self.expect_100_continue = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers)
        return super().on_headers_complete()

    # One timer for the life of a connection, in place of a new one after each answer.

    def _unset_keepalive_if_required(self) -> None:
        """The timer stays: it looks by itself whether the connection is quiet."""

    def on_response_complete(self) -> None:
        """What is pipelined behind the answer begins, or the connection waits for its next request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._quiet, self._quiet_since_s = True, self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_for_next(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """The connection is closed if nothing has come for as long as it is kept alive."""
        self.timeout_keep_alive_task = None
        if not self._quiet:
            return  # the next answer sets it again
        rest_s = self._quiet_since_s + self.timeout_keep_alive - self.loop.time()
        if rest_s > 0:
            self._wait_for_next(rest_s)
        else:
            super().timeout_keep_alive_handler()

    def _wait_for_next(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
