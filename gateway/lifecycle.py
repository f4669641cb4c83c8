"""What happens to an order after its 202: cancelled, paid; and its trace. The ledger decides: these calls need it."""

import logging
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.desk.orders import OrderDesk
from core.errors import Fault, OrderUnknown
from core.flows.table import Actor
from core.ids import parse
from core.model import Payment
from core.signing import SignatureInvalid, Signer
from gateway.access import Access
from gateway.admin import json_response, problem_response
from gateway.body import Gone, decode, read_body
from gateway.lookup import Lookup
from gateway.problems import fault, problem

logger = logging.getLogger("rushgate.gateway")

BODY_BYTES = 16_384

decode_payment = msgspec.json.Decoder(Payment).decode


class OnItsWay(Fault):
    """The store has the order, the ledger not yet: the same call will do in a moment."""

    status = 503
    code = "on_its_way"
    retryable = True


class Lifecycle:
    """The routes that move orders."""

    def __init__(
        self, access: Access, orders: OrderDesk, lookup: Lookup, signer: Signer | None, retry_after_s: int
    ) -> None:
        """`signer`: knows the payment centre's secrets; None = callbacks are refused."""
        self._access = access
        self._orders = orders
        self._lookup = lookup
        self._signer = signer
        self._retry_after_s = retry_after_s

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/orders/{order_id}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/orders/{order_id}/trace", self.trace, methods=["GET"]),
            Route("/v1/payments/callback", self.payment, methods=["POST"]),
        ]

    def _caller(self, request: Request) -> tuple[Actor, str, str | None] | None:
        """Who acts, as whom the event names them, and the channel whose orders they know (None: all)."""
        authorization = request.headers.get("authorization", "").encode("latin-1")
        if self._access.is_admin(authorization):
            return "operator", "operator", None
        channel = self._access.channel(authorization)
        return ("buyer", f"channel:{channel}", channel) if channel is not None else None

    async def cancel(self, request: Request) -> Response:
        """The order is cancelled, by its buyer through the channel or by an operator; again changes nothing."""
        caller = self._caller(request)
        if caller is None:
            return problem_response(problem("unauthorized"), self._retry_after_s)
        actor, who, channel = caller
        order_id = parse(request.path_params["order_id"])
        try:
            if order_id is None:
                raise OrderUnknown("no such order")
            try:
                await self._orders.act(order_id, "cancel", actor, who, channel)
            except OrderUnknown:
                await self._on_its_way(order_id, channel)
                raise
            return json_response(await self._lookup.find(order_id))
        except Fault as exc:
            return problem_response(fault(exc), self._retry_after_s)

    async def trace(self, request: Request) -> Response:
        """Every step of an order, the oldest first."""
        caller = self._caller(request)
        if caller is None:
            return problem_response(problem("unauthorized"), self._retry_after_s)
        order_id = parse(request.path_params["order_id"])
        try:
            if order_id is None:
                raise OrderUnknown("no such order")
            try:
                steps = await self._orders.trace(order_id, caller[2])
            except OrderUnknown:
                await self._on_its_way(order_id, caller[2])
                raise
        except Fault as exc:
            return problem_response(fault(exc), self._retry_after_s)
        return json_response({"order_id": request.path_params["order_id"], "steps": steps})

    async def payment(self, request: Request) -> Response:
        """The payment is on record and the order moved, once per payment number. Verified before it is decoded."""
        try:
            body = await read_body(request.receive, BODY_BYTES)
            if self._signer is None:
                raise SignatureInvalid("this deployment has no payment secret")
            self._signer.verify(request.scope["headers"], body, time.time())
            payment = decode(decode_payment, body)
            order_id = parse(payment.order_id)
            if order_id is None:
                raise OrderUnknown("no such order")
            try:
                moved = await self._orders.pay(payment, order_id)
            except OrderUnknown:
                await self._on_its_way(order_id, None)
                raise
        except Fault as exc:
            if exc.status != 503:
                logger.warning("payment callback refused", extra={"code": exc.code, "why": exc.detail})
            return problem_response(fault(exc), self._retry_after_s)
        except Gone:
            return Response()  # to nobody
        return json_response(moved)

    async def _on_its_way(self, order_id: bytes, channel: str | None) -> None:
        """Raises OnItsWay if the store has an order that the ledger does not have yet."""
        view = await self._lookup.find(order_id)
        if view is not None and channel in (None, view.channel):
            raise OnItsWay("the order is not in the ledger yet")
