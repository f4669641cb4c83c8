"""POST /v1/campaigns/{campaign}/orders:batch: NDJSON in, NDJSON out, one outcome a line in the same order."""

import asyncio
import logging

import msgspec
from starlette.types import Receive, Scope, Send

from core.errors import Fault, Invalid
from core.flood import SampledLog
from core.model import BatchLine, PlainLine
from core.settings import Settings
from core.wire import log_ids
from gateway.access import Access, Caller
from gateway.admission import Admission, TicketNeeded
from gateway.body import Gone, TooLarge, decode, read_body
from gateway.catalogue import Sale
from gateway.problems import Problem, fault, problem, refusal
from gateway.rate_policy import Standing
from gateway.replies import Headers, OrderReply, send_problem, unread
from gateway.take import Taker, Told
from gateway.tally import NOBODY, PLACE, Tally
from lua.reserve import Ask, Fenced, Outcome, ReserveCode

logger = logging.getLogger("rushgate.gateway")
failed = SampledLog(logger, logging.ERROR, "line failed", with_exception=True)

MAX_LINES = 1_000
NDJSON = (b"content-type", b"application/x-ndjson")

encode = msgspec.json.Encoder().encode
decode_lines = msgspec.json.Decoder(PlainLine).decode_lines
decode_line = msgspec.json.Decoder(BatchLine).decode


class _KeyOnly(msgspec.Struct):
    request_key: str = ""


_decode_key = msgspec.json.Decoder(_KeyOnly).decode


