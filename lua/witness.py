"""The typed side of witness.lua: order numbers that processes were told of. The contract is its header."""

import uuid
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from lua.connection import Command, Exchange, StoreConnection
from lua.keys import SaleKeys, call_key
from lua.source import LuaSource

WITNESS = LuaSource.read("witness")
JUDGED = LuaSource.read("judged")
AT_ONCE = 500  # shards of campaigns in one exchange
HEARD_S = 0.6  # after so long whoever lives has said what it was told: three looks of gateway/pressure.py


class WitnessCode(IntEnum):
    KNOWN = 0
    BEHIND = 1
    FENCED = 2
    KEPT = 3


class Told(NamedTuple):
    """The store said once that the last order of a campaign on a shard, under this epoch, had this number."""

    keys: SaleKeys
    epoch: int
    seq: int
    run_id: str  # of the server that said it


async def say(exchange: Exchange, told: Sequence[Told]) -> list[tuple[WitnessCode, int]]:
    """The store has heard all of `told`; where it knew fewer orders the campaign is out of service.

    `exchange`: of a connection; replicas are not waited for, as whoever loses this by a failover hears it again.
    Returns: the code, and the number that the store knew. Raises: StoreUnavailable.
    """
    calls: list[Command] = [("EVALSHA", WITNESS.sha, 1, t.keys.meta, t.epoch, t.seq, t.run_id) for t in told]
    replies = await exchange([("SCRIPT", "LOAD", WITNESS.text), *calls])
    for reply in replies:
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"witness: the store answers {type(reply).__name__}: {reply}") from reply
    return [(WitnessCode(code), known) for code, known in replies[1:]]


async def judged_with(store: StoreConnection, sales: Sequence[SaleKeys], run_id: str) -> None:
    """The store knows how many orders it had when this run of it began; to be told before orders are taken on it.

    A key of another type is left as it is: the judgement finds it. Raises: StoreUnavailable.
    """
    for n in range(0, len(sales), AT_ONCE):
        for reply in await store.run(
            JUDGED, [(1, keys.meta, run_id) for keys in sales[n : n + AT_ONCE]], confirm=False
        ):
            if isinstance(reply, RedisError) and "WRONGTYPE" not in str(reply):
                raise StoreUnavailable(f"judged: the store answers {type(reply).__name__}: {reply}") from reply


async def call(store: StoreConnection) -> None:
    """Every process says anew what it was told of, within HEARD_S if it lives. Raises: StoreUnavailable."""
    [reply] = await store.exchange([("SET", call_key(), uuid.uuid4().hex)])
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
