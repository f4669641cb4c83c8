"""Connections to the ledger, each with its time limits, and the sorting of what goes wrong on them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from core.errors import LedgerUnavailable

Pool = asyncpg.Pool
T = TypeVar("T")

# Losers of a race between transactions: the same idempotent statement again is the answer.
RACES = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
# The ledger is away, starting, full or slow: the same statement may do later.
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # asyncpg has read why the server ends a connection, and is used again before it has seen the end itself.
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,  # shutdown, and a cancelled statement
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password or a database that is changed while we run
    asyncpg.InvalidCatalogNameError,
    asyncpg.PostgresSystemError,  # an I/O error of the server
)

CLOSE_S = 0.5  # of a graceful stop


async def _as_it_is(_: asyncpg.Connection) -> None:
    """Nobody here changes a session beyond its transaction: no statement is needed to undo it at each release."""


async def open_pool(dsn: str, name: str, timeout_s: float, size: int) -> Pool:
    """At most `size` connections, made when needed; `name` is shown by pg_stat_activity.

    Makes no contact yet, so a process can start while the ledger is away.
    """
    ms = str(int(timeout_s * 1000))
    return await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        timeout=timeout_s,
        command_timeout=timeout_s,
        reset=_as_it_is,
        server_settings={
            "application_name": name,
            "statement_timeout": ms,
            "lock_timeout": ms,
            "idle_in_transaction_session_timeout": ms,
            "jit": "off",  # short statements: compiling them costs more than it saves
        },
    )


async def close_pool(pool: Pool, within_s: float = CLOSE_S) -> None:
    """No connection is open. What a cancelled task was giving back is given back first, as long as the ledger answers.

    A connection torn away under it would leave an error that nobody awaits, and a stack trace in the log.
    """
    with contextlib.suppress(*AWAY, *RACES, asyncpg.PostgresError):
        await asyncio.wait_for(pool.close(), within_s)
    pool.terminate()


async def ask(call: Callable[[], Awaitable[T]], attempts: int = 5, timeout_s: float | None = None) -> T:
    """The result of an idempotent `call`, repeated at once when it loses a race; `timeout_s` bounds each attempt.

    Raises:
        LedgerUnavailable: the ledger is away; the statement may or may not have been carried out.
        asyncpg.PostgresError: the statement or its parameters are at fault; nothing was carried out.
    """
    for attempt in range(attempts):
        try:
            # Waiting for a connection of the pool counts too: the pool's own limit is for the statement alone.
            async with asyncio.timeout(timeout_s):
                return await call()
        except RACES as exc:
            if attempt + 1 == attempts:
                raise LedgerUnavailable(f"lost {attempts} races in a row: {exc}") from exc
            await asyncio.sleep(0.002 * 2**attempt)
        except AWAY as exc:
            silent = isinstance(exc, TimeoutError) and not str(exc)  # as a time limit is
            why = "no answer in time" if silent else f"{type(exc).__name__}: {exc}"
            raise LedgerUnavailable(f"the ledger cannot be used: {why}") from exc
    raise AssertionError("unreachable")
