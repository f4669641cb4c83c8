"""The spans of workers. A batch is no part of any order's trace: it has one of its own, linked with theirs."""

import time
from collections.abc import Sequence

from core.ids import text_of
from core.trace_context import TraceContext, parse_traceparent
from core.tracing import MAX_LINKS, Span, Tracer, Value
from workers.entries import OrderRow
from workers.outbox import Message

BATCH_WRITE, WRITE = "ledger batch", "ledger write"


class BatchWrite:
    """The transaction of a batch of orders, some of which are traced."""

    def __init__(self, tracer: Tracer, rows: Sequence[OrderRow]) -> None:
        self._tracer = tracer
        self._orders = len(rows)
        self._traced = [
            (r, c) for r in rows if r.placed.trace and (c := parse_traceparent(r.placed.trace)) and c.sampled
        ]
        self._began_ns = time.time_ns() if self._traced else 0

    def over(self, written: int, dead: int, error: str = "") -> None:
        """The spans are recorded; none if no order of the batch is traced. `error`: why it was not committed."""
        if not self._traced:
            return
        now_ns, record = time.time_ns(), self._tracer.record
        own = self._tracer.new_trace()
        numbers: dict[str, Value] = {
            "rushgate.orders": self._orders, "rushgate.written": written, "rushgate.dead": dead,
            "db.system.name": "postgresql",
        }  # fmt: skip
        links = [context for _, context in self._traced[:MAX_LINKS]]
        record(Span(BATCH_WRITE, "internal", own, b"", self._began_ns, now_ns, numbers, links, error))
        for row, context in self._traced:
            attributes: dict[str, Value] = {
                "rushgate.order_id": text_of(row.order_id),
                "rushgate.shard": row.shard,
                "rushgate.waited_ms": max(0, self._began_ns // 1_000_000 - row.header.accepted_ms),
            }
            below = self._tracer.span_below(context)
            record(Span(WRITE, "consumer", below, context.span_id, self._began_ns, now_ns, attributes, (own,), error))


class PartnerCall:
    """One attempt to tell a partner something about an order that is traced."""

    def __init__(self, tracer: Tracer, order: TraceContext, partner: str, topic: str) -> None:
        self.context = tracer.span_below(order)
        self._tracer = tracer
        self._parent = order.span_id
        self._partner = partner
        self._topic = topic
        self._began_ns = time.time_ns()

    def over(self, message: Message, what: str, text: str | None) -> None:
        """The attempt has ended: `what` became of the message, and why."""
        attributes: dict[str, Value] = {
            "http.request.method": "POST",
            "rushgate.order_id": text_of(message.order_id.bytes),
            "rushgate.partner": self._partner,
            "rushgate.topic": self._topic,
            "rushgate.attempt": message.attempts,
            "rushgate.waited_ms": message.waited_ms,
            "rushgate.outcome": what,
        }
        error = "" if what == "done" else f"{what}: {text or ''}"
        name = f"POST /{self._partner}/{self._topic}"
        self._tracer.record(
            Span(name, "client", self.context, self._parent, self._began_ns, time.time_ns(), attributes, (), error)
        )


def moved(tracer: Tracer, name: str, began_ns: int, orders: int, traced: Sequence[tuple[bytes, str]]) -> None:
    """A transaction that moved many orders is recorded, and in the trace of each one that is traced that it was moved.

    `traced`: order ids and traceparents.
    """
    found = [(i, c) for i, text in traced if (c := parse_traceparent(text)) is not None and c.sampled]
    if not found:
        return
    now_ns, own = time.time_ns(), tracer.new_trace()
    links = [context for _, context in found[:MAX_LINKS]]
    numbers: dict[str, Value] = {"rushgate.orders": orders, "db.system.name": "postgresql"}
    tracer.record(Span(f"{name} batch", "internal", own, b"", began_ns, now_ns, numbers, links))
    for order_id, context in found:
        below, attributes = tracer.span_below(context), {"rushgate.order_id": text_of(order_id)}
        tracer.record(Span(name, "internal", below, context.span_id, began_ns, now_ns, attributes, (own,)))
