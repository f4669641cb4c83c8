"""The life of a store: which process, and which copy of the data, orders may be taken on.

A server draws a new `run_id` each time it starts, and a promoted replica has one of its own. The key `life` says which
run was judged and admitted by the recovery (core/desk/recovery.py), and for which layout of its keys. So a restart, an
older copy, a failover, another store and an upgrade all show themselves at the next connect, without a question to the
ledger.
"""

from typing import NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from core.errors import Recovering, StoreUnavailable
from lua.connection import Command, Exchange, Reply, SharedConnection, StoreConnection
from lua.keys import life_key
from lua.scripts import LAYOUT

QUESTIONS: list[Command] = [("INFO", "server"), ("GET", life_key())]


class Seen(NamedTuple):
    """What a store says of its life."""

    run_id: str
    admitted: bool  # this run was judged, and found or made to be as the ledger has it
    deployment: str  # that judged it last, '' = none did


def read(replies: list[Reply]) -> Seen:
    """The answers to QUESTIONS. Raises StoreUnavailable."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
    info, life = replies
    lines = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    run_id = lines["run_id"]
    deployment, _, admitted = (life or b"").decode().partition(" ")
    return Seen(run_id, admitted == _admitted(run_id), deployment)


def _admitted(run_id: str) -> str:
    # Not with an older version's words: what that had admitted is judged once more, and finds campaigns of its layout.
    return f"{run_id}.{LAYOUT}"


async def look(store: SharedConnection) -> Seen:
    """What the store says now. Raises StoreUnavailable."""
    return read(await store.exchange(QUESTIONS))


async def admit(store: SharedConnection, deployment: str, run_id: str) -> None:
    """Orders are taken on this run of the store; another one that is there meanwhile stays shut.

    Raises: StoreUnavailable.
    """
    [reply] = await store.exchange([("SET", life_key(), f"{deployment} {_admitted(run_id)}")])
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")


async def doubt(exchange: Exchange) -> None:
    """The store is judged once more before anybody connects to it to sell. Raises: StoreUnavailable."""
    [reply] = await exchange([("DEL", life_key())])
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")


class AdmittedConnection(StoreConnection):
    """A connection for what must not be done on a store that lost data: selling, and giving out units."""

    async def connect(self) -> AbstractConnection:
        """As StoreConnection; and the store's present life was admitted. Raises also: Recovering."""
        if self._connection is not None:
            return self._connection
        connection = await super().connect()
        # Not self.exchange: whoever shares this connection has its turn already.
        if not read(await StoreConnection.exchange(self, QUESTIONS)).admitted:
            await self.close()
            raise Recovering("the store was started anew, and is judged before orders are taken on it")
        return connection


class AdmittedSharedConnection(SharedConnection, AdmittedConnection):
    """As both; many tasks may use it."""
