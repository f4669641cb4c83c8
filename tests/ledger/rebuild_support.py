"""What the tests of a rebuild build their cases from: a campaign with orders in every stage, a loss, what must hold."""

from typing import Any

from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.rebuild import Rebuilder
from core.ledger.pool import Pool
from core.model import AuditReport
from core.settings import Settings
from lua.connection import SharedConnection, StoreConnection
from lua.reserve import Ask, ReserveCode
from lua.scripts import Scripts
from tests.ledger.reconcile_support import cancel, pay, relay
from tests.ledger.support import Sale, drain, make_worker
from tests.support import fresh


def rebuilder(desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool) -> Rebuilder:
    return Rebuilder(desk, auditor, store, ledger, fresh("test"))


class Life:
    """A campaign that has orders in every stage: held, paid and sold, cancelled, sold and given back.

    `stages`: what each stage's orders were asked for, and their ids.
    """

    def __init__(self, sale: Sale, settings: Settings, ledger: Pool, store: SharedConnection) -> None:
        self.sale = sale
        self.settings = settings
        self.ledger = ledger
        self.store = store
        self.asked: dict[bytes, Ask] = {}
        self.stages: dict[str, list[bytes]] = {}

    async def accept(self, count: int, **fields: Any) -> list[bytes]:
        """So many orders, one red each, of new buyers."""
        found = []
        for _ in range(count):
            buyer = fresh("buyer")
            part = self.sale.part(buyer)
            ask = part.ask(buyer, **fields)
            answers = await part.reserve(self.store, ask)
            assert answers.outcomes[0].code is ReserveCode.ACCEPTED, answers
            self.asked[ask.order_id] = ask
            found.append(ask.order_id)
        return found

    async def drain(self) -> None:
        await drain(self.store, make_worker(self.settings, self.ledger, fresh("w")))

    async def relay(self) -> int:
        return await relay(self.ledger, self.settings)

    async def live(self, each: int = 3) -> None:
        """So many orders in each stage, the store's messages delivered."""
        for stage in ("held", "sold", "cancelled", "back"):
            self.stages[stage] = await self.accept(each, ip="10.0.0.1", device="d1")
        await self.drain()
        for order in self.stages["cancelled"]:
            await cancel(self.ledger, order)
        for order in self.stages["sold"] + self.stages["back"]:
            await pay(self.ledger, order)
        await self.relay()
        for order in self.stages["back"]:
            await cancel(self.ledger, order)
        await self.relay()

    async def replayed(self, epoch: int, lost: tuple[bytes, ...] = ()) -> None:
        """The key of every accepted order that was not `lost` gives its order again, another body does not."""
        for part in self.sale.parts:
            part.epoch = epoch
        for order, ask in self.asked.items():
            if order in lost:
                continue
            part = self.sale.part(ask.buyer_id)
            other = ask._replace(order_id=part.ask("x").order_id)
            answers = await part.reserve(self.store, other, other._replace(fingerprint=b"otherone"))
            assert [o.code for o in answers.outcomes] == [ReserveCode.REPLAYED, ReserveCode.KEY_REUSED]
            assert answers.outcomes[0].order_id == order

    async def sell_out(self, epoch: int) -> int:
        """Every unit that is left is sold, on each shard; how many that were. No more than are left."""
        sold = 0
        for part in self.sale.parts:
            part.epoch = epoch
            while True:
                ask = part.ask(fresh("late"))
                [outcome] = (await part.reserve(self.store, ask)).outcomes
                if outcome.code is ReserveCode.SOLD_OUT:
                    break
                assert outcome.code is ReserveCode.ACCEPTED
                self.asked[ask.order_id] = ask
                sold += 1
        return sold

    async def taken(self) -> tuple[int, int, int, int]:
        """Allocation, left, held, sold of red over all shards."""
        readings = await Scripts(self.store).audit([p.keys for p in self.sale.parts])
        a, left, h, s = (
            sum(getattr(r, name)["red"] for r in readings) for name in ("allocation", "left", "held", "sold")
        )
        return a, left, h, s


async def wiped(store: StoreConnection) -> None:
    """The store has lost everything."""
    assert (await store.exchange([("FLUSHALL",)])) == [b"OK"]


async def in_service(desk: CampaignDesk, auditor: Auditor, sale: Sale, epoch: int, state: str = "open") -> AuditReport:
    """The campaign is in its state again, under this epoch, and its balance is right."""
    known = await desk.show(sale.campaign)
    assert (known.state, known.epoch) == (state, epoch)
    report = await auditor.audit(sale.campaign)
    assert report.ok, report
    return report


async def letters(ledger: Pool) -> list[tuple[UUID, str]]:
    return [(r["order_id"], r["reason"]) for r in await ledger.fetch("SELECT order_id, reason FROM dead_letters")]
