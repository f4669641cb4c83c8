"""POST /v1/campaigns/{campaign}/orders:batch: NDJSON in, NDJSON out, one outcome a line in the same order."""

import asyncio

import msgspec
from starlette.types import Receive, Scope, Send

from core.errors import Fault, Invalid
from core.model import BatchLine
from core.settings import Settings
from gateway.access import Access
from gateway.body import Gone, TooLarge, decode, read_body
from gateway.catalogue import Sale
from gateway.problems import Problem, fault, problem, refusal
from gateway.replies import order_body, send_problem, unread
from gateway.take import Taker
from lua.reserve import ReserveCode

MAX_LINES = 1_000
NDJSON = (b"content-type", b"application/x-ndjson")

decode_line = msgspec.json.Decoder(BatchLine).decode


class _KeyOnly(msgspec.Struct):
    request_key: str = ""


_decode_key = msgspec.json.Decoder(_KeyOnly).decode


class BatchEndpoint:
    """Answers many orders per request; each line stands for itself."""

    def __init__(self, settings: Settings, access: Access, taker: Taker) -> None:
        self._access = access
        self._taker = taker
        self._body_bytes = settings.batch_body_bytes
        self._line_bytes = settings.body_bytes
        self._prefix = settings.public_url.rstrip("/")
        self._durability = settings.durability
        self._retry_after = b"%d" % settings.retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send, campaign: str) -> None:
        """One answer is sent, unless the client has gone."""
        headers = dict(scope["headers"])
        try:
            channel = self._access.channel(headers.get(b"authorization", b""))
            if channel is None:
                return await send_problem(send, problem("unauthorized"), self._retry_after, unread(scope))
            if int(headers.get(b"content-length", b"0")) > self._body_bytes:
                too_large = fault(TooLarge(f"the body has more than {self._body_bytes} bytes"))
                return await send_problem(send, too_large, self._retry_after, unread(scope))
            body = await read_body(receive, self._body_bytes)
            lines = [line for line in body.split(b"\n") if line.strip()]
            if not lines:
                raise Invalid("the body has no line: send one order per line")
            if len(lines) > MAX_LINES:
                raise Invalid(f"{len(lines)} lines, at most {MAX_LINES} may be sent at once")
            sale = await self._taker.catalogue.get(campaign)
        except Fault as exc:
            return await send_problem(send, fault(exc), self._retry_after)
        except Gone:
            return None
        # All lines are submitted before the first one is answered, so they share their script calls.
        answers = await asyncio.gather(*(self._line(sale, channel, line) for line in lines))
        out = b"\n".join(answers) + b"\n"
        start = [NDJSON, (b"content-length", b"%d" % len(out))]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": out})
        return None

    async def _line(self, sale: Sale, channel: str, line: bytes) -> bytes:
        key = ""
        try:
            if len(line) > self._line_bytes:
                raise TooLarge(f"the line has more than {self._line_bytes} bytes")
            try:
                order = decode(decode_line, line)
            except Invalid:
                key = _key_of(line)
                raise
            key = order.request_key
            outcome = await self._taker.take(sale, channel, key, order)
        except Fault as exc:
            return _refused(key, fault(exc))
        if outcome.code > ReserveCode.REPLAYED:
            return _refused(key, refusal(outcome.code, outcome.detail))
        body, _ = order_body(self._prefix, self._durability, outcome.order_id, outcome.pay_by_ms)
        replayed = b"true" if outcome.code is ReserveCode.REPLAYED else b"false"
        return b'{"request_key":%s,"http_status":202,"replayed":%s,%s' % (
            msgspec.json.encode(key), replayed, body[1:],
        )  # fmt: skip


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
