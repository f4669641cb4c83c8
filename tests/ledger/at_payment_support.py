"""What the tests of orders that take their units when they are paid build their cases from."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from asyncpg.pgproto.pgproto import UUID

from core.desk.campaigns import CampaignDesk
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.scripts import Scripts
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_relay_restock import Died, Mortal, run
from tests.ledger.test_relay_restock import relay as relay_on

__all__ = ["relay_on", "run"]

ORDERS = 20
UNITS = 5


async def opened(desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool) -> Sale:
    """20 unpaid orders of one red each, in the ledger; 5 red are for sale, one a buyer."""
    found = await Sale.open(desk, {"red": UNITS}, order_type="reserve_at_payment", limits={"buyer": 1})
    await found.accept(store, ORDERS, ("red", 1))
    await drain(store, make_worker(settings, ledger))
    return found


class Broken(Mortal):
    """A ledger whose relay dies at a statement of its own, or (`act`) around the transaction of a single order."""

    def __init__(self, ledger: Pool, statement: str, when: str) -> None:
        super().__init__(ledger, "" if statement == "act" else statement, when)
        self._act = statement == "act"

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        if self._act and self._when == "before":
            raise Died
        async with self._ledger.acquire() as connection:
            yield connection
        if self._act:
            raise Died


async def stock(scripts: Scripts, sale: Sale) -> tuple[int, int, int]:
    """Left, held, sold."""
    [found] = await scripts.audit([sale.parts[0].keys])
    return found.left["red"], found.held["red"], found.sold["red"]


async def state(ledger: Pool, order: bytes) -> str:
    return str(await ledger.fetchval("SELECT state FROM orders WHERE order_id = $1", UUID(order)))


async def buyer_used(ledger: Pool, store: SharedConnection, sale: Sale, order: bytes) -> bytes | None:
    """What the limit counter of the order's buyer says; None = nothing is counted."""
    buyer = await ledger.fetchval("SELECT buyer_id FROM orders WHERE order_id = $1", UUID(order))
    [reply] = await store.exchange([("HGET", sale.parts[0].keys.used, f"b:{buyer}")])
    assert reply is None or isinstance(reply, bytes)
    return reply


async def due(ledger: Pool) -> None:
    """Every lease has passed."""
    await ledger.execute("UPDATE outbox SET due_at = now()")


async def steps(ledger: Pool, order: bytes) -> list[str]:
    rows = await ledger.fetch("SELECT action FROM order_events WHERE order_id = $1 ORDER BY version", UUID(order))
    return [row["action"] for row in rows]


async def outcomes(ledger: Pool, order: bytes) -> dict[str, str]:
    """What became of the order's messages for the store, by topic."""
    rows = await ledger.fetch("SELECT topic, outcome FROM deliveries WHERE order_id = $1", UUID(order))
    return {row["topic"]: row["outcome"] for row in rows}
