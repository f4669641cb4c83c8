"""Heads: what store and ledger say of campaigns in a few words, also of those whose definition cannot be read."""

from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from lua.connection import Command, SharedConnection
from lua.keys import SaleKeys, home_shards, sale_keys

AT_ONCE = 500  # shards of campaigns asked for in one exchange


class Head(NamedTuple):
    """A campaign that was opened, as the ledger has it."""

    campaign: str
    state: str
    version: int
    epoch: int
    at_payment: bool
    keys: list[SaleKeys]  # by slot


class Here(NamedTuple):
    """The same on one shard, as the store has it; all empty = it does not hold the campaign."""

    epoch: str
    deployment: str
    state: str
    version: str


async def read_heads(ledger: Pool, shards: int) -> list[Head]:
    """All campaigns that were opened, by name. Raises: LedgerUnavailable."""
    found = []
    for row in await ask(lambda: ledger.fetch(query("campaign_heads"))):
        name, spread = row["campaign"], min(max(row["spread"], 1), shards)
        keys = [sale_keys(shard, name) for shard in home_shards(name, spread, shards)]
        at_payment = row["order_type"] == "reserve_at_payment"
        found.append(Head(name, row["state"], row["version"], row["epoch"], at_payment, keys))
    return found


async def read_store(store: SharedConnection, heads: Sequence[Head]) -> list[list[Here]]:
    """What the store has of each on each of its shards, by slot. Raises: StoreUnavailable."""
    asks: list[Command] = [
        ("HMGET", keys.meta, "epoch", "deployment", "state", "version") for head in heads for keys in head.keys
    ]
    found: list[Here] = []
    for n in range(0, len(asks), AT_ONCE):
        for reply in await store.exchange(asks[n : n + AT_ONCE]):
            if not isinstance(reply, RedisError):
                found.append(Here(*(value.decode(errors="replace") if value else "" for value in reply)))
            elif str(reply).startswith("WRONGTYPE"):
                found.append(Here("", "", "", ""))  # what is there is no campaign, and no script can use it
            else:
                raise StoreUnavailable(f"the store answers {reply}")
    rest = iter(found)
    return [[next(rest) for _ in head.keys] for head in heads]


async def ping(store: SharedConnection) -> None:
    """Raises StoreUnavailable if it is the store that is away, and not one campaign that cannot be used."""
    [reply] = await store.exchange([("PING",)])
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {reply}")


def over(head: Head, here: Sequence[Here]) -> bool:
    """A closed campaign cannot be sold: it is closed on every shard too, or is not in service there."""
    return all(
        not one.epoch or (one.epoch, one.state, one.version) == (str(head.epoch), "closed", str(head.version))
        for one in here
    )


def idle(head: Head, here: Sequence[Here], deployment: str) -> bool:
    """Nothing of the campaign can be sold or ended: it is in service nowhere, or another deployment's, or was rebuilt
    and is not on sale yet."""
    ours = str(head.epoch), deployment
    return all(
        not one.epoch
        or one.deployment not in ("", deployment)
        or ((one.epoch, one.deployment) == ours and one.state == "recovering")
        for one in here
    )
