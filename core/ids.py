"""Order ids: 128 bits, ordered by time, carrying their shard. A valid UUID version 7 (RFC 9562, section 5.7).

    48 bits  milliseconds since 1970 of the gateway's clock
     4 bits  version, 7
    12 bits  shard, 0 to 4095
     2 bits  variant, 2
    22 bits  campaign tag: a hash of its name, so that a look-up asks one campaign, not all
    24 bits  random number of the process, drawn at its start
    16 bits  counter of the process

Two ids are equal only if two processes drew the same 24 bits and stand at the same count within the same
millisecond on the same shard. The ledger's primary key has the last word even then.
"""

import os
import time
import zlib
from uuid import UUID

MAX_SHARDS = 4096


def campaign_tag(campaign: str) -> int:
    """The 22 bits that stand for a campaign in the ids of its orders; two campaigns may share them."""
    return zlib.crc32(campaign.encode()) & 0x3FFFFF


def shard_of(order_id: bytes) -> int:
    """The shard that a 16-byte order id carries."""
    return (order_id[6] & 0x0F) << 8 | order_id[7]


def tag_of(order_id: bytes) -> int:
    """The campaign tag that a 16-byte order id carries."""
    return int.from_bytes(order_id[8:11], "big") & 0x3FFFFF


def text_of(order_id: bytes) -> str:
    """The public form of a 16-byte order id: 36 characters, lower case."""
    h = order_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def parse(text: str) -> bytes | None:
    """The 16 bytes behind the public form, or None if it cannot be one of our ids."""
    if len(text) != 36:
        return None
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value.bytes if value.version == 7 and str(value) == text.lower() else None


class IdSource:
    """Makes order ids without a system call each; one per process, used from one thread."""

    def __init__(self) -> None:
        self._process = os.urandom(3)
        self._count = int.from_bytes(os.urandom(2), "big")
        self._of = (-1, -1, -1)
        self._start = b""  # of the ids of one millisecond, shard and campaign: all but the counter

    def new(self, shard: int, tag: int) -> bytes:
        """16 bytes, unlike any other id; `shard` 0 to 4095, `tag` from `campaign_tag`."""
        self._count = (self._count + 1) & 0xFFFF
        of = (time.time_ns() // 1_000_000, shard, tag)
        if of != self._of:
            self._of = of
            high = of[0] << 16 | 0x7000 | shard
            self._start = (high << 24 | 2 << 22 | tag).to_bytes(11, "big") + self._process
        return self._start + self._count.to_bytes(2, "big")
