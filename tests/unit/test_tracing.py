"""Who is traced, and what becomes of spans when nobody takes them."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.errors import ConfigInvalid
from core.ids import IdSource
from core.settings import Settings
from core.trace_context import TraceContext
from core.trace_sinks import FileSink, tracer_of
from core.tracing import BATCH, Exporter, Span, Tracer, new_span_id

CONTEXT = TraceContext(b"t" * 16, b"s" * 8, True)
SPAN = Span("work", "internal", CONTEXT, b"", 1, 2, {})


class Held:
    """A sink that takes nothing until it is let go, and then `refuses` or keeps what comes."""

    def __init__(self, refuses: bool = False) -> None:
        self.spans: list[Span] = []
        self.asked = threading.Event()
        self.free = threading.Event()
        self._refuses = refuses

    def write(self, spans: Sequence[Span]) -> None:
        self.asked.set()
        self.free.wait()
        if self._refuses:
            raise OSError("nobody is there")
        self.spans += spans

    def close(self) -> None:
        self.free.set()


def tracer(ratio: float, most_per_s: int = 1_000_000) -> Tracer:
    sink = Held()
    sink.free.set()
    return Tracer(Exporter(sink), ratio, most_per_s)


def test_share_of_the_orders_is_traced_and_every_process_agrees_which() -> None:
    ids, one, other = IdSource(), tracer(0.1), tracer(0.1)
    orders = [ids.new(n % 64, 7) for n in range(20_000)]
    traced = [i for i in orders if one.wants(i, None)]
    assert 1_600 < len(traced) < 2_400
    assert traced == [i for i in orders if other.wants(i, None)]
    nothing, everything = tracer(0), tracer(1)
    assert not any(nothing.wants(i, None) for i in orders)
    assert all(everything.wants(i, None) for i in orders)


def test_caller_decides_within_the_bound() -> None:
    order = IdSource().new(0, 0)
    assert tracer(0).wants(order, CONTEXT)
    assert not tracer(1).wants(order, CONTEXT._replace(sampled=False))
    bounded = tracer(0, most_per_s=10)
    # Two seconds at most, whatever the clock does meanwhile.
    assert 10 <= sum(bounded.wants(order, CONTEXT) for _ in range(1_000)) <= 20


def test_queue_is_bounded_and_what_finds_no_room_is_counted() -> None:
    sink = Held()
    exporter = Exporter(sink, most=2 * BATCH)
    for _ in range(BATCH):
        exporter.put(SPAN)
    assert sink.asked.wait(10)  # it has taken the first batch off the queue, and waits
    for _ in range(3 * BATCH):
        exporter.put(SPAN)
    assert exporter.dropped == BATCH
    sink.free.set()
    exporter.close(10)
    assert (exporter.exported, exporter.dropped, len(sink.spans)) == (3 * BATCH, BATCH, 3 * BATCH)


def test_collector_that_refuses_costs_its_spans_alone(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held(refuses=True)
    sink.free.set()
    exporter = Exporter(sink)
    for _ in range(3 * BATCH):
        exporter.put(SPAN)
    exporter.close(10)
    assert (exporter.exported, exporter.dropped) == (0, 3 * BATCH)
    assert caplog.messages == ["spans not exported"]  # once, not once a batch


def test_close_does_not_wait_for_a_collector_that_does_not_answer() -> None:
    sink = Held()
    exporter = Exporter(sink)
    for _ in range(BATCH):
        exporter.put(SPAN)
    assert sink.asked.wait(10)
    exporter.close(0.01)  # returns, while the sink waits


def test_file_of_spans_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    exporter = Exporter(FileSink(path, "gateway", "gateway-1", most_bytes=1_000))
    for _ in range(5):
        for _ in range(BATCH):
            exporter.put(SPAN)
    exporter.close(10)
    assert len(path.read_bytes().splitlines()) == exporter.exported < 5 * BATCH == exporter.exported + exporter.dropped
    assert path.stat().st_mode & 0o777 == 0o600


def test_tracing_that_is_off_is_no_tracer_and_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    assert tracer_of(Settings(), "gateway", "gateway-1") is None
    path = tmp_path / "missing" / "spans"
    with pytest.raises(ConfigInvalid, match=f"RUSHGATE_TRACING_FILE: {path}"):
        tracer_of(Settings(tracing="file", tracing_file=str(path)), "gateway", "gateway-1")


def test_span_ids_are_valid_and_unlike() -> None:
    ids = {new_span_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert {len(i) for i in ids} == {8}
    assert bytes(8) not in ids
