"""The trace of an order as it is taken: its caller's, carried on; and the first spans of the few that are recorded."""

import time
from collections.abc import Callable
from http import HTTPStatus

from core.errors import Fault
from core.ids import text_of
from core.trace_context import TraceContext, parse_traceparent, unrecorded
from core.tracing import Clock, Span, Tracer, new_span_id
from core.wire import trace_in, with_trace
from gateway.intake import Waiting
from gateway.problems import fault, refusal
from lua.reserve import Ask, Fenced, Outcome, ReserveCode

ROUTE = "/v1/campaigns/{campaign}/orders"  # of what does not name its own


def traced(ask: Ask, trace: str) -> Ask:
    """The same request, whose order carries this trace."""
    held, placed = with_trace(ask.held, trace), ask.placed and with_trace(ask.placed, trace)
    return Ask._make((*ask[:3], held, placed, *ask[5:]))  # a third of the time of _replace


def as_before(ask: Ask, before: Ask) -> Ask:
    """A request that is made once more has the trace that it had `before`."""
    trace = trace_in(before.held)
    return traced(ask, trace) if trace else ask


class OrderTraces:
    """Gives orders their traces. Only asked if the caller sent one, or there is a tracer."""

    def __init__(self, tracer: Tracer | None, sent_s: Callable[[], float]) -> None:
        """`sent_s`: when the batch that is being answered was sent to the store, monotonic."""
        self._tracer = tracer
        self._sent_s = sent_s

    def follow(self, started: Waiting, traceparent: bytes) -> Waiting:
        """What is to wait in the place of `started`, whose `ask` carries its trace if it has one of its own.

        `traceparent`: the header; b"" = there was none. One that is not valid is none.
        """
        ask, tracer = started.ask, self._tracer
        if traceparent and (plain := unrecorded(traceparent)):
            started.ask = traced(ask, plain)
            return started
        caller = parse_traceparent(traceparent) if traceparent else None
        if tracer is not None and tracer.wants(ask.order_id, caller):
            trace_id = ask.order_id if caller is None else caller.trace_id
            own = TraceContext(trace_id, new_span_id(), True)
            started.ask = traced(ask, own.traceparent)
            return Followed(started, tracer, own, b"" if caller is None else caller.span_id, self._sent_s)
        if caller is not None:
            # Beyond the bound nobody is to record what we do not.
            passed_on = caller if tracer is None else caller._replace(sampled=False)
            started.ask = traced(ask, passed_on.traceparent)
        return started


class Followed:
    """An order under way whose spans are recorded when it has its answer: gateway.intake.Waiting."""

    __slots__ = ("_began_s", "_inner", "_own", "_parent", "_sent_s", "_tracer", "ask", "sale", "since_s", "slot")
    since_s: float

    def __init__(
        self, inner: Waiting, tracer: Tracer, own: TraceContext, parent: bytes, sent_s: Callable[[], float]
    ) -> None:
        self._inner = inner
        self._tracer = tracer
        self._own = own
        self._parent = parent
        self._sent_s = sent_s
        self._began_s = time.monotonic()
        self.sale = inner.sale
        self.slot = inner.slot
        self.ask = inner.ask

    def done(self) -> bool:
        return self._inner.done()

    def accepted(self, pay_by_ms: int) -> None:
        self._inner.accepted(pay_by_ms)
        self._record(HTTPStatus.ACCEPTED, "accepted", self.ask.order_id)

    def set_result(self, outcome: Outcome) -> None:
        self._inner.set_result(outcome)
        if outcome.code <= ReserveCode.REPLAYED:
            self._record(HTTPStatus.ACCEPTED, outcome.code.name.lower(), outcome.order_id)
        elif outcome.code is ReserveCode.NO_SKU:
            self._record(HTTPStatus.SERVICE_UNAVAILABLE, "no_sku", b"", "the store has lost a SKU")
        else:
            self._record(refusal(outcome.code, outcome.detail).status, outcome.code.name.lower())

    def set_exception(self, exc: Exception) -> None:
        self._inner.set_exception(exc)
        if isinstance(exc, Fenced):
            self._record(0, "asked_again")  # under another epoch, perhaps; what comes of it is not ours to see
        else:
            found = fault(exc) if isinstance(exc, Fault) else None
            self._record(found.status if found else 500, found.code if found else "internal", b"", str(exc))

    def _record(self, status: int, outcome: str, order_id: bytes = b"", error: str = "") -> None:
        """The span of the order, and below it its wait in the queue and the call of the script."""
        own, tracer = self._own, self._tracer
        clock, sent_s = Clock(time.monotonic()), self._sent_s()
        began_ns, route = clock.at(self._began_s), getattr(self._inner, "route", ROUTE)
        attributes: dict[str, str | int | float | bool] = {
            "http.request.method": "POST",
            "http.route": route,
            "rushgate.campaign": self.sale.campaign,
            "rushgate.outcome": outcome,
            "rushgate.shard": self.sale.shards[self.slot],
        }
        if status:
            attributes["http.response.status_code"] = int(status)
        if order_id:
            attributes["rushgate.order_id"] = text_of(order_id)
        tracer.record(Span(f"POST {route}", "server", own, self._parent, began_ns, clock.now_ns, attributes, (), error))
        # A fault may come without a batch: then the time of the last one is before this order began.
        sent_ns = clock.at(sent_s) if sent_s >= self._began_s else clock.now_ns
        below = tracer.span_below
        tracer.record(Span("queue", "internal", below(own), own.span_id, began_ns, sent_ns, {}))
        if sent_s >= self._began_s:
            store = {"db.system.name": "redis", "db.operation.name": "reserve"}
            tracer.record(Span("reserve", "client", below(own), own.span_id, sent_ns, clock.now_ns, store, (), error))
