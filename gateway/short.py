"""The short way of a plain order: from the parser into the queue, from the store's answer into the socket.

Nothing is decided here that the long way (gateway/orders.py) decides otherwise: what is not plain (a wrong key, a body
that cannot be read, a campaign not known yet) is handed to it whole.
"""

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from core.errors import Fault, Invalid, Overloaded, RateLimited, StoreUnavailable
from core.flood import SampledLog
from core.model import PlainOrder
from core.settings import Settings
from core.wire import log_ids
from gateway.access import Access, Caller
from gateway.admission import Admission
from gateway.catalogue import Sale
from gateway.cors import Cors
from gateway.orders import MAX_KEY
from gateway.problems import Problem, fault, problem, refusal
from gateway.rate_policy import Standing
from gateway.replies import OrderReply
from gateway.take import Taker, Told
from gateway.tally import PLACE, Answers
from lua.reserve import Ask, Fenced, Outcome, ReserveCode

if TYPE_CHECKING:
    from gateway.http import BoundedProtocol

logger = logging.getLogger("rushgate.gateway")
short_failed = SampledLog(logger, logging.ERROR, "short way failed", with_exception=True)
failed = SampledLog(logger, logging.ERROR, "request failed", with_exception=True)

REPLAYED = ReserveCode.REPLAYED
# What the long way says more about: nothing was queued.
NOT_PLAIN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Invalid, Overloaded)
decode_plain = msgspec.json.Decoder(PlainOrder).decode
LAST = b"\r\nconnection: close\r\n"


def problem_reply(found: Problem, retry_after_s: int, more: bytes = b"") -> bytes:
    """A problem with its head, as the long way sends it. `more`: further lines of the head."""
    body = msgspec.json.encode(found)
    if found.status in (429, 503):
        more = b"retry-after: %d\r\n%b" % (retry_after_s, more)
    return b"%bcontent-type: application/problem+json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        STATUS_LINE[found.status], len(body), more, body,
    )  # fmt: skip


@lru_cache(maxsize=4_096)
def refusal_reply(code: ReserveCode, detail: str) -> bytes:
    """The whole answer of a refused order, made once."""
    return problem_reply(refusal(code, detail), 0)


class ShortWay:
    """What the orders of a process share."""

    def __init__(self, settings: Settings, access: Access, taker: Taker) -> None:
        self.taker = taker
        self.body_bytes = settings.body_bytes
        self.retry_after_s = settings.retry_after_s
        self.reply = OrderReply(settings.public_url.rstrip("/"), settings.durability)
        self._caller = access.caller
        self._access = access
        self._admission = Admission(taker.catalogue, settings.trusted_proxies)
        self.cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self.sales = taker.catalogue.sales
        self.answers: Answers | None = None  # to be counted

    def take(self, protocol: "BoundedProtocol", campaign: bytes, heads: dict[bytes, bytes], body: bytes) -> bool:
        """Whether the order is answered or in the queue; otherwise nothing has happened: it goes the long way."""
        sale = self.sales.get(campaign.decode("latin-1"))
        caller = self._caller(heads.get(b"authorization", b"")) or self._signer(protocol.url, heads, body)
        key = heads.get(b"idempotency-key", b"")
        if sale is None or caller is None or not 0 < len(key) <= MAX_KEY or len(body) > self.body_bytes:
            return False
        try:
            order = decode_plain(body)
            request_key = key.decode()
            if not order.plain(request_key):
                return False
            if sale.gate or caller.ticket is not None:
                peer = protocol.client[0] if protocol.client else ""
                order = self._admission.check(sale, caller, order, peer, heads.get(b"x-forwarded-for", b""))
            if self._access.guards:
                self._access.check(caller, sale.campaign, order.buyer_id, order.client_ip)
            short = ShortOrder(self, protocol, sale, caller.channel, request_key, order)
            if self.cors is not None:
                short.cors = self.cors.lines(heads.get(b"origin", b""))
            self.taker.start(caller.channel, request_key, order, short, heads.get(b"traceparent", b""))
        except NOT_PLAIN:
            return False
        except Exception:
            short_failed()  # else the parser would call it bad HTTP
            return False
        if not short.response_complete:
            protocol.begin_short(short)
        return True

    def _signer(self, url: bytes, heads: dict[bytes, bytes], body: bytes) -> Caller | None:
        """Who signed the request; None: nobody we know, or not well."""
        try:
            claim = self._access.claim(b"POST", url, heads)
            return None if claim is None else claim.proved(body)
        except Fault:
            return None


