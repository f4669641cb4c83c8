"""POST /v1/campaigns/{campaign}/orders, the long way: bare ASGI, decided in the order in which it is cheap.

Plain orders take the short way (gateway/short.py), which gives all others to this one.
"""

import msgspec
from starlette.types import Receive, Scope, Send

from core.errors import Fault, Overloaded, RateLimited
from core.model import OrderRequest
from core.settings import Settings
from gateway.access import Access, Caller
from gateway.admission import Admission, forwarded_of
from gateway.body import Gone, TooLarge, decode, read_body
from gateway.problems import Problem, fault, problem, refusal_of
from gateway.rate_policy import Stand
from gateway.replies import Headers, OrderReply, send_accepted, send_problem, send_refusal, unread
from gateway.take import Taker
from gateway.tally import NOBODY, PLACE, Answers
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
        self._admission = Admission(taker.catalogue, settings.trusted_proxies)
        self._taker = taker
        self._body_bytes = settings.body_bytes
        self._reply = OrderReply(settings.public_url.rstrip("/"), settings.durability)
        self._retry_after = b"%d" % settings.retry_after_s
        self.answers: Answers | None = None  # to be counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send, campaign: str) -> None:
        """One answer is sent, unless the client has gone. Outcomes and faults alike; nothing is raised for them."""
        authorization = key = traceparent = b""
        channel, length, stand = NOBODY, 0, Stand()
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"idempotency-key":
                key = b"two of them" if key and key != value else value  # blanks: no valid key
            elif name == b"traceparent":
                traceparent = b"two of them" if traceparent else value
            elif name == b"content-length":
                length = int(value)  # the HTTP parser let only digits through
        try:
            try:
                who = self._access.identify(authorization, scope)
            except Fault as exc:
                return await self._refuse(send, channel, fault(exc), self._retry_after, unread(scope))
            if isinstance(who, Caller):
                channel = who.channel
            if not valid_key(key):
                wrong = "key_invalid" if key else "key_missing"
                return await self._refuse(send, channel, problem(wrong), self._retry_after, unread(scope))
            if length > self._body_bytes:
                too_large = fault(TooLarge(f"the body has more than {self._body_bytes} bytes"))
                return await self._refuse(send, channel, too_large, self._retry_after, unread(scope))
            body = await read_body(receive, self._body_bytes)
            caller = self._access.still(who if isinstance(who, Caller) else who.proved(body))
            channel = caller.channel
            sale = self._taker.catalogue.sales.get(campaign) or await self._taker.catalogue.get(campaign)
            order = decode(decode_order, body)
            if sale.gate or caller.ticket is not None:
                peer = scope["client"][0] if scope.get("client") else ""
                order = self._admission.check(sale, caller, order, peer, forwarded_of(scope["headers"]))
            if self._access.guards:
                self._access.check(caller, sale.campaign, order.buyer_id, order.client_ip)
            outcome = await self._taker.take(sale, caller.channel, key.decode(), order, traceparent, stand)
        except Overloaded as exc:
            retry_after = b"%d" % exc.retry_after_s if exc.retry_after_s else self._retry_after
            return await self._refuse(send, channel, fault(exc), retry_after)
        except RateLimited as exc:
            return await self._refuse(send, channel, fault(exc), b"%d" % exc.retry_after_s, exc.headers)
        except Fault as exc:
            return await self._refuse(send, channel, fault(exc), self._retry_after)
        except Gone:
            return None
        if self.answers is not None:
            self.answers[channel][outcome.code] += 1
        more = None if stand.standing is None else stand.standing.headers
        if outcome.code <= ReserveCode.REPLAYED:
            answer, location = self._reply.body(outcome.order_id, outcome.pay_by_ms)
            return await send_accepted(send, answer, location, outcome.code is ReserveCode.REPLAYED, more)
        status, answer = refusal_of(outcome)
        return await send_refusal(send, status, answer, more)

    async def _refuse(
        self, send: Send, channel: str, found: Problem, retry_after: bytes, more: Headers | None = None
    ) -> None:
        """Answered, and counted, with what is none of the store's outcomes."""
        if self.answers is not None:
            self.answers[channel][PLACE[found.code]] += 1
        await send_problem(send, found, retry_after, more)
