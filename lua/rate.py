"""The typed side of rate.lua: packs a batch, reads what became of its requests. The contract is its header."""

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from core.rates import Rate
from core.wire import encode
from lua.connection import Command, Reply
from lua.keys import RateKeys

MAX_REQUESTS = 512  # of one call

_verdicts = Struct(">BBII").iter_unpack


class Column(NamedTuple):
    """One limit of a batch: of each request the name that it counts for, "" = none. Names of unlike kinds differ."""

    rate: Rate
    names: Sequence[str]


class Verdict(NamedTuple):
    """What became of one request, and the limit that this is about.

    `limit`: place of its column, from 1; 0 = the request counts for none. `more`: requests that could follow at once.
    `ms`: until it would be let through, or, if it was, until the whole burst is there again.
    """

    refused: int
    limit: int
    more: int
    ms: int


def pack(keys: RateKeys, requests: int, own: Sequence[Column], channels: Sequence[Column]) -> Command:
    """The call of one batch, at most MAX_REQUESTS; `own`: limits whose names are the campaign's."""
    limits = [(c.rate.interval_us, c.rate.burst, c.names) for c in (*own, *channels)]
    return [3, keys.young, keys.old, keys.channels, requests, encode(limits), len(own)]


def read(reply: Reply) -> list[Verdict]:
    """One verdict a request, in their order. Raises StoreUnavailable: nothing was counted."""
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}") from reply
    return [Verdict(*verdict) for verdict in _verdicts(reply)]
