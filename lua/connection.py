"""One connection to the store: pipelined script calls by one owner, verified at each connect.

Source: facts.md, "Clients": redis-py's own connection without its pool and without its retries, which execute again.
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection, Connection, parse_url

from core.errors import StoreNotAsPromised, StoreUnavailable
from lua.durability import TOUCH, Level, Unconfirmed, judge, questions
from lua.keys import touch_key
from lua.source import LuaSource

LocalLevel = Literal["memory", "fsync"]  # these need no numbers, and may be given by name
Command = Sequence[bytes | str | int]
Reply = Any  # what hiredis makes of a reply: int, bytes, list, None, or a ResponseError in its place
Exchange = Callable[[Sequence[Command]], Awaitable[list[Reply]]]

_pack: Any = hiredis.pack_command  # its stub takes tuples of one element only


class StoreConnection:
    """A connection that one task owns. Not for use by two tasks at once."""

    def __init__(self, url: str, level: Level | LocalLevel, timeout_s: float, name: str) -> None:
        """Makes no contact yet. `name` is shown by CLIENT LIST.

        `timeout_s` bounds a connect and an exchange; at level `replicated` the wait for the replicas comes on top.
        """
        self._level = level if isinstance(level, Level) else Level(level)
        self._timeout_s = timeout_s + self._level.wait_ms / 1000
        self._url = url
        self._name = name
        self._connection: AbstractConnection | None = None
        self.greet: Callable[[StoreConnection], Awaitable[None]] | None = None  # called when a connection was made
        self.run_id = ""  # of the server, written by whoever greets it

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
        kwargs |= {"protocol": 2, "client_name": self._name, "socket_timeout": None, "retry": None}
        connection: AbstractConnection = kind(**kwargs)
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                settings, role = await _talk(connection, questions(self._level))
        except (TimeoutError, OSError, redis_errors.RedisError) as exc:
            await connection.disconnect(nowait=True)
            why = _unreadable(kwargs) or str(exc) or "timeout"
            raise StoreUnavailable(f"the store cannot be reached: {why}") from exc
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        problem = judge(self._level, settings, role)
        if problem is not None:
            await connection.disconnect(nowait=True)
            raise problem
        self._connection = connection
        if self.greet is not None:
            try:
                await self.greet(self)
            except BaseException:
                await self.close()
                raise
        return connection

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
            raise StoreUnavailable(f"the store did not answer: {str(exc) or 'timeout'}") from exc
        except BaseException:
            await self.close()  # unread replies would answer the next question
            raise
        if any(isinstance(reply, redis_errors.ReadOnlyError) for reply in replies):
            await self.close()  # no primary any more: the next connect may find the one that is
        return replies

    async def run(self, script: LuaSource, calls: Sequence[Command], confirm: bool = True) -> list[Reply]:
        """The replies to pipelined calls of one script; a call is `(number of keys, keys…, arguments…)`.

        At level `replicated` the replicas have what the replies tell, whoever wrote it; `confirm` = False: it may be
        lost by a failover. Survives SCRIPT FLUSH: calls answered NOSCRIPT had no effect and are sent again with the
        text.

        Raises: as `exchange`; Unconfirmed.
        """
        wanted = [(script, call) for call in calls]
        if not (confirm and calls and self._level.replicas and script.writes):
            return await self._run(wanted, [])
        *replies, touched, confirmed = await self._run(
            [*wanted, (TOUCH, (1, touch_key(_key_of(calls[-1]))))],
            [("WAIT", self._level.replicas, self._level.wait_ms)],
        )
        for reply in (touched, confirmed):
            if isinstance(reply, redis_errors.RedisError):
                raise Unconfirmed(f"not confirmed by replicas: the store answers {type(reply).__name__}: {reply}")
        if confirmed < self._level.replicas:
            level = f"{confirmed} of {self._level.replicas} replicas in {self._level.wait_ms} ms"
            raise Unconfirmed(f"confirmed by {level}: it may have happened, and a failover may lose it")
        return replies

    async def confirm(self, key: bytes) -> None:
        """At level `replicated` the replicas have all that the store wrote before; `key`: any one of a shard.

        Raises: as `run`.
        """
        if self._level.replicas:
            await self.run(TOUCH, [(1, touch_key(key))])

    async def _run(self, wanted: list[tuple[LuaSource, Command]], tail: list[Command]) -> list[Reply]:
        """The replies to calls of scripts, then those to the commands of `tail`."""
        replies = await self.exchange([*(("EVALSHA", script.sha, *call) for script, call in wanted), *tail])
        missing = [i for i, r in enumerate(replies) if isinstance(r, redis_errors.NoScriptError)]
        if missing:
            if tail and missing[-1] != len(wanted) - 1:
                missing.append(len(wanted) - 1)  # the touch: it must come after what is carried out now
            texts: list[Command] = [("EVAL", wanted[i][0].text, *wanted[i][1]) for i in missing]
            again = await self.exchange([*texts, *tail])
            for i, reply in zip([*missing, *range(len(wanted), len(replies))], again, strict=True):
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

    def __init__(self, url: str, level: Level | LocalLevel, timeout_s: float, name: str) -> None:
        super().__init__(url, level, timeout_s, name)
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


def _key_of(call: Command) -> bytes:
    key = call[1]
    return key if isinstance(key, bytes) else str(key).encode()


def _unreadable(kwargs: dict[str, Any]) -> str:
    """Which file of the URL cannot be read: what OpenSSL says of it names none."""
    names = (name for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if kwargs.get(name))
    return next((f"the file of {name} cannot be read" for name in names if not os.access(kwargs[name], os.R_OK)), "")


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
