"""The stream entry, between the gateway and the ledger worker, and the hold, between `reserve` and whoever ends it.

An intake entry has the fields

    h            header, text: `1|campaign|epoch|accepted_ms|pay_by_ms|first_seq`
    <order id>   16 bytes -> the order, a `Placed` in msgpack; one field per order, in order of acceptance

The n-th order of an entry has the sequence number first_seq + n: 1, 2, 3 ... per campaign, epoch and shard.
Text is `str` all through, as the store's Lua reads no msgpack `bin`.
"""

from hashlib import blake2b
from typing import NamedTuple

import msgspec
from msgspec import Struct

from core.model import ShipTo

VERSION = b"1"
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
    """An accepted order on its way to the ledger. Without `ship_to` its bytes are those of `Held`."""

    ship_to: ShipTo | None = None


class Header(NamedTuple):
    """What all orders of one intake entry share; times in ms of the store's clock."""

    campaign: str
    epoch: int
    accepted_ms: int
    pay_by_ms: int
    first_seq: int


class EntryInvalid(ValueError):
    """An intake entry that no worker of this version can read; goes to dead_letters with this reason."""


class HoldInvalid(ValueError):
    """A value of the `holds` hash that nobody can read."""


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_placed = msgspec.msgpack.Decoder(Placed).decode
decode_held = msgspec.msgpack.Decoder(Held).decode


def fingerprint(buyer_id: str, items: list[tuple[str, int, int]], device_id: str, ship_to: ShipTo | None) -> bytes:
    """8 bytes that tell one body from another under the same request key.

    Not part of it: `client_ip`, as a phone that repeats its click may have changed from Wi-Fi to the mobile network.
    """
    return blake2b(encode((buyer_id, [i[:2] for i in items], device_id, ship_to)), digest_size=8).digest()


def read_header(raw: bytes) -> Header:
    """The header of an entry. Raises EntryInvalid."""
    try:
        version, campaign, epoch, accepted_ms, pay_by_ms, first_seq = raw.split(b"|")
        if version != VERSION:
            raise EntryInvalid(f"entry version {version!r}, this worker reads {VERSION!r}")
        return Header(campaign.decode("ascii"), int(epoch), int(accepted_ms), int(pay_by_ms), int(first_seq))
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