class BatchEndpoint:
    """Answers many orders per request; each line stands for itself."""

    def __init__(self, settings: Settings, access: Access, taker: Taker) -> None:
        self._access = access
        self._admission = Admission(taker.catalogue)
        self.taker = taker
        self._body_bytes = settings.batch_body_bytes
        self._line_bytes = settings.body_bytes
        self.reply = OrderReply(settings.public_url.rstrip("/"), settings.durability)
        self._retry_after = b"%d" % settings.retry_after_s
        self.tally: Tally | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send, campaign: str) -> None:
        """One answer is sent, unless the client has gone."""
        headers = dict(scope["headers"])
        channel = NOBODY
        try:
            try:
                who = self._access.identify(headers.get(b"authorization", b""), scope)
            except Fault as exc:
                return await self._refuse(send, channel, fault(exc), unread(scope))
            if isinstance(who, Caller):
                channel = who.channel
                if who.ticket is not None:
                    only_one = problem("ticket_wrong", "a ticket is for one order at a time, not for orders:batch")
                    return await self._refuse(send, channel, only_one, unread(scope))
            if int(headers.get(b"content-length", b"0")) > self._body_bytes:
                too_large = fault(TooLarge(f"the body has more than {self._body_bytes} bytes"))
                return await self._refuse(send, channel, too_large, unread(scope))
            body = await read_body(receive, self._body_bytes)
            caller = self._access.still(who if isinstance(who, Caller) else who.proved(body))
            channel = caller.channel
            lines = [line for raw in body.split(b"\n") if (line := raw.strip())]
            if not lines:
                raise Invalid("the body has no line: send one order per line")
            if len(lines) > MAX_LINES:
                raise Invalid(f"{len(lines)} lines, at most {MAX_LINES} may be sent at once")
            sale = await self.taker.catalogue.get(campaign)
        except Fault as exc:
            return await self._refuse(send, channel, fault(exc))
        except Gone:
            return None
        answers = await self._take(sale, caller, lines, headers.get(b"traceparent", b""))
        out = b"\n".join(answers) + b"\n"
        start = [NDJSON, (b"content-length", b"%d" % len(out))]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": out})
        return None

    async def _refuse(self, send: Send, channel: str, found: Problem, more: Headers | None = None) -> None:
        """The whole request is answered, and counted, with a problem."""
        self.count(channel, PLACE[found.code])
        await send_problem(send, found, self._retry_after, more)

    def count(self, channel: str, outcome: int) -> None:
        """A line, or a request without any, has got this one of OUTCOMES."""
        if self.tally is not None:
            self.tally.batch[channel][outcome] += 1

    async def _take(self, sale: Sale, caller: Caller, lines: list[bytes], traceparent: bytes = b"") -> list[bytes]:
        """The answers, one a line. All lines are in the queue before the first is answered: they share script calls."""
        channel, access = caller.channel, self._access
        lot = Lot(self, sale, channel, len(lines))
        if self.tally is not None:
            self.tally.batch_lines.add(len(lines))
        if sale.gate:
            try:
                self._admission.check_channel(sale, channel)
            except TicketNeeded as exc:
                for place, line in enumerate(lines):
                    lot.refuse(place, _key_of(line), fault(exc))
                return await lot.answers()
        orders = self._plain(lines)
        for place, line in enumerate(lines):
            order: BatchLine | PlainLine
            try:
                if orders is not None and orders[place].plain(orders[place].request_key):
                    order = orders[place]
                elif len(line) > self._line_bytes:
                    raise TooLarge(f"the line has more than {self._line_bytes} bytes")
                else:
                    order = decode(decode_line, line)
            except Invalid as exc:
                lot.refuse(place, _key_of(line), fault(exc))
            except Fault as exc:
                lot.refuse(place, "", fault(exc))
            else:
                one = Line(lot, place, order)
                try:
                    if access.guards:
                        access.check(caller, sale.campaign, order.buyer_id, order.client_ip)
                    self.taker.start(channel, order.request_key, order, one, traceparent)
                except Fault as exc:
                    one.fail(exc)
        return await lot.answers()

    def _plain(self, lines: list[bytes]) -> list[PlainLine] | None:
        """The lines decoded, all in one call; None = one of them has to be looked at by itself."""
        text = b"\n".join(lines)
        # The decoder takes an object over two lines, or two on one; then some end of a line is in the middle of one.
        if text.count(b"}\n{") != len(lines) - 1 or max(map(len, lines)) > self._line_bytes:
            return None
        try:
            orders = decode_lines(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return orders if len(orders) == len(lines) else None


class Lot:
    """The lines of one request: answers by their place, until none is missing."""

    def __init__(self, endpoint: BatchEndpoint, sale: Sale, channel: str, lines: int) -> None:
        self.endpoint = endpoint
        self.sale = sale
        self.channel = channel
        self.tasks: set[asyncio.Task[None]] = set()
        self._answers = [b""] * lines
        self._missing = lines
        self._full = asyncio.Event()

    def fill(self, place: int, answer: bytes) -> None:
        """The line at `place` has its answer."""
        self._answers[place] = answer
        self._missing -= 1
        if not self._missing:
            self._full.set()

    def refuse(self, place: int, key: str, found: Problem) -> None:
        """The line at `place` is answered with a problem."""
        self.endpoint.count(self.channel, PLACE[found.code])
        self.fill(place, _refused(key, found))

    async def answers(self) -> list[bytes]:
        """All, in the order of the lines."""
        try:
            await self._full.wait()
        finally:
            for task in self.tasks:
                task.cancel()
        return self._answers


class Line(Told):
    """One line under way: gateway.take.Started."""

    __slots__ = ("_lot", "_order", "_place", "_told", "ask", "sale", "since_s", "slot", "standing")
    route = "/v1/campaigns/{campaign}/orders:batch"  # of its span
    ask: Ask
    slot: int
    since_s: float

    def __init__(self, lot: Lot, place: int, order: BatchLine | PlainLine) -> None:
        self.sale = lot.sale
        self._lot = lot
        self._place = place
        self._order = order
        self._told = False
        self.standing: Standing | None = None  # a line has no head to tell it in

    def done(self) -> bool:
        return self._told

    def accepted(self, pay_by_ms: int) -> None:
        key = encode(self._order.request_key)
        self._lot.endpoint.count(self._lot.channel, 0)
        self._fill(self._lot.endpoint.reply.line(key, self.ask.order_id, pay_by_ms, False))

    def tell(self, outcome: Outcome) -> None:
        """The line is answered with this outcome."""
        self._lot.endpoint.count(self._lot.channel, outcome.code)
        key = self._order.request_key
        if outcome.code <= ReserveCode.REPLAYED:
            replayed = outcome.code is ReserveCode.REPLAYED
            self._fill(self._lot.endpoint.reply.line(encode(key), outcome.order_id, outcome.pay_by_ms, replayed))
        else:
            self._fill(_refused(key, refusal(outcome.code, outcome.detail)))

    def fail(self, exc: Exception) -> None:
        """The line is answered with this error."""
        self._told = True
        found = fault(exc) if isinstance(exc, Fault) else problem("internal")
        self._lot.refuse(self._place, self._order.request_key, found)

    def _fill(self, answer: bytes) -> None:
        self._told = True
        self._lot.fill(self._place, answer)

    def finish_later(self, said: Outcome | Fenced) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(said))
        self._lot.tasks.add(task)
        task.add_done_callback(self._lot.tasks.discard)

    async def _finish(self, said: Outcome | Fenced) -> None:
        lot, order = self._lot, self._order
        finish = lot.endpoint.taker.finish
        try:
            self.tell(await finish(lot.sale, lot.channel, order.request_key, order, self.slot, self.ask, said))
        except Fault as exc:
            self.fail(exc)
        except Exception as exc:
            failed(**log_ids(self.ask.order_id, self.ask.held))
            self.fail(exc)


def _key_of(line: bytes) -> str:
    """The key of a line that is wrong elsewhere, so that its sender can tell which one it was."""
    try:
        return _decode_key(line).request_key[:64]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _refused(key: str, found: Problem) -> bytes:
    return b'{"request_key":%s,"http_status":%d,%s' % (
        msgspec.json.encode(key), found.status, msgspec.json.encode(found)[1:],
    )  # fmt: skip
