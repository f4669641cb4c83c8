"""Bodies: read within a bound, decoded into typed structs, every way to be wrong named."""

from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.types import Receive

from core.errors import Fault, Invalid
from core.model import explain

T = TypeVar("T")


class TooLarge(Fault):
    status = 413
    code = "too_large"


class Malformed(Fault):
    status = 400
    code = "malformed"


class Gone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(receive: Receive, bound: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it passes `bound` bytes, Gone if the client left."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        parts = [body]
        size = len(body)
        while message.get("more_body", False):
            if size > bound:
                break
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise Gone
    if len(body) > bound:
        raise TooLarge(f"the body has more than {bound} bytes")
    return body


def decode(decoder: Callable[[bytes], T], body: bytes) -> T:
    """The body as its struct. Raises Malformed if it is no JSON, Invalid with the field if it is not as it must be."""
    try:
        return decoder(body)
    except msgspec.ValidationError as exc:
        field, why = explain(exc)
        raise Invalid(why, field) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        why = str(exc) or "the body cannot be decoded"
        raise Malformed(why if body.strip() else "the body is missing") from exc
    except RecursionError as exc:
        raise Malformed("the body is nested too deeply") from exc
