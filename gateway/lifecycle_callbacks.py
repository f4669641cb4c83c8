"""What others report of an order: the payment centre and the partners. Verified before it is decoded."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.desk.orders import PARTNERS, Moved, OrderDesk
from core.errors import Fault, OrderUnknown
from core.flood import SampledLog
from core.flows.table import Actor
from core.ids import parse
from core.model import PartnerReport, Payment
from core.signing import SignatureInvalid, Signer
from core.trace_context import trace_id_of
from gateway.admin import json_response
from gateway.body import Gone, decode, read_body
from gateway.lifecycle_calls import Calls
from gateway.traced_calls import ORDER_ID

logger = logging.getLogger("rushgate.gateway")
refused = SampledLog(logger, logging.WARNING, "callback refused", burst=5)

BODY_BYTES = 16_384

decode_payment = msgspec.json.Decoder(Payment).decode
decode_report = msgspec.json.Decoder(PartnerReport).decode
ACTORS: dict[str, Actor] = {actor: actor for actor in get_args(Actor) if actor in PARTNERS}


class Callbacks:
    """The routes of those who call back."""

    def __init__(self, calls: Calls, orders: OrderDesk, payment: Signer | None, partner: Signer | None) -> None:
        self._calls = calls
        self._orders = orders
        self._payment = payment
        self._partner = partner

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/payments/callback", self.payment, methods=["POST"]),
            Route("/v1/partners/{partner}/callback", self.partner, methods=["POST"]),
        ]

    async def payment(self, request: Request) -> Response:
        """The payment or the refund is on record and the order moved, once per number."""

        def carry_out(body: bytes) -> tuple[str, Callable[[bytes], Awaitable[Moved]]]:
            payment = decode(decode_payment, body)
            return payment.order_id, lambda order_id: self._orders.pay(payment, order_id)

        return await self._take(request, self._payment, carry_out)

    async def partner(self, request: Request) -> Response:
        """The order has made the step that a partner reports; again changes nothing."""
        partner = ACTORS.get(request.path_params["partner"])
        if partner is None:
            return self._calls.refused("not_found")

        def carry_out(body: bytes) -> tuple[str, Callable[[bytes], Awaitable[Moved]]]:
            report = decode(decode_report, body)
            return report.order_id, lambda order_id: self._orders.report(order_id, partner, report.action)

        return await self._take(request, self._partner, carry_out)

    async def _take(
        self,
        request: Request,
        signer: Signer | None,
        carry_out: Callable[[bytes], tuple[str, Callable[[bytes], Awaitable[Moved]]]],
    ) -> Response:
        order_id: bytes | None = None
        text = message_id = ""  # once verified: who has money for an order that is gone finds both in the log
        try:
            body = await read_body(request.receive, BODY_BYTES)
            if signer is None:
                raise SignatureInvalid("this deployment has no secret for it")
            message_id = signer.verify(request.scope["headers"], body, time.time())
            text, move = carry_out(body)
            order_id = parse(text)
            if order_id is None:
                raise OrderUnknown("no such order")
            request.scope[ORDER_ID] = order_id
            return json_response(await move(order_id))
        except Fault as exc:
            known = isinstance(exc, OrderUnknown) and order_id is not None
            why = await self._calls.unknown(order_id, None, exc) if known and order_id is not None else exc
            if why.status != 503:
                await self._log(request.url.path, why, text, message_id, order_id)
            return self._calls.failed(why)
        except Gone:
            return Response()  # to nobody

    async def _log(self, path: str, why: Fault, text: str, message_id: str, order_id: bytes | None) -> None:
        """Why a callback was refused: each one whose sender we know, of the others one a second."""
        fields = {"path": path, "code": why.code, "why": why.detail}
        if not text:
            refused(path, **fields)
            return
        fields |= {"order_id": text[:100], "message_id": message_id}
        if order_id is not None:
            try:
                fields["trace_id"] = (await self._orders.context(order_id)).trace_id.hex()
            except Fault:
                fields["trace_id"] = trace_id_of(order_id)
        logger.warning("callback refused", extra=fields)
