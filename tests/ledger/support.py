"""What the ledger's tests build their cases from: a sale over all its shards, rows, entries, workers, counts."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import asyncpg

from core.desk.campaigns import CampaignDesk
from core.ids import IdSource, campaign_tag
from core.ledger.migrate import migrate
from core.ledger.pool import Pool
from core.model import ShipTo
from core.settings import Settings
from core.wire import Header, Placed, encode, read_entry, write_entry
from lua.connection import StoreConnection
from lua.keys import buyer_slot, home_shards, intake_key, sale_keys
from lua.reserve import Outcome, ReserveCode
from ops.embedded_ledger import EmbeddedLedger
from tests.support import SHARDS, StoreSale, eventually, fresh, spec
from workers.entries import OrderRow
from workers.ledger import GROUP, LedgerWorker
from workers.process import Worker
from workers.writer import LedgerWriter

TABLES = ("orders", "order_items", "order_events", "outbox", "dead_letters")
ACCEPTED_MS = 1_760_000_000_000

_ids = IdSource()


class Sale:
    """An open campaign, in store and ledger; a buyer's requests go to the buyer's shard as a gateway sends them."""

    def __init__(self, campaign: str, spread: int) -> None:
        self.campaign = campaign
        self.shards = home_shards(campaign, spread, SHARDS)
        self.parts = [StoreSale(campaign, sale_keys(s, campaign), s) for s in self.shards]

    @classmethod
    async def open(cls, desk: CampaignDesk, stock: dict[str, int] | None = None, **fields: Any) -> "Sale":
        sale = cls(fresh("sale"), fields.get("spread", 1))
        await desk.put(sale.campaign, spec(stock, **fields))
        await desk.open(sale.campaign)
        return sale

    def part(self, buyer: str) -> StoreSale:
        return self.parts[buyer_slot(buyer, len(self.parts))]

    async def buy(self, store: StoreConnection, buyers: Iterable[str], *lines: tuple[str, int]) -> list[Outcome]:
        """One order a buyer, one batch a shard; the outcomes by shard."""
        outcomes: list[Outcome] = []
        names = list(buyers)
        for part in self.parts:
            asks = [part.ask(name, *lines) for name in names if self.part(name) is part]
            if asks:
                outcomes += (await part.reserve(store, *asks)).outcomes
        return outcomes

    async def accept(self, store: StoreConnection, count: int, *lines: tuple[str, int]) -> None:
        """So many orders of so many buyers are accepted."""
        outcomes = await self.buy(store, [fresh("buyer") for _ in range(count)], *lines)
        assert [o.code for o in outcomes] == [ReserveCode.ACCEPTED] * count


def placed(ship_to: ShipTo | None = None, **fields: Any) -> Placed:
    """An order of one unit of `red`; `fields` replace the defaults."""
    values: dict[str, Any] = {
        "channel": "app", "request_key": fresh("key"), "buyer_id": "anna", "items": [("red", 1, 100)],
        "amount": 100, "currency": "CNY", "client_ip": "", "device_id": "",
    }  # fmt: skip
    return Placed(**values | fields, ship_to=ship_to)


def order_id(shard: int, campaign: str = "sale") -> bytes:
    return _ids.new(shard, campaign_tag(campaign))


def row(seq: int, shard: int = 3, campaign: str = "sale", **fields: Any) -> OrderRow:
    """An order as the worker hands it to the writer, in an entry of its own."""
    order = placed(**fields)
    header = Header(campaign, 1, ACCEPTED_MS, ACCEPTED_MS + 900_000, seq)
    return OrderRow(shard, order_id(shard), f"{seq}-0".encode(), 0, header, order, encode(order))


def header(first_seq: int, campaign: str = "sale", version: int = 1) -> bytes:
    return f"{version}|{campaign}|1|{ACCEPTED_MS}|{ACCEPTED_MS + 900_000}|{first_seq}".encode()


def garbled(fields: Sequence[bytes]) -> list[bytes]:
    """An entry whose first order nobody can read."""
    head, orders = read_entry(fields)
    return write_entry(head, [(orders[0][0], b"garbage"), *orders[1:]])


async def add_entry(store: StoreConnection, shard: int, *fields: bytes) -> bytes:
    """An intake entry of these fields; returns its id."""
    [reply] = await store.exchange([("XADD", intake_key(shard), "*", *fields)])
    assert isinstance(reply, bytes)
    return reply


async def add_orders(store: StoreConnection, shard: int, first_seq: int, count: int, **fields: Any) -> list[bytes]:
    """An intake entry of `count` good orders; returns their ids."""
    ids = [order_id(shard) for _ in range(count)]
    flat = [part for i in ids for part in (i, encode(placed(**fields)))]
    await add_entry(store, shard, b"h", header(first_seq), *flat)
    return ids


async def intake(store: StoreConnection, shards: Sequence[int] = range(SHARDS)) -> int:
    """Entries on the streams."""
    return sum(await store.exchange([("XLEN", intake_key(s)) for s in shards]))


async def pending(store: StoreConnection, shards: Sequence[int] = range(SHARDS)) -> dict[str, int]:
    """Entries read and not acknowledged, by consumer."""
    found: dict[str, int] = {}
    for reply in await store.exchange([("XPENDING", intake_key(s), GROUP) for s in shards]):
        if isinstance(reply, list) and reply[0]:
            for name, count in reply[3]:
                found[name.decode()] = found.get(name.decode(), 0) + int(count)
    return found


async def consumers(store: StoreConnection, shard: int) -> set[str]:
    [reply] = await store.exchange([("XINFO", "CONSUMERS", intake_key(shard), GROUP)])
    return {one[1].decode() for one in reply}


async def counts(ledger: Pool) -> dict[str, int]:
    """Rows by table."""
    return {table: await ledger.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}  # noqa: S608 - our names


def whole(orders: int, letters: int = 0) -> dict[str, int]:
    """`counts` of orders of one line each, none written twice."""
    return dict.fromkeys(TABLES, orders) | {"dead_letters": letters}


def make_worker(
    settings: Settings,
    ledger: Pool,
    name: str = "one",
    *,
    writer: LedgerWriter | None = None,
    connection: StoreConnection | None = None,
    drain_orders: int = 1_000,
    claim_idle_ms: int = 60_000,
    drain_pause_ms: int = 0,
) -> LedgerWorker:
    """A worker on all shards with a store connection of its own."""
    connection = connection or StoreConnection(settings.store_url, "fsync", 2.0, name)
    writer = writer or LedgerWriter(ledger)
    return LedgerWorker(connection, writer, range(SHARDS), name, drain_orders, claim_idle_ms, drain_pause_ms)


@contextlib.asynccontextmanager
async def running(*workers: Worker) -> AsyncIterator[None]:
    """The workers run; at the end they have stopped gracefully, and what one of them died of is raised."""
    tasks = [asyncio.create_task(w.run()) for w in workers]
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        await asyncio.gather(*tasks)


async def drained(store: StoreConnection, timeout_s: float = 30.0) -> None:
    """The streams are empty and nothing is pending."""

    async def empty() -> bool:
        return not await intake(store) and not await pending(store)

    await eventually(empty, timeout_s)


async def drain(store: StoreConnection, worker: LedgerWorker) -> None:
    """The worker has emptied the streams, step by step, and has left."""
    for _ in range(100):
        if not await intake(store):
            break
        await worker.step()
    assert not await intake(store)
    worker.stop()
    await worker.run()


@contextlib.asynccontextmanager
async def spare_ledger() -> AsyncIterator[EmbeddedLedger]:
    """A running ledger server with the newest schema, to be stopped and started.

    Not in pytest's folder: each pytest that starts takes the right to pass through it from the server's user.
    """
    with tempfile.TemporaryDirectory(prefix="rushgate-test-") as folder:
        embedded = EmbeddedLedger(folder)
        try:
            connection = await asyncpg.connect(await embedded.start())
            await migrate(connection)
            await connection.close()
            yield embedded
        finally:
            await embedded.stop()


@contextlib.asynccontextmanager
async def table_locked(dsn: str, table: str = "orders") -> AsyncIterator[asyncpg.Connection]:
    """Nobody else can read or write the table; yields a connection of another transaction."""
    holder, other = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        async with holder.transaction():
            await holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield other
    finally:
        await holder.close()
        await other.close()


async def waiting_for_lock(connection: asyncpg.Connection, name: str = "%") -> int:
    """The backend of an application of this name, as soon as it waits for a lock."""

    async def backend() -> int | None:
        found: int | None = await connection.fetchval(
            "SELECT min(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name LIKE $1",
            name,
        )
        return found

    return int(await eventually(backend, 30.0))
