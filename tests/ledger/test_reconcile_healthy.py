"""The reconcile worker touches nothing that is well; controls show that these tests could see it do harm."""

import asyncio
from collections.abc import Sequence

import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from tests.ledger.reconcile_support import (
    cancel,
    mend,
    open_alerts,
    pay,
    reconciler,
    relay,
    repairs,
    round_of,
)
from tests.ledger.relay_support import balanced, ids
from tests.ledger.support import Sale, drain, garbled, intake, make_worker, running
from tests.support import SHARDS, contents, eventually, tell
from workers.mender import Mender
from workers.orphans import Orphans
from workers.reconcile import ReconcileWorker
from workers.repairs import Ended, Part, Repairs


@pytest.fixture
async def sale(desk: CampaignDesk, store: SharedConnection) -> Sale:
    """Twelve orders of one red each, of 25, in four entries, not drained yet."""
    found = await Sale.open(desk, {"red": 25}, limits={"buyer": 1})
    for _ in range(4):
        await found.accept(store, 3)
    return found


async def busy(sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool) -> None:
    """A healthy sale: some orders in the ledger, one a dead letter, messages for holds, and a backlog in the intake."""
    keys = sale.parts[0].keys
    [[(entry_id, fields)]] = await store.exchange([("XRANGE", keys.intake, "-", "+", "COUNT", 1)])
    await store.exchange([("XDEL", keys.intake, entry_id)])
    await store.exchange([("XADD", keys.intake, "*", *garbled(fields))])
    await drain(store, make_worker(settings, ledger))
    known = await ids(ledger)
    for order in known[:3]:
        await cancel(ledger, order)
    for order in known[3:6]:
        await pay(ledger, order)
    await sale.accept(store, 3)
    await sale.accept(store, 2)


async def test_healthy_sale_is_left_alone(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    await busy(sale, settings, store, ledger)
    assert await ledger.fetchval("SELECT count(*) FROM dead_letters") == 1
    before = await contents(store)
    for _ in range(3):
        worker = await round_of(settings, ledger)
        assert (worker.mended, worker.alerts) == (0, 0)
    assert await contents(store) == before
    assert (await repairs(ledger), await open_alerts(ledger)) == ([], {})
    assert await relay(ledger, settings) == 6
    await drain(store, make_worker(settings, ledger, "two"))
    assert (await balanced(auditor, sale)).dead_lettered == 1


class Blind(Orphans):
    """Control: does not look into the intake."""

    async def _intake(self, part: Part, wanted: set[bytes]) -> tuple[set[bytes], list[tuple[int, int]]]:
        return set(), []


async def test_control_without_a_look_into_the_intake_a_backlog_is_put_back(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, desk: CampaignDesk
) -> None:
    """Control: shows that the healthy sale above would tell."""
    await busy(sale, settings, store, ledger)
    mender = Mender(store, ledger, SHARDS)
    mender._orphans = Blind(mender._repairs)
    assert (await mend(desk, sale, mender)).done == 5
    assert await intake(store) == 2 + 5


class Drained(Orphans):
    """The ledger worker empties the intake just before this looks into it."""

    settings: Settings

    async def _intake(self, part: Part, wanted: set[bytes]) -> tuple[set[bytes], list[tuple[int, int]]]:
        await drain(self._repairs.store, make_worker(self.settings, self._repairs.ledger, "meanwhile"))
        return await super()._intake(part, wanted)


class OneLook(Repairs):
    """Control: asks the ledger for each order only once."""

    asked: set[bytes]

    async def unknown(self, shard: int, ids: Sequence[bytes]) -> list[bytes]:
        again = [i for i in ids if i in self.asked]
        self.asked.update(ids)
        return again or await super().unknown(shard, ids)


@pytest.mark.parametrize("control", [False, True])
async def test_orders_drained_during_the_look_are_left_alone(
    control: bool, sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, desk: CampaignDesk,
    auditor: Auditor, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The control, without the second look at the ledger, takes them for orphans: it releases what nobody remembers,
    and would put the others back."""
    mender = Mender(store, ledger, SHARDS)
    mender._orphans = Drained(mender._repairs)
    mender._orphans.settings = settings
    keys = sale.parts[0].keys
    [field] = await tell(store, "HRANDFIELD", keys.requests, 1)
    record = await tell(store, "HGET", keys.requests, field)
    await tell(store, "HDEL", keys.requests, field)
    if control:
        mender._repairs.__class__ = OneLook
        monkeypatch.setattr(mender._repairs, "asked", set(), raising=False)
    mended = await mend(desk, sale, mender)
    await tell(store, "HSET", keys.requests, field, record)
    assert (mended.holds, mended.done) == (12, 1 if control else 0)
    assert len(await repairs(ledger)) == mended.done
    assert (await auditor.audit(sale.campaign)).ok is not control


class RelayedMeanwhile(Mender):
    """The relay delivers everything after this has read the holds and the ledger."""

    settings: Settings

    async def _sort(self, part: Part, ids: list[bytes], ended: dict[str, list[Ended]], unknown: set[bytes]) -> None:
        await relay(self._ledger, self.settings)
        await super()._sort(part, ids, ended, unknown)


async def test_holds_ended_by_the_relay_during_the_look_are_left_alone(
    sale: Sale, settings: Settings, store: SharedConnection, ledger: Pool, desk: CampaignDesk, auditor: Auditor
) -> None:
    await busy(sale, settings, store, ledger)
    mender = RelayedMeanwhile(store, ledger, SHARDS)
    mender.settings = settings
    mended = await mend(desk, sale, mender)
    assert (mended.done, mended.wrong) == (0, [])
    assert await repairs(ledger) == []


async def test_worker_that_runs_through_a_sale_mends_nothing_and_alerts_nobody(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, auditor: Auditor
) -> None:
    """Orders come, are drained, paid, cancelled and relayed, while two workers look on."""
    sale = await Sale.open(desk, {"red": 400}, spread=2)
    workers = [reconciler(settings, ledger, every_s=0.001) for _ in range(2)]
    drainer = make_worker(settings, ledger)
    async with running(*workers):
        done: set[bytes] = set()
        for n in range(8):
            await sale.accept(store, 20)
            await drainer.step()
            new = [o for o in await ids(ledger) if o not in done]
            done.update(new)
            await asyncio.gather(*((pay if i % 2 else cancel)(ledger, o) for i, o in enumerate(new)))
            if n % 2:
                await relay(ledger, settings)
        seen = [w.rounds for w in workers]
        await eventually(lambda: _passed(workers, seen))
    await drain(store, drainer)
    assert (await repairs(ledger), await ledger.fetchval("SELECT count(*) FROM alerts")) == ([], 0)
    assert [w.mended for w in workers] == [0, 0]
    await balanced(auditor, sale)


async def _passed(workers: Sequence[ReconcileWorker], seen: list[int]) -> bool:
    return all(w.rounds > n for w, n in zip(workers, seen, strict=True))
