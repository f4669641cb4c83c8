"""One connection to the store: pipelined script calls by one owner, verified at each connect.

Source: facts.md, "Clients": redis-py's own connection without its pool and without its retries, which execute again.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Literal

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection, Connection, parse_url

from core.errors import StoreNotAsPromised, StoreUnavailable
from lua.source import LuaSource

Durability = Literal["memory", "fsync"]
Command = Sequence[bytes | str | int]
Reply = Any  # what hiredis makes of a reply: int, bytes, list, None, or a ResponseError in its place

_pack: Any = hiredis.pack_command  # its stub takes tuples of one element only

# What the store must say of itself, by durability level. Source: facts.md, "Durability of the store".
PROMISES: dict[Durability, dict[str, str]] = {
    "memory": {"maxmemory-policy": "noeviction"},
    "fsync": {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
    },
}


def broken_promises(found: dict[str, str], durability: Durability) -> list[str]:
    """What is not set as the level wants it, as sentences for people; empty = all is well."""
    return [
        f"{name} is {found.get(name, 'unknown')!r}, durability {durability!r} needs {wanted!r}"
        for name, wanted in PROMISES[durability].items()
        if found.get(name) != wanted
    ]


class StoreConnection:
    """A connection that one task owns. Not for use by two tasks at once."""

    def __init__(self, url: str, durability: Durability, timeout_s: float, name: str) -> None:
        """Makes no contact yet. `timeout_s` bounds a connect and an exchange; `name` is shown by CLIENT LIST."""
        self._durability = durability
        self._timeout_s = timeout_s
        self._url = url
        self._name = name
        self._connection: AbstractConnection | None = None

    async def connect(self) -> AbstractConnection:
        """Connected, and the store is a primary set as the durability level promises.

        Raises:
            StoreNotAsPromised: it answers, but is set otherwise.
            StoreUnavailable: no usable answer in time.
        """
        if self._connection is not None:
            return self._connection
        kwargs: dict[str, Any] = dict(parse_url(self._url))
        kind = kwargs.pop("connection_class", Connection)
        connection: AbstractConnection = kind(
            **kwargs, protocol=2, client_name=self._name, socket_timeout=None, retry=None
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                wanted = sorted(PROMISES[self._durability])
                settings, role = await _talk(connection, [("CONFIG", "GET", *wanted), ("ROLE",)])
        except (TimeoutError, OSError, redis_errors.RedisError) as exc:
            await connection.disconnect(nowait=True)
            raise StoreUnavailable(f"the store cannot be reached: {exc}") from exc
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        problem = self._judge(settings, role)
        if problem is not None:
            await connection.disconnect(nowait=True)
            raise problem
        self._connection = connection
        return connection

    def _judge(self, settings: Reply, role: Reply) -> StoreUnavailable | None:
        for reply in (settings, role):
            if isinstance(reply, redis_errors.RedisError):
                return StoreUnavailable(f"the store answers {reply}")
        if role[0] != b"master":
            return StoreUnavailable(f"the store is a {role[0].decode()}, not a primary")
        texts = [t.decode() for t in settings]
        problems = broken_promises(dict(zip(texts[::2], texts[1::2], strict=True)), self._durability)
        return StoreNotAsPromised("; ".join(problems)) if problems else None

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies to pipelined commands, in order; an error reply stands in its place as an exception.

        Raises:
            StoreUnavailable: some or all commands may or may not have been executed; the connection is closed.
        """
        connection = await self.connect()
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await _talk(connection, commands)
        except (TimeoutError, OSError, redis_errors.ConnectionError, redis_errors.TimeoutError) as exc:
            await self.close()
            raise StoreUnavailable(f"the store did not answer: {exc or 'timeout'}") from exc
        except BaseException:
            await self.close()  # unread replies would answer the next question
            raise
        if any(isinstance(reply, redis_errors.ReadOnlyError) for reply in replies):
            await self.close()  # no primary any more: the next connect may find the one that is
        return replies

    async def run(self, script: LuaSource, calls: Sequence[Command]) -> list[Reply]:
        """The replies to pipelined calls of one script; a call is `(number of keys, keys…, arguments…)`.

        Survives SCRIPT FLUSH: calls answered NOSCRIPT had no effect and are sent again with the text.
        Raises: as `exchange`.
        """
        replies = await self.exchange([("EVALSHA", script.sha, *call) for call in calls])
        missing = [i for i, r in enumerate(replies) if isinstance(r, redis_errors.NoScriptError)]
        if missing:
            again = await self.exchange([("EVAL", script.text, *calls[i]) for i in missing])
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        return replies

    async def close(self) -> None:
        """Closed at once; the next exchange connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


class SharedConnection(StoreConnection):
    """A connection that many tasks may use; their exchanges go one after another.

    For questions and idempotent scripts only: what a closed connection leaves open is asked once more on a new one.
    """

    def __init__(self, url: str, durability: Durability, timeout_s: float, name: str) -> None:
        super().__init__(url, durability, timeout_s, name)
        self._turn = asyncio.Lock()

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._turn.acquire()
        except TimeoutError as exc:
            raise StoreUnavailable("the store is slow: others wait for it already") from exc
        try:
            return await super().exchange(commands)
        except StoreNotAsPromised:
            raise
        except StoreUnavailable as exc:
            if isinstance(exc.__cause__, TimeoutError):
                raise  # it had its time; the caller's is worth more than a second wait
            return await super().exchange(commands)
        finally:
            self._turn.release()


async def _talk(connection: AbstractConnection, commands: Sequence[Command]) -> list[Reply]:
    # hiredis packs in C what redis-py's asyncio side packs in Python: 0.5 us an order instead of 4.
    packed = [_pack(tuple(command)) for command in commands]
    await connection.send_packed_command(packed)
    replies: list[Reply] = []
    for _ in commands:
        try:
            # math.inf: the caller's timeout holds for all replies together.
            replies.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
        except redis_errors.ResponseError as exc:
            replies.append(exc)
        except (redis_errors.BusyLoadingError, redis_errors.ReadOnlyError) as exc:
            replies.append(exc)
    return replies
