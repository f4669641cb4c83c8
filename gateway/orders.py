"""POST /v1/campaigns/{campaign}/orders, the long way: bare ASGI, decided in the order in which it is cheap.

Plain orders take the short way (gateway/short.py), which gives all others to this one.
"""

import msgspec
from starlette.types import Receive, Scope, Send

from core.errors import Fault, Overloaded
from core.model import OrderRequest
from core.settings import Settings
from gateway.access import Access
from gateway.body import Gone, TooLarge, decode, read_body
from gateway.problems import fault, problem, refusal_of
from gateway.replies import OrderReply, send_accepted, send_problem, send_refusal, unread
from gateway.take import Taker
from lua.reserve import ReserveCode

MAX_KEY = 64
_VISIBLE = bytes(range(0x21, 0x7F))

decode_order = msgspec.json.Decoder(OrderRequest).decode


def valid_key(key: bytes) -> bool:
    """Whether a request key is 1 to 64 visible ASCII characters."""
    return 0 < len(key) <= MAX_KEY and not key.translate(None, _VISIBLE)


class OrderEndpoint:
    """Answers one order per request."""

    def __init__(self, settings: Settings, access: Access, taker: Taker) -> None:
        self._access = access
        self._taker = taker
        self._body_bytes = settings.body_bytes
        self._reply = OrderReply(settings.public_url.rstrip("/"), settings.durability)
        self._retry_after = b"%d" % settings.retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send, campaign: str) -> None:
        """One answer is sent, unless the client has gone. Outcomes and faults alike; nothing is raised for them."""
        authorization = key = b""
        length = 0
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"idempotency-key":
                key = b"two of them" if key and key != value else value  # blanks: no valid key
            elif name == b"content-length":
                length = int(value)  # the HTTP parser let only digits through
        try:
            channel = self._access.channel(authorization)
            if channel is None:
                return await send_problem(send, problem("unauthorized"), self._retry_after, unread(scope))
            if not valid_key(key):
                wrong = "key_invalid" if key else "key_missing"
                return await send_problem(send, problem(wrong), self._retry_after, unread(scope))
            if length > self._body_bytes:
                too_large = fault(TooLarge(f"the body has more than {self._body_bytes} bytes"))
                return await send_problem(send, too_large, self._retry_after, unread(scope))
            body = await read_body(receive, self._body_bytes)
            sale = self._taker.catalogue.sales.get(campaign) or await self._taker.catalogue.get(campaign)
            outcome = await self._taker.take(sale, channel, key.decode(), decode(decode_order, body))
        except Overloaded as exc:
            retry_after = b"%d" % exc.retry_after_s if exc.retry_after_s else self._retry_after
            return await send_problem(send, fault(exc), retry_after)
        except Fault as exc:
            return await send_problem(send, fault(exc), self._retry_after)
        except Gone:
            return None
        if outcome.code <= ReserveCode.REPLAYED:
            answer, location = self._reply.body(outcome.order_id, outcome.pay_by_ms)
            return await send_accepted(send, answer, location, outcome.code is ReserveCode.REPLAYED)
        status, answer = refusal_of(outcome)
        return await send_refusal(send, status, answer)
