"""Who calls a route that is not an order's: by its header, or by the signature over all of it."""

from starlette.requests import Request
from starlette.types import Message, Receive

from gateway.access import Access, Caller
from gateway.body import read_body

SIGNED_BYTES = 65_536  # of the body of a signed request; orders and batches have bounds of their own


async def caller_of(access: Access, request: Request) -> tuple[Caller, Request]:
    """Who calls, and the request to go on with: the body of a signed one was read, and can be read again.

    Raises: Unauthorized, SignatureInvalid, StoreUnavailable; TooLarge; Gone.
    """
    who = access.identify(request.headers.get("authorization", "").encode("latin-1"), request.scope)
    if isinstance(who, Caller):
        return who, request
    body = await read_body(request.receive, SIGNED_BYTES)
    return who.proved(body), Request(request.scope, _again(body, request.receive))


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what really comes."""
    rest = [body]

    async def once_more() -> Message:
        return {"type": "http.request", "body": rest.pop(), "more_body": False} if rest else await receive()

    return once_more
