"""Intake entries as rows for the ledger: decoded, or set aside with the reason."""

from typing import NamedTuple

import msgspec
from asyncpg.pgproto.pgproto import UUID

from core.ids import shard_of
from core.model import FIRST_STATE
from core.wire import EntryInvalid, Header, Placed, decode_placed
from core.wire import read_entry as read_fields


class Entry(NamedTuple):
    """One entry as it was read: which shard's intake, its id, its fields (name, value, name, value, ...)."""

    shard: int
    entry_id: bytes
    fields: list[bytes]


class OrderRow(NamedTuple):
    """One order of an entry, ready to be written."""

    shard: int
    order_id: bytes
    entry_id: bytes
    place: int
    header: Header
    placed: Placed
    payload: bytes

    @property
    def seq(self) -> int:
        return self.header.first_seq + self.place


class DeadLetter(NamedTuple):
    """One order, or with place -1 a whole entry, that cannot be written."""

    shard: int
    entry_id: bytes
    place: int
    header: Header | None
    order_id: bytes | None
    reason: str
    payload: bytes


def dead(row: OrderRow, reason: str) -> DeadLetter:
    """The order set aside."""
    return DeadLetter(row.shard, row.entry_id, row.place, row.header, row.order_id, reason, row.payload)


def read_entry(entry: Entry) -> tuple[list[OrderRow], list[DeadLetter]]:
    """The orders of an entry and what of it no worker can read; together they are the whole entry."""
    try:
        header, orders = read_fields(entry.fields)
        _check(header)
    except EntryInvalid as exc:
        payload = msgspec.msgpack.encode(entry.fields)
        return [], [DeadLetter(entry.shard, entry.entry_id, -1, None, None, str(exc), payload)]
    rows: list[OrderRow] = []
    letters: list[DeadLetter] = []
    for place, (order_id, payload) in enumerate(orders):
        reason = ""
        if len(order_id) != 16:
            reason = f"order id of {len(order_id)} bytes"
        elif shard_of(order_id) != entry.shard:
            reason = f"order of shard {shard_of(order_id)} in the intake of shard {entry.shard}"
        else:
            try:
                placed = decode_placed(payload)
                reason = "" if placed.items else "order without items"
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                reason = f"order cannot be read: {exc}"
        if reason:
            known_id = order_id if len(order_id) == 16 else None
            letters.append(DeadLetter(entry.shard, entry.entry_id, place, header, known_id, reason, payload))
        else:
            rows.append(OrderRow(entry.shard, order_id, entry.entry_id, place, header, placed, payload))
    return rows, letters


def _check(header: Header) -> None:
    """`dead_letters` can hold what the header says. Raises EntryInvalid."""
    if "\0" in header.campaign or not 0 < header.epoch < 2**31 or not 0 < header.first_seq < 2**62:
        raise EntryInvalid(f"header out of range: {header}")


def columns(rows: list[OrderRow]) -> list[object]:
    """The parameters of insert_orders.sql. Sorted, so that two workers with the same orders never wait in a circle."""
    rows = sorted(rows, key=lambda r: (r.shard, r.order_id))
    ids = [UUID(r.order_id) for r in rows]
    headers = [r.header for r in rows]
    orders = [r.placed for r in rows]
    lines = [
        (r.shard, order_id, n, *item)
        for r, order_id in zip(rows, ids, strict=True)
        for n, item in enumerate(r.placed.items)
    ]
    return [
        [r.shard for r in rows],
        ids,
        [h.campaign for h in headers],
        [h.epoch for h in headers],
        [r.seq for r in rows],
        [o.channel for o in orders],
        [o.request_key for o in orders],
        [o.buyer_id for o in orders],
        [o.client_ip for o in orders],
        [o.device_id for o in orders],
        [o.amount for o in orders],
        [o.currency for o in orders],
        [h.accepted_ms for h in headers],
        [h.pay_by_ms for h in headers],
        [msgspec.json.encode(o.ship_to).decode() if o.ship_to else None for o in orders],
        FIRST_STATE,
        *(list(column) for column in zip(*lines, strict=True)),
    ]


def sanitized(reason: str) -> str:
    """A reason as Postgres text: without NUL, of bounded length."""
    return reason.replace("\0", "\\0")[:1_000]
