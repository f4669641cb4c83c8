"""Services of a benchmark's own, and a campaign on them that cannot sell out."""

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from core.desk.campaigns import CampaignDesk
from core.ids import IdSource, campaign_tag
from core.ledger.migrate import migrate
from core.model import CampaignSpec, Limits, RateLimits, SkuSpec
from core.settings import Settings
from core.wire import Held, encode, fingerprint, request_field
from gateway.catalogue import Sale
from lua.connection import SharedConnection
from lua.durability import Durability
from lua.reserve import Ask
from ops.desk import connect_ledger, open_desk
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore

CHANNEL_KEY = "bench-channel-key-0"
UNITS = 50_000_000


class Services(NamedTuple):
    """Running services, settings of processes on them, and connections to them."""

    settings: Settings
    store_process: EmbeddedStore
    replica_process: EmbeddedStore | None  # at level `replicated`
    ledger_process: EmbeddedLedger
    store: SharedConnection
    desk: CampaignDesk

    async def open_sale(self, name: str, rates: Mapping[str, str] | None = None) -> Sale:
        """A campaign with limits and one SKU, open."""
        spec = msgspec.structs.replace(campaign_spec(), rates=RateLimits(**rates or {}))
        await self.desk.put(name, spec)
        await self.desk.open(name)
        return Sale(name, 1, 1, spec, self.settings.shards)


def campaign_spec() -> CampaignSpec:
    """Open all day; limits that a new buyer per request does not meet."""
    now = datetime.now(UTC)
    return CampaignSpec(
        opens_at=now - timedelta(hours=1),
        closes_at=now + timedelta(days=1),
        currency="CNY",
        pay_within_s=900,
        limits=Limits(buyer=2),
        skus=[SkuSpec("phone-red", "Phone, red", UNITS, 129_900)],
    )


@contextlib.asynccontextmanager
async def services(durability: Durability = "fsync") -> AsyncIterator[Services]:
    """Embedded Valkey (fsync before each reply) and Postgres in a temporary folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="rushgate-bench-") as folder:
        store, ledger = EmbeddedStore(folder, appendonly=durability != "memory"), EmbeddedLedger(folder)
        replica = EmbeddedStore(folder, replica_of=store, name="replica-1") if durability == "replicated" else None
        try:
            store_url = await store.start()
            if replica is not None:
                await replica.start()
            settings = Settings(
                store_url=store_url,
                durability=durability,
                ledger_dsn=await ledger.start(),
                channel_keys={"app": CHANNEL_KEY},
                log_level="warning",
            )
            connection = await connect_ledger(settings)
            await migrate(connection)
            await connection.close()
            async with open_desk(settings) as desk:
                yield Services(settings, store, replica, ledger, desk.store, desk.campaigns)
        finally:
            if replica is not None:
                await replica.stop()
            await store.stop()
            await ledger.stop()


_ids = IdSource()
_run = format(time.time_ns(), "x")[-9:]


def asks(sale: Sale, first: int, count: int) -> list[Ask]:
    """Requests of `count` new buyers for one unit each, numbered from `first` on, as a gateway makes them."""
    tag = campaign_tag(sale.campaign)
    made = []
    for n in range(first, first + count):
        key, buyer = f"{_run}-k{n:09d}", f"{_run}-b{n:09d}"
        items = [("phone-red", 1, 129_900)]
        ip, device = f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", f"device-{n:09d}"
        held = encode(Held("app", key, buyer, items, 129_900, "CNY", ip, device))
        made.append(
            Ask(
                request_field("app", key), _ids.new(sale.shards[0], tag), fingerprint(buyer, items, device, None),
                held, b"", buyer, ip, device, ("phone-red", 1),
            )
        )  # fmt: skip
    return made
