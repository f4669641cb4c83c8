"""The trace that an order belongs to, as W3C Trace Context writes it: `00-<trace id>-<span id>-<flags>`.

An order's trace id is the one that its caller sent. Without one it is the order's own id: its 16 bytes are a valid
trace id, so every order has a trace id that nobody has to keep.

Source: https://www.w3.org/TR/trace-context/, section 3.2, "Traceparent Header".
"""

import re
from typing import NamedTuple

HEADER = b"traceparent"
CHARS = 55
SAMPLED = 1  # the one flag that we know

_fields = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_plain = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-00").fullmatch


class TraceContext(NamedTuple):
    """A span and the trace that it is part of."""

    trace_id: bytes  # 16 bytes, not all zero
    span_id: bytes  # 8 bytes, not all zero
    sampled: bool  # whether its spans are recorded

    @property
    def traceparent(self) -> str:
        """The value of the header."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{int(self.sampled):02x}"


def parse_traceparent(text: str | bytes) -> TraceContext | None:
    """The context of a header; None = it is not valid, and is to be taken for none at all."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    # Later versions may have more behind a dash; what they share with ours is read.
    if len(text) != CHARS and (text[CHARS : CHARS + 1] != "-" or text[:2] == "00"):
        return None
    found = _fields(text[:CHARS])
    if found is None:
        return None
    version, trace_id, span_id, flags = found.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(bytes.fromhex(trace_id), bytes.fromhex(span_id), bool(int(flags, 16) & SAMPLED))


def unrecorded(header: bytes) -> str:
    """The header of a trace that nobody records, if it is written as nearly all are; '' = `parse_traceparent` knows.

    A third of its cost, for callers who send one with every order.
    """
    return header.decode() if _plain(header) else ""


def context_of(order_id: bytes, traceparent: str | None) -> TraceContext:
    """The context of an order. `traceparent`: what is on record for it; None or '' = nothing, nobody traces it."""
    known = parse_traceparent(traceparent) if traceparent else None
    return known or TraceContext(order_id, order_id[8:], False)


def trace_id_of(order_id: bytes, traceparent: str | None = None) -> str:
    """The trace id of an order, 32 characters; arguments as of `context_of`."""
    return context_of(order_id, traceparent).trace_id.hex()
