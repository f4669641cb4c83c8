"""Spans of orders, on their way to who collects them. Nothing here waits, and nothing here can stop an order.

Spans are recorded when they are over, as plain values, into a bounded queue; a thread of its own carries them away
(core/trace_sinks.py). What finds no room is counted and gone. Without tracing there is no Tracer: `None` is all that
the hot path looks at.
"""

import logging
import random
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from core.flood import SampledLog
from core.metrics import Row
from core.trace_context import TraceContext

logger = logging.getLogger("rushgate.tracing")

MAX_QUEUED = 8_192  # spans; some 8 MB
BATCH = 512  # spans in one export, at most
PAUSE_S = 0.5  # between two exports, unless a batch is full before
CLOSE_S = 2.0  # that the end of a process waits for its last spans
MAX_LINKS = 128

Kind = Literal["server", "client", "consumer", "internal"]
Value = str | int | float | bool


class Span(NamedTuple):
    """A piece of work that is over. Times in ns since 1970."""

    name: str  # of a few: what differs from order to order is an attribute
    kind: Kind
    context: TraceContext
    parent: bytes  # span id; b"" = it is the root of its trace
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    links: Sequence[TraceContext] = ()
    error: str = ""  # "" = it went well


class Sink(Protocol):
    """Where spans go. Used from one thread; may wait, and raise."""

    def write(self, spans: Sequence[Span]) -> None:
        """The spans are there. Raises Exception if they are not."""

    def close(self) -> None:
        """Whatever waits in `write` gives up soon."""


class Exporter:
    """The queue and its thread."""

    def __init__(self, sink: Sink, most: int = MAX_QUEUED) -> None:
        """`most`: spans that may wait."""
        self._sink = sink
        self._most = most
        self._queue: deque[Span] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._failed = SampledLog(logger, logging.WARNING, "spans not exported", every_s=30.0)
        self.exported = 0  # spans
        self.dropped = 0  # spans: no room, or not taken
        self._thread = threading.Thread(target=self._run, name="span exporter", daemon=True)
        self._thread.start()

    def put(self, span: Span) -> None:
        """The span is in the queue, or counted as dropped."""
        queue = self._queue
        if len(queue) >= self._most:
            self.dropped += 1
            return
        queue.append(span)
        if len(queue) == BATCH:
            self._wake.set()

    def close(self, within_s: float = CLOSE_S) -> None:
        """What waited is exported, if that takes no longer than `within_s`; no more is taken up."""
        self._stopping = True
        self._wake.set()
        self._thread.join(within_s)
        self._sink.close()

    def _run(self) -> None:
        while True:
            self._wake.wait(PAUSE_S)
            self._wake.clear()
            stopping = self._stopping
            while self._queue:
                self._export([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
            if stopping:
                return

    def _export(self, spans: list[Span]) -> None:
        try:
            self._sink.write(spans)
            self.exported += len(spans)
        except Exception as exc:
            self.dropped += len(spans)
            self._failed(why=f"{type(exc).__name__}: {exc}", dropped=self.dropped)


class Tracer:
    """Decides which orders are traced, and records their spans. Used from one event loop."""

    def __init__(self, exporter: Exporter, ratio: float, most_per_s: int) -> None:
        """`ratio`: share of the orders without a caller's own decision, 0 to 1. `most_per_s`: orders begun to be
        traced by this process in a second, whoever decided."""
        self.exporter = exporter
        self._bound = int(ratio * 2**32)
        self._most_per_s = most_per_s
        self._second = 0
        self._begun = 0

    def wants(self, order_id: bytes, caller: TraceContext | None) -> bool:
        """Whether a new order is traced: as its caller decided, or by its id, and within the bound."""
        if caller is not None:
            if not caller.sampled:
                return False
        elif zlib.crc32(order_id) >= self._bound:
            return False
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        return self._begun <= self._most_per_s

    def span_below(self, parent: TraceContext) -> TraceContext:
        """The context of a new span of the same trace."""
        return TraceContext(parent.trace_id, new_span_id(), parent.sampled)

    def new_trace(self) -> TraceContext:
        """The context of the root of a trace that is no order's."""
        return TraceContext((random.getrandbits(128) or 1).to_bytes(16, "big"), new_span_id(), True)

    def record(self, span: Span) -> None:
        """The span is on its way; never waits, never raises."""
        self.exporter.put(span)

    def rows(self) -> list[Row]:
        """What is counted, for the metrics."""
        exporter = self.exporter
        return [
            ("rushgate_spans_exported_total", (), exporter.exported),
            ("rushgate_spans_dropped_total", (), exporter.dropped),
        ]

    def close(self) -> None:
        """As `Exporter.close`."""
        self.exporter.close()


def new_span_id() -> bytes:
    """8 bytes, unlike any other span's of the trace."""
    return (random.getrandbits(64) or 1).to_bytes(8, "big")  # tells spans apart, hides nothing


class Clock:
    """Wall times of what was measured by a clock that never jumps."""

    def __init__(self, now_s: float) -> None:
        """`now_s`: the other clock, now."""
        self.now_ns = time.time_ns()
        self._now_s = now_s

    def at(self, then_s: float) -> int:
        """ns since 1970."""
        return self.now_ns - int((self._now_s - then_s) * 1e9)