class _Wakes:
    def set(self) -> None:
        """Nothing waits."""


class ShortOrder(Told):
    """One order under way: gateway.take.Started, and to uvicorn a request in flight."""

    __slots__ = (
        "_channel", "_key", "_order", "_protocol", "_way", "ask", "cors", "disconnected", "keep_alive",
        "response_complete", "sale", "since_s", "slot", "standing",
    )  # fmt: skip
    message_event = _Wakes()
    slot: int
    ask: Ask
    since_s: float

    def __init__(
        self, way: ShortWay, protocol: "BoundedProtocol", sale: Sale, channel: str, key: str, order: PlainOrder
    ) -> None:
        self._way = way
        self._protocol = protocol
        self.sale = sale
        self._channel = channel
        self._key = key
        self._order = order
        self.cors = b""  # what a browser wants to read first
        self.standing: Standing | None = None  # how it stands with its rate limits
        self.disconnected = self.response_complete = False
        self.keep_alive = True

    def done(self) -> bool:
        """Whether it has its answer. Never for a client that is gone: others ask for the order by its key."""
        return self.response_complete

    def accepted(self, pay_by_ms: int) -> None:
        answers = self._way.answers
        if answers is not None:
            answers[self._channel][0] += 1
        self._write(self._way.reply.whole(self.ask.order_id, pay_by_ms, False))

    def fail(self, exc: Exception) -> None:
        found = fault(exc) if isinstance(exc, Fault) else problem("internal")
        answers = self._way.answers
        if answers is not None:
            answers[self._channel][PLACE[found.code]] += 1
        self.standing, more = None, b""  # the limits let it through, and then something else went wrong
        own_s = exc.retry_after_s if isinstance(exc, Overloaded | RateLimited) else 0
        if isinstance(exc, RateLimited):
            more = b"".join(b"%b: %b\r\n" % header for header in exc.headers)
        return self._write(problem_reply(found, own_s or self._way.retry_after_s, more))

    def tell(self, outcome: Outcome) -> None:
        """The client has this outcome."""
        answers = self._way.answers
        if answers is not None:
            answers[self._channel][outcome.code] += 1
        if outcome.code <= REPLAYED:
            replayed = outcome.code is REPLAYED
            self._write(self._way.reply.whole(outcome.order_id, outcome.pay_by_ms, replayed))
        else:
            self._write(refusal_reply(outcome.code, outcome.detail))

    def _write(self, reply: bytes) -> None:
        self.response_complete = True
        protocol = self._protocol
        transport = protocol.transport
        if self.disconnected or transport.is_closing():
            return
        if self.standing is not None:
            reply = reply.replace(b"\r\n", b"\r\n" + self.standing.lines, 1)
        if self.cors:
            reply = reply.replace(b"\r\n", self.cors, 1)
        if self.keep_alive and not protocol.server_state.default_headers:
            transport.write(reply)
        else:  # the server stops
            transport.write(reply.replace(b"\r\n", LAST, 1))
            transport.close()
        protocol.end_short(self)

    def finish_later(self, said: Outcome | Fenced) -> None:
        tasks = self._protocol.server_state.tasks
        task = self._protocol.loop.create_task(self._finish(said))
        tasks.add(task)  # the server waits for it when it stops
        task.add_done_callback(tasks.discard)

    async def _finish(self, said: Outcome | Fenced) -> None:
        """Answered, whatever comes."""
        finish = self._way.taker.finish
        try:
            self.tell(await finish(self.sale, self._channel, self._key, self._order, self.slot, self.ask, said))
        except Fault as exc:
            self.fail(exc)
        except asyncio.CancelledError:
            # Nobody else cancels it: this process stops, and its grace is over.
            self.fail(StoreUnavailable("the gateway stops"))
        except Exception as exc:
            failed(**log_ids(self.ask.order_id, self.ask.held))
            self.fail(exc)
