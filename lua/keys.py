"""Every key of the store is built here. The keys of one shard share the hash tag `{s<N>}`, so one slot holds them."""

import zlib
from functools import lru_cache
from typing import NamedTuple


class SaleKeys(NamedTuple):
    """The keys of one campaign on one shard."""

    meta: bytes
    stock: bytes
    used: bytes
    requests: bytes
    holds: bytes
    deltas: bytes
    moves: bytes
    intake: bytes


@lru_cache(maxsize=65_536)
def sale_keys(shard: int, campaign: str) -> SaleKeys:
    """The keys of `campaign` on `shard`; the intake is the shard's, shared by its campaigns."""
    base = f"{{s{shard}}}:c:{campaign}:"
    names = ("meta", "stock", "used", "requests", "holds", "deltas", "moves")
    meta, stock, used, requests, holds, deltas, moves = ((base + n).encode() for n in names)
    return SaleKeys(meta, stock, used, requests, holds, deltas, moves, intake_key(shard))


@lru_cache(maxsize=4_096)
def intake_key(shard: int) -> bytes:
    """The stream of accepted batches of one shard."""
    return f"{{s{shard}}}:intake".encode()


class RoomKeys(NamedTuple):
    """The keys of a campaign's waiting room, on its first shard."""

    meta: bytes
    room: bytes
    line: bytes


def room_keys(campaign: str, shards: int) -> RoomKeys:
    """The keys of the waiting room of `campaign` in a deployment of so many shards."""
    base = f"{{s{home_shards(campaign, 1, shards)[0]}}}:c:{campaign}:"
    return RoomKeys(*((base + name).encode() for name in ("meta", "room", "line")))


def touch_key(key: bytes) -> bytes:
    """The key of the same shard that lua/touch.lua writes."""
    return key[: key.index(b"}") + 1] + b":touch"


def home_shards(campaign: str, spread: int, shards: int) -> list[int]:
    """The shards that hold a campaign's stock, `spread` of them, neighbours from the campaign's first one on."""
    first = zlib.crc32(campaign.encode()) % shards
    return [(first + n) % shards for n in range(spread)]


def buyer_slot(buyer_id: str, spread: int) -> int:
    """Which of a campaign's shards (0 to spread - 1) a buyer always lands on."""
    return zlib.crc32(buyer_id.encode()) % spread


def portion(units: int, slot: int, spread: int) -> int:
    """The part of `units` that slot 0 to spread - 1 gets; the parts add up to `units`, the first ones get the rest."""
    size, rest = divmod(abs(units), spread)
    part = size + (1 if slot < rest else 0)
    return part if units >= 0 else -part


def life_key() -> bytes:
    """Which life of which server the deployment may work with (lua/life.py). One key; a store of several nodes needs
    one on each."""
    return b"{s0}:life"


def call_key() -> bytes:
    """Changes whenever processes shall say what they were told of (lua/witness.py). One key, as `life_key`."""
    return b"{s0}:call"


def processes_key() -> bytes:
    """The signs of life of all processes (lua/registry.py). One key, as `life_key`."""
    return b"{s0}:processes"


def access_key() -> bytes:
    """Who may call: the gateways' copy of channels, keys and blocks (lua/access.py). One key, as `life_key`."""
    return b"{s0}:access"


class RateKeys(NamedTuple):
    """What one call of lua/rate.lua works on: a campaign's names, and the channels'. One slot, so that a request is let
    through by all of its limits or counts for none."""

    young: bytes
    old: bytes
    channels: bytes


@lru_cache(maxsize=4_096)
def rate_keys(campaign: str) -> RateKeys:
    """The rate limits of a campaign, and those of all channels."""
    base = f"{{s0}}:rates:{campaign}:"
    return RateKeys((base + "young").encode(), (base + "old").encode(), b"{s0}:rates")
