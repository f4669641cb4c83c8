"""The stream entry, between the gateway and the ledger worker, and the hold, between `reserve` and whoever ends it.

An intake entry has the fields

    h   header, text: `2|campaign|epoch|accepted_ms|pay_by_ms|first_seq|orders`
    o   the orders, in order of acceptance: of each its id (16 bytes), its length (4, big-endian), and a `Placed` in
        msgpack

The n-th order of an entry has the sequence number first_seq + n: 1, 2, 3 ... per campaign, epoch and shard.
Version 1 is read too, as such entries may stand in the intake at an upgrade: its header does not count the orders, and
each has a field of its own, <order id> -> `Placed`.
Text is `str` all through, as the store's Lua reads no msgpack `bin`.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from msgspec import Struct

from core.ids import text_of
from core.model import ShipTo
from core.trace_context import trace_id_of

HEADER, ORDERS = b"h", b"o"
FIELD_BYTES = 12  # of ten million request keys two have the same digest once in 10^15 campaigns
# reserve.lua writes a stamp behind records and holds: accepted_ms and pay_by_ms, 6 bytes each, big-endian. Behind a
# hold there is one more byte before it, the limits it was counted for: 1 buyer, 2 buyer and SKU, 4 IP, 8 device. A
# limit may come or go while the campaign is open; what is given back is what was counted. NO_UNITS in the same byte:
# the hold counts for its limits and takes no units yet (allocate.lua takes them).
STAMP_BYTES = 12
TAIL_BYTES = 1 + STAMP_BYTES
NO_UNITS = 16
ALL_COUNTED = 15  # all four limits: what a rebuild counts, whichever are set
# Begins the reason of dead letters that came after a rebuild had closed their epoch: they have no hold any more.
TOO_LATE = "came too late"


class Held(Struct, frozen=True, array_like=True):
    """What a hold remembers; enough to give it back, and to show the order before the ledger has it."""

    channel: str
    request_key: str
    buyer_id: str
    items: list[tuple[str, int, int]]  # sku, quantity, price
    amount: int
    currency: str
    client_ip: str
    device_id: str


class Placed(Held, frozen=True, array_like=True):
    """An accepted order on its way to the ledger. Without `ship_to` and `trace` its bytes are those of `Held`.

    `trace`: the W3C traceparent that it came with, or of the span that took it; "" = its trace id is its own id. A hold
    has it too, if the order does.
    """

    ship_to: ShipTo | None = None
    trace: str = ""


class Header(NamedTuple):
    """What all orders of one intake entry share; times in ms of the store's clock."""

    campaign: str
    epoch: int
    accepted_ms: int
    pay_by_ms: int
    first_seq: int
    orders: int = 0  # how many; 0 = an entry of version 1, which does not say it


class EntryInvalid(ValueError):
    """An intake entry that no worker of this version can read; goes to dead_letters with this reason."""


class HoldInvalid(ValueError):
    """A value of the `holds` hash that nobody can read."""


_HELD, _PLACED = b"\x98"[0], b"\x9a"  # the first byte of an encoded Held, of 8 parts, and of a Placed, of 10
_NO_SHIP_TO, _NO_TRACE = b"\xc0", b"\xa0"
_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_placed = msgspec.msgpack.Decoder(Placed).decode
decode_held = msgspec.msgpack.Decoder(Held).decode


def with_trace(encoded: bytes, trace: str) -> bytes:
    """An encoded Held or Placed without a trace, as a Placed with this one."""
    # By its bytes: nearly all orders have no trace, and what makes them need not know of it.
    if encoded[0] == _HELD:
        return b"".join((_PLACED, encoded[1:], _NO_SHIP_TO, encode(trace)))
    return encoded.removesuffix(_NO_TRACE) + encode(trace)


def trace_in(encoded: bytes) -> str:
    """The trace of an encoded Held or Placed, or ''. Raises msgspec.DecodeError, UnicodeDecodeError."""
    return "" if encoded[:1] != _PLACED or encoded.endswith(_NO_TRACE) else decode_placed(encoded).trace


def log_ids(order_id: bytes, encoded: bytes) -> dict[str, str]:
    """The ids that a log line about an order has. `encoded`: its Held or Placed, readable or not."""
    try:
        trace = trace_in(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError):
        trace = ""
    return {"order_id": text_of(order_id), "trace_id": trace_id_of(order_id, trace)}


def trace_of_hold(stamped: bytes) -> str:
    """The trace of a value of the `holds` hash, or ''; also '' if nobody can read it."""
    try:
        return trace_in(stamped[:-TAIL_BYTES])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


# Copied for each use: a new one with its arguments takes longer than what is to be digested.
_field_digest, _body_digest = blake2b(digest_size=FIELD_BYTES), blake2b(digest_size=8)
_SIZES = tuple(n.to_bytes(4, "big") for n in range(2_048))  # nearly all orders are shorter


