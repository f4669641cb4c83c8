"""A store of its own that the fault tests kill, empty and replace, with the ledger and the workers beside it."""

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.errors import Recovering, StoreUnavailable
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.life import AdmittedConnection
from ops.embedded_store import EmbeddedStore
from tests.ledger.rebuild_support import Life
from tests.ledger.reconcile_support import open_alerts
from tests.ledger.support import Sale, make_worker, running
from tests.support import LEASE_MS, SHARDS, eventually, fresh, tell
from workers.reconcile import ReconcileWorker


class Site:
    """A store of its own on a port that stays, the session's ledger, a ledger worker and a reconcile worker."""

    def __init__(self, data: Path, store: EmbeddedStore, settings: Settings, ledger: Pool) -> None:
        self.data = data
        self.server = store
        self.settings = settings
        self.ledger = ledger
        url = settings.store_url
        self.bare = SharedConnection(url, "fsync", 5.0, "bare")
        self.door = AdmittedConnection(url, "fsync", 5.0, "door")
        self.desk = CampaignDesk(self.bare, ledger, SHARDS, LEASE_MS)
        self.auditor = Auditor(self.desk, self.bare, ledger, SHARDS)
        self.sale: Sale
        self.life: Life

    async def open(self, spread: int) -> None:
        self.sale = await Sale.open(self.desk, {"red": 100}, limits={"buyer": 1}, spread=spread)
        self.life = Life(self.sale, self.settings, self.ledger, self.bare)
        await self.life.live()

    def reconciler(self, auto: bool = True) -> ReconcileWorker:
        store = SharedConnection(self.settings.store_url, "fsync", 5.0, "reconcile")
        return ReconcileWorker(store, self.ledger, SHARDS, LEASE_MS, 0.05, auto, fresh("reconcile"))

    @contextlib.asynccontextmanager
    async def working(self, auto: bool = True) -> AsyncIterator[ReconcileWorker]:
        worker = self.reconciler(auto)
        async with running(make_worker(self.settings, self.ledger, fresh("w"))), running(worker):
            yield worker

    async def taken_again(self) -> float:
        """How long it took, from now on, until orders may be taken, seconds."""
        began_s = time.monotonic()
        await eventually(self.open_door, 20.0, 0.005)
        return time.monotonic() - began_s

    async def open_door(self) -> bool:
        try:
            await self.door.connect()
        except StoreUnavailable:
            return False
        return True

    async def shut(self) -> None:
        """No order is taken on the store as it is now."""
        await self.door.close()
        with pytest.raises(Recovering):
            await self.door.connect()

    async def healed(self, epoch: int, lost: tuple[bytes, ...] = ()) -> None:
        """The campaign is open; its keys, limits and units are those of what was accepted; it sells out exactly."""

        async def is_open() -> bool:
            known = await self.desk.show(self.sale.campaign)
            states = [await tell(self.bare, "HGET", part.keys.meta, "state") for part in self.sale.parts]
            # The store hears of it last.
            return (known.state, known.epoch, set(states)) == ("open", epoch, {b"open"})

        await eventually(is_open, 20.0)
        await self.life.replayed(epoch, lost)
        await self.life.relay()
        held = [a for o, a in self.life.asked.items() if o in self.life.stages["held"]]
        again = await self.sale.buy(self.bare, [a.buyer_id for a in held])
        assert [o.code.name for o in again] == ["OVER_LIMIT"] * len(held)
        await self.life.sell_out(epoch)

        async def drained() -> bool:
            return (await self.auditor.audit(self.sale.campaign)).in_flight == 0

        await eventually(drained)
        report = await self.auditor.audit(self.sale.campaign)
        assert report.ok, report
        rows = await self.ledger.fetch(
            "SELECT o.order_id, EXISTS (SELECT FROM stock_moves m WHERE m.kind = 'return' AND m.state = 'applied' "
            "AND m.move_id LIKE 'return.' || o.order_id || '.%') AS back, o.state FROM orders o"
        )
        gone = sum(r["back"] or r["state"] in ("cancelled", "expired") for r in rows)
        assert len(rows) - gone == 100

        async def no_alerts() -> bool:
            return await open_alerts(self.ledger) == {}

        await eventually(no_alerts)


@contextlib.asynccontextmanager
async def site_of(settings: Settings, ledger: Pool, spread: int = 1) -> AsyncIterator[Site]:
    """Running, with a campaign of orders in every stage."""
    # Not in pytest's own folder: see tests/conftest.py.
    with tempfile.TemporaryDirectory(prefix="rushgate-test-") as folder:
        store = EmbeddedStore(folder)
        try:
            url = await store.start()
            found = Site(Path(folder), store, settings.with_values(store_url=url), ledger)
            await found.open(spread)
            yield found
            await found.bare.close()
            await found.door.close()
        finally:
            await store.stop()
