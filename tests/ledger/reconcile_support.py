"""What the tests of the reconcile worker build their cases from: workers, the relay, losses, what is on record."""

from datetime import UTC, datetime
from typing import Any

from asyncpg.pgproto.pgproto import UUID

from core.desk.campaigns import Campaign, CampaignDesk
from core.desk.orders import OrderDesk
from core.ids import text_of
from core.ledger.pool import Pool
from core.model import Payment
from core.settings import Settings
from core.wire import read_entry
from lua.connection import SharedConnection, StoreConnection
from lua.keys import SaleKeys
from lua.scripts import Scripts
from tests.ledger.support import Sale, drain, make_worker
from tests.support import LEASE_MS, SHARDS, fresh, tell
from workers.mender import Mender
from workers.reconcile import ReconcileWorker
from workers.relay import RelayWorker
from workers.repairs import Mended


def reconciler(settings: Settings, ledger: Pool, every_s: float = 0.01, auto: bool = True) -> ReconcileWorker:
    """A worker that is not running yet, with a store connection of its own."""
    store = SharedConnection(settings.store_url, "fsync", 2.0, "reconcile")
    return ReconcileWorker(store, ledger, SHARDS, LEASE_MS, every_s, auto)


async def round_of(settings: Settings, ledger: Pool) -> ReconcileWorker:
    """A worker that has made one round and is gone."""
    worker = reconciler(settings, ledger)
    await worker.step()
    worker.stop()
    await worker.run()
    return worker


async def mend(desk: CampaignDesk, sale: Sale, mender: Mender) -> Mended:
    known: Campaign = await desk.show(sale.campaign)
    return await mender.mend(known)


async def relay(ledger: Pool, settings: Settings) -> int:
    """All of the store's messages are delivered; how many there were."""
    worker = RelayWorker(ledger, StoreConnection(settings.store_url, "fsync", 10.0, "relay"), range(SHARDS))
    while await worker.step():
        pass
    await worker.run_down()
    return worker.delivered


async def pay(ledger: Pool, order: bytes) -> None:
    """The payment centre says that the order is paid."""
    values: dict[str, Any] = {
        "payment_no": fresh("p"), "order_id": text_of(order), "amount": 100, "currency": "CNY",
        "status": "paid", "paid_at": datetime.now(UTC),
    }  # fmt: skip
    await OrderDesk(ledger, SHARDS).pay(Payment(**values), order)


async def cancel(ledger: Pool, order: bytes) -> None:
    await OrderDesk(ledger, SHARDS).act(order, "cancel", "buyer", "buyer:app")


async def repairs(ledger: Pool) -> list[tuple[str, bytes]]:
    """What was done, and for which order."""
    rows = await ledger.fetch("SELECT what, order_id FROM repairs ORDER BY what, order_id, at")
    return [(r["what"], r["order_id"].bytes) for r in rows]


async def open_alerts(ledger: Pool) -> dict[str, int]:
    """Kind -> how often it was seen, of those that stand."""
    return {r["kind"]: r["seen"] for r in await ledger.fetch("SELECT kind, seen FROM alerts WHERE over_at IS NULL")}


async def is_set_aside(ledger: Pool, campaign: str) -> bool:
    """It waits for a person, and nobody is at it."""
    waits = "SELECT state = 'recovering' AND coalesce(rebuilt_until < clock_timestamp(), true)"
    return bool(await ledger.fetchval(waits + " FROM campaigns WHERE campaign = $1", campaign))


async def stock(scripts: Scripts, keys: SaleKeys) -> tuple[int, int, int]:
    """Left, held, sold of `red`."""
    [found] = await scripts.audit([keys])
    return found.left["red"], found.held["red"], found.sold["red"]


async def entry_lost(store: StoreConnection, keys: SaleKeys, nth: int = 0) -> list[bytes]:
    """An entry of the intake is gone, acknowledged by nobody; the ids of its orders."""
    entries = await tell(store, "XRANGE", keys.intake, "-", "+")
    entry_id, fields = entries[nth]
    assert await tell(store, "XDEL", keys.intake, entry_id) == 1
    return [order_id for order_id, _ in read_entry(fields)[1]]


async def set_aside(settings: Settings, store: SharedConnection, ledger: Pool, name: str = "strict") -> list[bytes]:
    """What stands in the intake cannot be written for a passing reason, and is set aside; the ids of these orders."""
    await ledger.execute("ALTER TABLE orders ADD CONSTRAINT orders_none CHECK (amount < 0) NOT VALID")
    await drain(store, make_worker(settings, ledger, name))
    await ledger.execute("ALTER TABLE orders DROP CONSTRAINT orders_none")
    return [r["order_id"].bytes for r in await ledger.fetch("SELECT order_id FROM dead_letters ORDER BY order_id")]


async def given_up(ledger: Pool, order: bytes, ago_s: int = 60) -> None:
    """An operator has dropped the order, and came no further."""
    await ledger.execute(
        "UPDATE dead_letters SET dropped_at = now() - make_interval(secs => $2) WHERE order_id = $1", UUID(order), ago_s
    )


async def copied(store: StoreConnection, keys: SaleKeys) -> dict[bytes, dict[bytes, bytes]]:
    """The hashes of a campaign on a shard, as they are now."""
    found = {}
    for key in (keys.stock, keys.used, keys.holds, keys.deltas):
        flat = await tell(store, "HGETALL", key)
        found[key] = dict(zip(flat[::2], flat[1::2], strict=True))
    return found


async def put_back(store: StoreConnection, copy: dict[bytes, dict[bytes, bytes]]) -> None:
    """The store is as an old copy of it has it."""
    for key, pairs in copy.items():
        await tell(store, "DEL", key)
        if pairs:
            await tell(store, "HSET", key, *(part for pair in pairs.items() for part in pair))


async def state(ledger: Pool, order: bytes) -> str:
    return str(await ledger.fetchval("SELECT state FROM orders WHERE order_id = $1", UUID(order)))