def request_field(channel: str, request_key: str) -> bytes:
    """The field of a request in the `requests` hash, FIELD_BYTES long, the same in every process."""
    digest = _field_digest.copy()
    digest.update(f"{channel}\0{request_key}".encode())
    return digest.digest()


def orders_of(ids: Sequence[bytes], orders: Sequence[bytes]) -> bytes:
    """The field `o` of an entry with these orders, 16-byte ids and encoded `Placed`."""
    parts = [b""] * (3 * len(ids))
    parts[0::3] = ids
    parts[1::3] = [_SIZES[n] if n < 2_048 else n.to_bytes(4, "big") for n in map(len, orders)]
    parts[2::3] = orders
    return b"".join(parts)


def write_entry(header: Header, orders: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The fields of an entry with these orders, id and encoded `Placed`; `header.orders` need not be set."""
    ids, payloads = zip(*orders, strict=True)
    text = f"2|{header.campaign}|{header.epoch}|{header.accepted_ms}|{header.pay_by_ms}|{header.first_seq}|{len(ids)}"
    return [HEADER, text.encode(), ORDERS, orders_of(ids, payloads)]


def read_entry(fields: Sequence[bytes]) -> tuple[Header, list[tuple[bytes, bytes]]]:
    """The header of an entry, and its orders: id and encoded `Placed`. Raises EntryInvalid."""
    if len(fields) < 2 or len(fields) % 2 or fields[0] != HEADER:
        raise EntryInvalid("not an entry of ours: it does not begin with a header")
    header = read_header(fields[1])
    if not header.orders:
        return header, list(zip(fields[2::2], fields[3::2], strict=True))
    if len(fields) != 4 or fields[2] != ORDERS:
        raise EntryInvalid("not an entry of ours: it has other fields than a header and orders")
    raw, at, orders = fields[3], 0, []
    while at < len(raw):
        begin = at + 20
        end = begin + int.from_bytes(raw[at + 16 : begin], "big")
        if end > len(raw):
            raise EntryInvalid(f"its orders are cut off after {len(raw)} bytes")
        orders.append((raw[at : at + 16], raw[begin:end]))
        at = end
    if len(orders) != header.orders:
        raise EntryInvalid(f"{len(orders)} orders, its header says {header.orders}")
    return header, orders


def fingerprint(buyer_id: str, items: list[tuple[str, int, int]], device_id: str, ship_to: ShipTo | None) -> bytes:
    """8 bytes that tell one body from another under the same request key.

    Not part of it: `client_ip`, as a phone that repeats its click may have changed from Wi-Fi to the mobile network.
    """
    body = f"{buyer_id}\0{device_id}"  # no NUL is in any of these
    for sku, quantity, _ in items:
        body += f"\0{sku}\0{quantity}"
    raw = body.encode() if ship_to is None else body.encode() + b"\0\0" + encode(ship_to)
    digest = _body_digest.copy()
    digest.update(raw)
    return digest.digest()


def read_header(raw: bytes) -> Header:
    """The header of an entry. Raises EntryInvalid."""
    try:
        version, campaign, epoch, accepted_ms, pay_by_ms, first_seq, *count = raw.split(b"|")
        if version not in (b"1", b"2"):
            raise EntryInvalid(f"entry version {version!r}, this worker reads 1 and 2")
        if len(count) != (version == b"2") or count == [b"0"]:
            raise EntryInvalid(f"header cannot be read: {raw[:200]!r}")
        numbers = map(int, (epoch, accepted_ms, pay_by_ms, first_seq, *count))
        return Header(campaign.decode("ascii"), *numbers)
    except EntryInvalid:
        raise
    except ValueError as exc:
        raise EntryInvalid(f"header cannot be read: {raw[:200]!r}") from exc


def read_stamp(stamped: bytes) -> tuple[int, int]:
    """accepted_ms and pay_by_ms from the end of a stored record or hold."""
    return int.from_bytes(stamped[-12:-6], "big"), int.from_bytes(stamped[-6:], "big")


def read_hold(stamped: bytes) -> tuple[Held, int, int]:
    """The hold, accepted_ms and pay_by_ms of a value of the `holds` hash. Raises HoldInvalid."""
    _check_length(stamped)
    accepted_ms, pay_by_ms = read_stamp(stamped)
    try:
        return decode_held(stamped[:-TAIL_BYTES]), accepted_ms, pay_by_ms
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise HoldInvalid(str(exc)) from exc


def has_units(stamped: bytes) -> bool:
    """Whether a value of the `holds` hash has taken its units; False = it waits for its payment without any.

    Raises: HoldInvalid.
    """
    _check_length(stamped)
    return not stamped[-TAIL_BYTES] & NO_UNITS


def _check_length(stamped: bytes) -> None:
    if len(stamped) <= TAIL_BYTES:
        raise HoldInvalid(f"{len(stamped)} bytes, a hold has more than {TAIL_BYTES}")
