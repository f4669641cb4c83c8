"""A small HTTP/1.1 client: POST with kept connections, time limits, bounded answers. Nothing is repeated here.

Not a library: this is all that a relay needs, and what counts is known exactly: when a connection is used again, what
ends a wait, and that an answer is read to its end or its connection is thrown away.
"""

import asyncio
import ssl
import time
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

from core.errors import ConfigInvalid

ANSWER_BYTES = 65_536  # head and body
IDLE_S = 4.0  # a connection that rested longer may be closed by its server at any moment


class NoAnswer(Exception):
    """Nothing usable came back: what was asked may or may not have been done."""


class Answer(NamedTuple):
    """What came back; `body` is its beginning."""

    status: int
    retry_after_s: float
    body: bytes


class Target(NamedTuple):
    """Where to."""

    host: str
    port: int
    tls: bool
    authority: str
    path: str  # begins with a slash or is empty; no slash at its end

    @classmethod
    def from_url(cls, url: str, place: str) -> "Target":
        """Raises ConfigInvalid; `place` is the setting that the URL is from."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise ConfigInvalid(f"{place}: is no URL") from None  # its cause may show a part of a password
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in url:
            raise ConfigInvalid(f"{place}: must be http://host or https://host, with or without port and path")
        authority = parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii").decode()
        return cls(parts.hostname, port, parts.scheme == "https", authority, parts.path.rstrip("/"))


class _Connection(asyncio.Protocol):
    """One connection; one exchange at a time."""

    def __init__(self) -> None:
        self.usable = True
        self.free_since_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._retry_after_s = 0.0
        self._read_bytes = 0
        self._whole = False  # the answer's end can be told before the connection's
        self._head_read = False

    async def exchange(self, wire: bytes) -> Answer:
        """Raises NoAnswer."""
        assert self._transport is not None  # noqa: S101 - connected before it is handed out
        self._begin()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(wire)
        return await self._answer

    def drop(self) -> None:
        """Closed at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection makes a Transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._head_read and not self._whole and exc is None:
            self._done()
        self._fail("the connection was closed before the answer")

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.drop()  # nobody asked for this
            return
        self._read_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("the answer is not HTTP")
        if self._read_bytes > ANSWER_BYTES:
            self._fail("the answer is too long")

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(why))
            self.drop()

    def _done(self) -> None:
        answer = Answer(self._parser.get_status_code(), self._retry_after_s, self._body[:500])
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    # Called by the parser.
    def on_header(self, name: bytes, value: bytes) -> None:
        known = name.lower()
        if known == b"retry-after" and value.strip().isdigit():
            self._retry_after_s = float(value)
        self._whole |= known in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._head_read = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            self._head_read = False
            return  # the answer itself is still to come
        self.usable = self.usable and self._parser.should_keep_alive()
        self._done()


class Client:
    """Connections to one target; as many as there are exchanges at a time."""

    def __init__(self, target: Target, connect_s: float, exchange_s: float) -> None:
        """`connect_s` bounds the making of a connection, `exchange_s` a whole exchange with it."""
        self._target = target
        self._connect_s = connect_s
        self.exchange_s = exchange_s
        self._ssl = ssl.create_default_context() if target.tls else None
        self._idle: deque[_Connection] = deque()  # the one that was used last on the right

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Raises NoAnswer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST {self._target.path}{path} HTTP/1.1\r\nhost: {self._target.authority}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
        )
        try:
            async with asyncio.timeout(self.exchange_s):
                connection = self._rested() or await self._connect()
                try:
                    answer = await connection.exchange(head.encode("latin-1") + body)
                except BaseException:
                    connection.drop()
                    raise
        except TimeoutError as exc:
            raise NoAnswer(f"no answer within {self.exchange_s:g} s") from exc
        if connection.usable:
            connection.free_since_s = time.monotonic()
            self._idle.append(connection)
            # After a burst those on the left are never taken again, and a server may keep them for ever.
            while self._idle[0].free_since_s < connection.free_since_s - IDLE_S:
                self._idle.popleft().drop()
        else:
            connection.drop()
        return answer

    async def close(self) -> None:
        """All connections are closed."""
        while self._idle:
            self._idle.pop().drop()

    def _rested(self) -> _Connection | None:
        """The connection that was used last, if it may be used again."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and time.monotonic() - connection.free_since_s < IDLE_S:
                return connection
            connection.drop()
        return None

    async def _connect(self) -> _Connection:
        loop, target = asyncio.get_running_loop(), self._target
        try:
            async with asyncio.timeout(self._connect_s):
                _, made = await loop.create_connection(_Connection, target.host, target.port, ssl=self._ssl)
                return made
        except TimeoutError as exc:
            raise NoAnswer(f"no connection within {self._connect_s:g} s") from exc
        except (OSError, UnicodeError) as exc:
            raise NoAnswer(f"no connection: {exc}") from exc
