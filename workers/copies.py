"""Accepted orders as COPY takes them: for each table of the write path its rows, in binary.

A row is its number of fields, then of each its length and its value, numbers big-endian; a time is in microseconds
since 2000-01-01. Columns that many orders share come first, so that they are encoded once.
Source: PostgreSQL 18 documentation, COPY, "Binary Format"; src/backend/utils/adt, the types' `recv` functions.
"""

from collections.abc import Iterable
from struct import Struct, error
from typing import NamedTuple

import msgspec

from core.model import FIRST_STATE
from core.trace_context import parse_traceparent
from core.wire import Header
from workers.entries import OrderRow

COLUMNS = {
    "orders": (
        "shard", "campaign", "epoch", "state", "version", "accepted_at", "pay_by", "channel", "currency",
        "order_id", "seq", "amount", "request_key", "buyer_id", "client_ip", "device_id", "ship_to",
    ),
    "order_items": ("shard", "order_id", "line", "sku", "quantity", "price"),
    "order_events": (
        "shard", "version", "at", "action", "from_state", "to_state", "reason", "actor", "order_id",
    ),
    "outbox": ("shard", "version", "topic", "at", "order_id"),
}  # fmt: skip
TRACES = ("shard", "order_id", "traceparent")  # of the table order_traces: few orders have a row there
BEGIN, END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
EPOCH_MS = 946_684_800_000  # 2000-01-01 in ms since 1970
MAX_KNOWN = 10_000  # lines of orders, channels: kept encoded

_int16, _int32, _int64 = (Struct(f">i{kind}").pack for kind in "hiq")
_length = Struct(">i").pack
LENGTHS = [_length(n) for n in range(256)]
# Order id, number and amount, each behind its length, and the length of the request key.
_numbers = Struct(">i16siqiqi").pack


class Table(NamedTuple):
    """Rows of one table for `copy_to_table`."""

    name: str
    columns: tuple[str, ...]
    rows: memoryview  # what asyncpg takes for data; bytes would be the name of a file


class Copies(NamedTuple):
    """A batch of orders: its rows by table, and the shards, campaigns and epochs that it has orders of."""

    tables: list[Table]
    epochs: tuple[list[int], list[str], list[int]]


class _Shared(NamedTuple):
    """The beginnings of the rows of all orders of one entry."""

    order: bytes
    item: bytes
    event: bytes
    message: bytes


def copies(rows: Iterable[OrderRow]) -> Copies | None:
    """The orders for COPY; None = COPY cannot take one of them.

    Sorted by shard and order id, so that two workers with the same orders never wait in a circle.
    """
    orders, items, events, messages = [BEGIN], [BEGIN], [BEGIN], [BEGIN]
    traces: list[bytes] = []
    shared: dict[tuple[int, Header], _Shared] = {}
    last: tuple[int, Header] | None = None
    try:
        for shard, order_id, _, place, header, placed, _ in sorted(rows, key=_key):
            if last is None or last[1] is not header or last[0] != shard:
                last = (shard, header)
                found = shared.get(last) or shared.setdefault(last, _shared(shard, header))
            order, item, event, message = found
            key, buyer = placed.request_key.encode(), placed.buyer_id.encode()
            ip, device = placed.client_ip.encode(), placed.device_id.encode()
            sold, actor = _channel(placed.channel, placed.currency)
            orders += (
                order, sold, _numbers(16, order_id, 8, header.first_seq + place, 8, placed.amount, len(key)), key,
                LENGTHS[len(buyer)] if len(buyer) < 256 else _length(len(buyer)), buyer,
                LENGTHS[len(ip)] if len(ip) < 256 else _length(len(ip)), ip,
                LENGTHS[len(device)] if len(device) < 256 else _length(len(device)), device,
                NULL if placed.ship_to is None else _json(placed.ship_to),
            )  # fmt: skip
            for line in enumerate(placed.items):
                items += (item, order_id, _lines.get(line) or _line(line))
            events += (event, actor, order_id)
            messages += (message, order_id)
            if placed.trace:
                traces.append(_trace(shard, order_id, placed.trace))
    except (error, OverflowError, UnicodeEncodeError):  # a number too large for its column, a text that is none
        return None
    tables = [
        Table(name, columns, memoryview(b"".join([*parts, END])))
        for (name, columns), parts in zip(COLUMNS.items(), (orders, items, events, messages), strict=True)
    ]
    if any(traces):
        tables.append(Table("order_traces", TRACES, memoryview(b"".join([BEGIN, *traces, END]))))
    epochs = sorted({(shard, header.campaign, header.epoch) for shard, header in shared})
    return Copies(tables, ([e[0] for e in epochs], [e[1] for e in epochs], [e[2] for e in epochs]))


def _key(row: OrderRow) -> tuple[int, bytes]:
    return row[:2]


def _text(text: str) -> bytes:
    raw = text.encode()
    return _length(len(raw)) + raw


def _json(value: object) -> bytes:
    raw = b"\1" + msgspec.json.encode(value)  # 1 = the version of jsonb's binary form
    return _length(len(raw)) + raw


def _trace(shard: int, order_id: bytes, trace: str) -> bytes:
    """A row, or nothing for a trace that is none."""
    known = parse_traceparent(trace)
    if known is None:
        return b""
    fields = len(TRACES).to_bytes(2, "big")
    return fields + _int16(2, shard) + _length(16) + order_id + _text(known.traceparent)


def _time(ms: int) -> bytes:
    return _int64(8, (ms - EPOCH_MS) * 1000)


def _fields(table: str) -> bytes:
    return len(COLUMNS[table]).to_bytes(2, "big")


def _shared(shard: int, header: Header) -> _Shared:
    shard_, id_, one, at = _int16(2, shard), _length(16), _int32(4, 1), _time(header.accepted_ms)
    state = _text(FIRST_STATE)
    return _Shared(
        _fields("orders") + shard_ + _text(header.campaign) + _int32(4, header.epoch) + state + one + at
        + _time(header.pay_by_ms),
        _fields("order_items") + shard_ + id_,
        _fields("order_events") + shard_ + one + at + _text("accept") + NULL + state + _text(""),
        _fields("outbox") + shard_ + one + _text("payment") + at + id_,
    )  # fmt: skip


_lines: dict[tuple[int, tuple[str, int, int]], bytes] = {}
_channels: dict[tuple[str, str], tuple[bytes, bytes]] = {}


def _line(line: tuple[int, tuple[str, int, int]]) -> bytes:
    """Number, SKU, quantity and price of one line: most orders of a sale have the same ones."""
    if len(_lines) >= MAX_KNOWN:
        _lines.clear()
    n, (sku, quantity, price) = line
    made = _lines[line] = _int16(2, n) + _text(sku) + _int32(4, quantity) + _int64(8, price)
    return made


def _channel(channel: str, currency: str) -> tuple[bytes, bytes]:
    """Channel and currency, and the actor of the first event with the length of the id behind it."""
    found = _channels.get((channel, currency))
    if found is None:
        if len(_channels) >= MAX_KNOWN:
            _channels.clear()
        found = _text(channel) + _text(currency), _text(f"channel:{channel}") + _length(16)
        _channels[channel, currency] = found
    return found
