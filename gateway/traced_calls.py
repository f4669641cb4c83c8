"""Spans of the calls that move orders after their 202: cancel, refunds, callbacks. There only where there is a tracer.

Such a span belongs to the trace of its order, whoever calls: one trace tells the whole story. A caller's own trace is
linked, if it is another one.
"""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.desk.orders import OrderDesk
from core.errors import Fault
from core.ids import parse, text_of
from core.trace_context import HEADER, TraceContext, parse_traceparent
from core.tracing import Span, Tracer, Value

ORDER_ID = "rushgate.order_id"  # in a scope: the order of a call whose path does not tell it
MOVING = ("POST", "PATCH")


class TracedCalls:
    """The ASGI application that it is given, and a span for each call that moves an order which is traced."""

    def __init__(self, app: ASGIApp, tracer: Tracer, orders: OrderDesk) -> None:
        self._app = app
        self._tracer = tracer
        self._orders = orders

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in MOVING:
            return await self._app(scope, receive, send)
        began_ns, status = time.time_ns(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, receive, noting)
        # The client has its answer: nobody waits for what follows.
        params = scope.get("path_params") or {}
        order_id = scope.get(ORDER_ID) or parse(params.get("order_id", ""))
        if order_id is not None and status != 503:
            await self._record(scope, params, order_id, status, began_ns, time.time_ns())
        return None

    async def _record(
        self, scope: Scope, params: dict[str, str], order_id: bytes, status: int, began_ns: int, now_ns: int
    ) -> None:
        given = [value for name, value in scope["headers"] if name == HEADER]
        caller = parse_traceparent(given[0]) if len(given) == 1 else None
        try:
            order = await self._orders.context(order_id)
        except Fault:
            return  # the order's story is in the ledger all the same
        found = self._place(order_id, order, caller)
        if found is None:
            return
        parent, links = found
        path: str = scope["path"]
        for name, value in params.items():
            path = path.replace(f"/{value}", f"/{{{name}}}", 1)
        attributes: dict[str, Value] = {
            "http.request.method": scope["method"],
            "http.route": path,
            "http.response.status_code": status,
            "rushgate.order_id": text_of(order_id),
        }
        own = self._tracer.span_below(parent)
        name, error = f"{scope['method']} {path}", "an error of ours" if status >= 500 else ""
        span = Span(name, "server", own, parent.span_id, began_ns, now_ns, attributes, links, error)
        self._tracer.record(span)

    def _place(
        self, order_id: bytes, order: TraceContext, caller: TraceContext | None
    ) -> tuple[TraceContext, tuple[TraceContext, ...]] | None:
        """Below which span, with which links; None = the call is not traced."""
        if order.sampled:
            if caller is None:
                return order, ()
            same = caller.trace_id == order.trace_id
            return (caller._replace(sampled=True), ()) if same else (order, (caller,))
        if caller is not None and self._tracer.wants(order_id, caller):
            return caller, ()
        return None
