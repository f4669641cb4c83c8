"""The HTTP protocol of the gateway: uvicorn's, with a bound on all that a client sends and a short way for orders.

uvicorn's httptools protocol keeps header bytes for as long as they come; one connection could fill the memory. And a
request costs it more than an order costs us: a scope, a task, an event, two writes. So an order that is plain goes from
the parser to the queue, and from there to the socket; all else goes uvicorn's way, to the same answers. How many
connections there may be, and how slow, is gateway/edge.py's affair.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.edge import BAD_HTTP, TOO_LARGE, TOO_SLOW, Edge
from gateway.intake import FULL
from gateway.problems import problem
from gateway.short import ShortOrder, ShortWay
from gateway.tally import Tally

HEAD_BYTES = 65_536  # request line and headers that span more than one read, at most; and all trailers
MAX_HEADERS = 100
URL_BYTES = 16_384
CAMPAIGNS, ORDERS, BATCH = b"/v1/campaigns/", b"/orders", b"/orders:batch"
SKIPPED = (
    1 << 20
)  # bytes of a refused body that is not looked at, at most: more goes the long way, and is refused there

LONG, REFUSED, SHORT, CUT = 0, 1, 2, 3  # which way the request goes that comes now; CUT: none, its connection ends
# An offer to speak another protocol, which may be passed over (RFC 9110, 7.8). The parser would take what follows the
# head for that protocol, and the body would be lost: Java's HTTP client offers h2c with its first request.
_upgrade = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)


def overloaded(retry_after_s: int) -> bytes:
    """The whole answer to an order that is refused before it is looked at; the connection stays of use."""
    body = msgspec.json.encode(problem("overloaded", FULL))
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n"
        b"content-length: %d\r\nretry-after: %d\r\n\r\n%b" % (len(body), retry_after_s, body)
    )


class Forgiving:
    """A transport to which may be written when its client has just gone: uvloop's raises until the protocol knows."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        """Sent, unless nobody is there any more."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection with 431 when a request's head is larger than HEAD_BYTES and one read together, or has more
    than MAX_HEADERS lines or URL_BYTES of an address; with 408 when it does not come in time; with 400 if it is none.

    Answers orders with `refused` as long as `full` says that no more may wait, and gives the plain ones to `short_way`,
    if there is one; `serve` sets these and `edge`. One order of a connection is on the short way at a time.
    """

    edge = Edge()

    full: Callable[[], bool] = staticmethod(lambda: False)
    refused = b""
    short_way: ShortWay | None = None
    tally: Tally | None = None
    _in_head = False
    _head_bytes = 0
    _loose = 0  # bytes since the last one of a body that were read by themselves: trailers, words behind a chunk's size
    _way = LONG
    _heads: dict[bytes, bytes]
    _parts: list[bytes]  # of its body
    _quiet = False  # since the last answer no request has begun
    _quiet_since_s = 0.0
    _receiving = False  # a request has begun and is not here yet
    _fresh = True  # no request has begun yet
    _last: bytes | None = None  # what is said when the answers under way are given, and the connection closed
    _stuck = _unread = 0  # looks of the edge at a request, or a first request, that does not come; at unread answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.edge.enter(self)

    def slow(self, request_ticks: int, idle_ticks: int) -> bool:
        """Whether the client had its time, and is cut off now. Called once a tick."""
        if self.transport.is_closing():
            return False
        if self._receiving or self._fresh:
            self._stuck += 1
            if self._stuck > (request_ticks if self._receiving else idle_ticks):
                return self._cut(TOO_SLOW if self._receiving else b"")
        if not self.flow.write_paused:
            self._unread = 0
            return False
        self._unread += 1
        if self._unread <= request_ticks:
            return False
        self.transport.abort()  # it would never read a last word either
        return True

    def _cut(self, last: bytes) -> bool:
        """The connection ends with this answer, behind those that are under way. True."""
        self._receiving = self._fresh = False
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if getattr(cycle, "more_body", False):  # it waits for a body that will not come, and may say nothing
                cycle.disconnected = True
                cycle.message_event.set()
                if self.pipeline:
                    self.pipeline.popleft()  # its turn had not come
                else:
                    cycle = None
            if cycle is not None:
                self._last = last
                self.flow.pause_reading()
                return True
        self.transport.write(last)
        self.transport.close()
        return True

    def data_received(self, data: bytes) -> None:
        if self._last is not None:
            return  # it comes behind what was cut off, and must not cut off what is still under way
        # What begins in this very read is as large as a read at most; what goes on from earlier ones is counted.
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._cut(TOO_LARGE)
                return
        elif self._receiving:
            if self._loose > HEAD_BYTES:
                self._cut(TOO_LARGE)
                return
            self._loose += len(data)
        elif b"pgrade" in data:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _upgrade.sub(b"\r\nx-upgrade:", head) + end + rest
        # Not uvicorn's, which writes a line into the log for each.
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._cut(BAD_HTTP)
        except httptools.HttpParserUpgrade:
            # CONNECT, or an offer whose head came in pieces: no request can follow.
            if self.cycle is not None:
                self.cycle.keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.edge.leave(self)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def on_message_begin(self) -> None:
        # Not uvicorn's: the scope that it makes is for requests that go the long way.
        self._in_head = self._receiving = True
        self._quiet = self._fresh = False
        self._head_bytes = self._loose = self._stuck = 0
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer: nobody vouches for it as for a header, and it is not kept
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> Any:
        self._in_head = False
        # What is pipelined behind a last answer: its own would come before that one, and be taken for it.
        if self._last is not None or self.transport.is_closing():
            self._way = CUT
            return None
        if len(self.headers) > MAX_HEADERS or len(self.url) > URL_BYTES:
            self._way = CUT
            return self._cut(TOO_LARGE)
        self._way = self._choose()
        if self._way == LONG:
            if self._is_framed_oddly():
                self._way = CUT
                return self._cut(BAD_HTTP)
            self._begin_long()
        return None

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        if self._way == SHORT:
            self._parts.append(body)
        elif self._way == LONG:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving = False
        way, self._way = self._way, LONG
        if way == LONG:
            return super().on_message_complete()
        if way == CUT:
            return None
        if way == REFUSED:
            if self.tally is not None:
                self.tally.refused += 1
            cors = self.short_way.cors if self.short_way is not None else None
            lines = cors.lines(self._heads.get(b"origin", b"")) if cors is not None else b""
            self.transport.write(self.refused.replace(b"\r\n", lines, 1) if lines else self.refused)
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

    def _is_framed_oddly(self) -> bool:
        """Another version than HTTP/1, which the parser takes, or a transfer coding beside `chunked`: nothing here
        undoes one, and a proxy in front may see the end of such a request elsewhere. Never so on the short way."""
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        return codings not in ([], [b"chunked"]) or not self.parser.get_http_version().startswith("1.")

    def _begin_long(self) -> None:
        """The request goes uvicorn's way from here on."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers = self.scope["headers"] = headers
        self.expect_100_continue = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers)
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, Forgiving(self.transport))

    # One timer for the life of a connection, in place of a new one after each answer.

    def _unset_keepalive_if_required(self) -> None:
        """The timer stays: it looks by itself whether the connection is quiet."""

    def on_response_complete(self) -> None:
        """What is pipelined behind the answer begins, or the connection waits for its next request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._last is not None and not self.pipeline:
            self.transport.write(self._last)
            self.transport.close()
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
