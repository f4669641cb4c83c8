"""The partners' HTTP/1.1 server: requests in, and an answer, silence or a closed connection out.

Not uvicorn: an ASGI application cannot close a connection instead of answering, which is how answers get lost.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

import httptools
import msgspec

REQUEST_BYTES_MAX = 65_536  # head and body
PIPELINED_MAX = 16  # requests of one connection that wait; then reading pauses
CONNECTIONS_MAX = 4_096

_HEADS = {
    s.value: b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: " % (s.value, s.phrase.encode())
    for s in HTTPStatus
}


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request; header names are in lower case."""

    method: bytes
    path: str
    headers: dict[bytes, bytes]
    body: bytes


class Connection(asyncio.Protocol):
    """One client. `handle(request, connection)` must lead to one `reply`, `hold` or `drop`, now or later."""

    def __init__(self, handle: Callable[[Request, "Connection"], None], among: set["Connection"]) -> None:
        self._handle = handle
        self._among = among
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._busy = False
        self._keep_alive = True
        self._closed = False
        self._paused = False
        self._taking = False
        self._unfinished_bytes = 0
        self.on_message_begin()

    def reply(self, status: int, body: bytes) -> None:
        """Answer the request in hand, and take the next one."""
        self._busy = False
        if self._closed or self._transport is None:
            return
        end = b"\r\n\r\n" if self._keep_alive else b"\r\nconnection: close\r\n\r\n"
        self._transport.write(b"%b%d%b%b" % (_HEADS[status], len(body), end, body))
        if not self._keep_alive:
            self._closed = True
            self._transport.close()
        elif not self._taking:
            self._take()

    def hold(self, hold_s: float) -> None:
        """Never answer; close the connection after `hold_s`."""
        if hold_s > 0:
            asyncio.get_running_loop().call_later(hold_s, self.drop)
        else:
            self.drop()

    def drop(self) -> None:
        """Close the connection at once, without an answer."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_server makes a Transport
        self._among.add(self)
        if len(self._among) > CONNECTIONS_MAX:
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._among.discard(self)

    def data_received(self, data: bytes) -> None:
        self._unfinished_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400)
        if self._unfinished_bytes > REQUEST_BYTES_MAX and not self._closed:
            self._refuse(413)
        if len(self._waiting) > PIPELINED_MAX and self._transport is not None and not self._closed:
            self._paused = True
            self._transport.pause_reading()

    def _refuse(self, status: int) -> None:
        self._keep_alive = False
        self._waiting.clear()
        self.reply(status, b'{"error":"the request cannot be read"}')

    def _take(self) -> None:
        """Hand over what waits, one by one; in a loop, since most are answered before `_handle` returns."""
        self._taking = True
        while self._waiting and not self._busy and not self._closed:
            request, self._keep_alive = self._waiting.popleft()
            self._busy = True
            self._handle(request, self)
        self._taking = False
        if self._paused and not self._waiting and not self._closed and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # Called by the parser.
    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        self._unfinished_bytes = 0
        if self._closed:
            return
        path = self._url.decode("latin-1")
        request = Request(self._parser.get_method(), path, self._headers, self._body)
        self._waiting.append((request, self._parser.should_keep_alive()))
        if not self._busy and not self._taking:
            self._take()
