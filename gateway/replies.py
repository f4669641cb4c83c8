"""Bytes on the wire: headers and bodies that are the same every time are built once."""

from binascii import hexlify
from datetime import UTC, datetime
from functools import lru_cache
from struct import Struct
from typing import Any

import msgspec
from starlette.types import Scope, Send

from gateway.problems import Problem

JSON = (b"content-type", b"application/json")
PROBLEM = (b"content-type", b"application/problem+json")
REPLAYED = (b"idempotent-replayed", b"true")
CLOSE = (b"connection", b"close")

Headers = list[tuple[bytes, bytes]]


@lru_cache(maxsize=1_024)
def time_text(wall_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds; the orders of one batch share it."""
    return _text(datetime.fromtimestamp(wall_ms / 1000, UTC))


def encode_json(value: Any) -> bytes:
    """A value as JSON, every time in it in the one form of `time_text`; what is finer than a millisecond is cut off."""
    return msgspec.json.encode(_with_time_texts(msgspec.to_builtins(value, builtin_types=(datetime,))))


def _with_time_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_time_texts(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_time_texts(part) for part in value]
    return _text(value) if isinstance(value, datetime) else value


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_LINE_FIRST = b',"http_status":202,"replayed":false,"order_id":"'
_LINE_AGAIN = b',"http_status":202,"replayed":true,"order_id":"'


class OrderReply:
    """The 202 of an order. All but its id and its time to pay is the same for all: these parts are made once."""

    def __init__(self, prefix: str, durability: str) -> None:
        """`prefix`: of the URLs that we give out."""
        self._url = f"{prefix}/v1/orders/".encode()
        self._start = b'{"order_id":"'
        self._middle = b'","status":"accepted","status_url":"' + self._url
        self._durability = durability
        self._pay_by_ms = -1
        self._end = b""  # of the orders of the last batch
        size = len(self.body(bytes(16), 0)[0])  # ids and times are all of one length
        head = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: %d\r\nlocation: %b"
        self._head = head % (size, self._url)
        self._first = b"\r\n\r\n" + self._start
        self._again = b"\r\nidempotent-replayed: true\r\n\r\n" + self._start

    def body(self, order_id: bytes, pay_by_ms: int) -> tuple[bytes, bytes]:
        """The body of a 202, and its Location. A replay gets the same bytes."""
        order = _text_of(order_id)
        return b"".join((self._start, order, self._middle, order, self._end_of(pay_by_ms))), self._url + order

    def whole(self, order_id: bytes, pay_by_ms: int, replayed: bool) -> bytes:
        """Head and body."""
        order = _text_of(order_id)
        between = self._again if replayed else self._first
        return b"".join((self._head, order, between, order, self._middle, order, self._end_of(pay_by_ms)))

    def line(self, key: bytes, order_id: bytes, pay_by_ms: int, replayed: bool) -> bytes:
        """The answer of a line of `orders:batch`; `key`: its request key, in JSON."""
        order = _text_of(order_id)
        status = _LINE_AGAIN if replayed else _LINE_FIRST
        return b"".join((
            b'{"request_key":', key, status, order, self._middle, order, self._end_of(pay_by_ms)
        ))  # fmt: skip

    def _end_of(self, pay_by_ms: int) -> bytes:
        if pay_by_ms != self._pay_by_ms:
            self._end = f'","pay_by":"{time_text(pay_by_ms)}","durability":"{self._durability}"}}'.encode()
            self._pay_by_ms = pay_by_ms
        return self._end


_groups = Struct("8s4s4s4s12s").unpack


def _text_of(order_id: bytes) -> bytes:
    # As core.ids.text_of, in bytes: one string less for each order.
    return b"-".join(_groups(hexlify(order_id)))


async def send_accepted(send: Send, body: bytes, location: bytes, replayed: bool, more: Headers | None = None) -> None:
    """202 with the order. `more`: further headers."""
    headers = [JSON, (b"content-length", b"%d" % len(body)), (b"location", location)]
    if replayed:
        headers.append(REPLAYED)
    if more:
        headers += more
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, status: int, body: bytes, more: Headers | None = None) -> None:
    """A refusal whose body is ready. `more`: further headers."""
    headers = [PROBLEM, (b"content-length", b"%d" % len(body)), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def unread(scope: Scope) -> Headers:
    """What an answer must say that is sent before the body was asked for.

    A client that waits for `100 Continue` now sends its body or does not: the next request cannot be told from it. Any
    other body is on its way; uvicorn drops it as it comes, and the connection stays of use.
    """
    return [CLOSE] if any(name == b"expect" for name, _ in scope["headers"]) else []


async def send_problem(send: Send, found: Problem, retry_after: bytes, more: Headers | None = None) -> None:
    """A problem; a 503 and a 429 say when to come again, a 401 how to be let in. `more`: further headers."""
    body = msgspec.json.encode(found)
    headers = [PROBLEM, (b"content-length", b"%d" % len(body)), *(more or [])]
    if found.status in (429, 503):
        headers.append((b"retry-after", retry_after))
    elif found.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="rushgate"'))
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
