"""Bytes on the wire: headers and bodies that are the same every time are built once."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from starlette.types import Scope, Send

from core.ids import text_of
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


def order_body(prefix: str, durability: str, order_id: bytes, pay_by_ms: int) -> tuple[bytes, bytes]:
    """The body of a 202, and its Location. A replay gets the same bytes."""
    order = text_of(order_id)
    url = f"{prefix}/v1/orders/{order}"
    body = (
        f'{{"order_id":"{order}","status":"accepted","status_url":"{url}",'
        f'"pay_by":"{time_text(pay_by_ms)}","durability":"{durability}"}}'
    )
    return body.encode(), url.encode()


async def send_accepted(send: Send, body: bytes, location: bytes, replayed: bool) -> None:
    """202 with the order."""
    headers = [JSON, (b"content-length", b"%d" % len(body)), (b"location", location)]
    if replayed:
        headers.append(REPLAYED)
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, status: int, body: bytes) -> None:
    """A refusal whose body is ready."""
    headers = [PROBLEM, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def unread(scope: Scope) -> Headers:
    """What an answer must say that is sent before the body was asked for.

    A client that waits for `100 Continue` now sends its body or does not: the next request cannot be told from it. Any
    other body is on its way; uvicorn drops it as it comes, and the connection stays of use.
    """
    return [CLOSE] if any(name == b"expect" for name, _ in scope["headers"]) else []


async def send_problem(send: Send, found: Problem, retry_after: bytes, more: Headers | None = None) -> None:
    """A problem; a 503 says when to come again, a 401 how to be let in. `more`: further headers."""
    body = msgspec.json.encode(found)
    headers = [PROBLEM, (b"content-length", b"%d" % len(body)), *(more or [])]
    if found.status == 503:
        headers.append((b"retry-after", retry_after))
    elif found.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="rushgate"'))
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
