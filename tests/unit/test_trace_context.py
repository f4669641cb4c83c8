"""Which headers are taken for a trace, and what an order without one belongs to."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ids import IdSource
from core.model import ShipTo
from core.trace_context import CHARS, TraceContext, context_of, parse_traceparent, trace_id_of, unrecorded
from core.wire import Held, Placed, decode_held, decode_placed, encode, log_ids, trace_in, with_trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"
HELD = Held("app", "key", "buyer", [("red", 1, 100)], 100, "CNY", "", "")


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True), ("02", False)])
def test_valid_header_is_read_and_written_with_the_flag_that_we_know(flags: str, sampled: bool) -> None:
    found = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}".encode())
    assert found == TraceContext(bytes.fromhex(TRACE), bytes.fromhex(SPAN), sampled)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-0{int(sampled)}"


@pytest.mark.parametrize("text", [f"cc-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-what-comes-later"])
def test_header_of_a_later_version_is_read_as_far_as_it_is_known(text: str) -> None:
    found = parse_traceparent(text)
    assert found is not None
    assert found.traceparent == HEADER


@pytest.mark.parametrize("text", [
    "", "00", "garbage", HEADER + "-more", HEADER + "0", HEADER[:-1], f"ff-{TRACE}-{SPAN}-01", HEADER.upper(),
    f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[1:]}-{SPAN}0-01", HEADER.replace("-", "_"),
    f" {HEADER}", f"{HEADER}\n", f"01-{TRACE}-{SPAN}-01x", f"00-{TRACE[:-1]}g-{SPAN}-01", "\udc80" * CHARS,
])  # fmt: skip
def test_header_that_is_not_valid_is_none(text: str) -> None:
    assert parse_traceparent(text) is None


@given(st.one_of(st.text(max_size=80), st.binary(max_size=80)))
def test_whatever_comes_as_a_header_raises_nothing(text: str | bytes) -> None:
    found = parse_traceparent(text)
    assert found is None or parse_traceparent(found.traceparent) == found


@given(st.sampled_from([HEADER, HEADER[:-1] + "0", f"00-{'0' * 32}-{SPAN}-00", f"00-{TRACE}-{'0' * 16}-00"]),
       st.integers(0, 60), st.binary(max_size=2))  # fmt: skip
def test_short_look_at_a_header_knows_nothing_that_the_long_one_does_not(text: str, at: int, more: bytes) -> None:
    raw = text.encode()[:at] + more + text.encode()[at + len(more) :]
    if unrecorded(raw):
        found = parse_traceparent(raw)
        assert found is not None
        assert (found.traceparent.encode(), found.sampled) == (raw, False)


def test_every_order_id_is_a_valid_trace_id() -> None:
    ids = IdSource()
    for shard in (0, 1, 4095):
        order_id = ids.new(shard, 0)
        context = context_of(order_id, None)
        assert context == context_of(order_id, "") == context_of(order_id, "garbage")
        assert parse_traceparent(context.traceparent) == context
        assert trace_id_of(order_id) == order_id.hex()
        assert trace_id_of(order_id, HEADER) == TRACE


@pytest.mark.parametrize("to", [None, ShipTo("A", "123", "x", "CN")])
def test_order_carries_its_trace_and_nothing_else_of_it_changes(to: ShipTo | None) -> None:
    placed = Placed(**msgspec.structs.asdict(HELD), ship_to=to)
    assert trace_in(encode(placed)) == ""
    assert decode_placed(with_trace(encode(placed), HEADER)) == msgspec.structs.replace(placed, trace=HEADER)
    assert trace_in(with_trace(encode(placed), HEADER)) == HEADER


def test_hold_carries_the_trace_of_its_order() -> None:
    raw = with_trace(encode(HELD), HEADER)
    assert (trace_in(encode(HELD)), trace_in(raw)) == ("", HEADER)
    assert decode_held(raw) == HELD
    assert decode_placed(raw) == Placed(**msgspec.structs.asdict(HELD), trace=HEADER)


@pytest.mark.parametrize("encoded", [b"", b"\x9a", b"\x9a\xff", b"garbage", with_trace(encode(HELD), "\xe9")])
def test_log_line_about_an_order_that_nobody_can_read_has_ids(encoded: bytes) -> None:
    order_id = IdSource().new(3, 7)
    assert log_ids(order_id, encoded)["trace_id"] == order_id.hex()
