"""Keys go while the store runs: by FLUSHALL, by DEL, by an eviction policy that somebody has set. No restart tells of
it; orders are refused with a fault, and what is gone is rebuilt without a person."""

import asyncio

import pytest

import core.desk.rebuild
from core.errors import StoreUnavailable
from gateway.balance import Balancer
from gateway.catalogue import Catalogue, Sale
from gateway.pressure import Pressure
from gateway.soldout import SoldOut
from lua.connection import SharedConnection
from lua.life import AdmittedSharedConnection
from lua.reserve import Fenced, ReserveCode
from tests.faults.site import Site
from tests.faults.test_store_witness import Gateway
from tests.ledger.rebuild_support import rebuilder
from tests.support import SHARDS, contents, eventually, tell


async def seen(site: Site) -> Sale:
    """The campaign as a gateway knows it."""
    known = await site.desk.show(site.sale.campaign)
    return Sale(known.campaign, known.epoch, known.version, known.spec, SHARDS)


@pytest.mark.parametrize("gone", ["meta", "stock", "requests", "used"])
async def test_key_that_is_gone_is_noticed_and_the_campaign_rebuilt(site: Site, gone: str) -> None:
    async with site.working() as worker:
        await site.taken_again()
        await tell(site.bare, "DEL", getattr(site.sale.parts[0].keys, gone))
        await site.healed(2)
        assert worker.recovery.rebuilt == 1


@pytest.mark.parametrize("site", [3], indirect=True)
async def test_all_keys_of_one_shard_of_three_are_gone(site: Site) -> None:
    """The other shards are whole, and their units, limits and keys are those of the next epoch too."""
    part = site.sale.parts[1]
    await site.life.drain()
    await tell(site.bare, "DEL", *part.keys)
    with pytest.raises(Fenced):
        await part.reserve(site.bare, part.ask("anybody"))
    async with site.working() as worker:
        await site.taken_again()
        await site.healed(2)
        assert worker.recovery.rebuilt == 1


async def test_flushed_store_is_judged_without_a_restart(site: Site) -> None:
    """A connection that was admitted stays open: its orders are refused by the script, and new ones by the door."""
    async with site.working() as worker:
        await site.taken_again()
        await site.life.drain()
        assert await tell(site.bare, "FLUSHALL") == b"OK"
        part = site.sale.parts[0]
        with pytest.raises(Fenced):
            await part.reserve(site.door, part.ask("anybody"))
        await site.healed(2)
        assert worker.recovery.rebuilt == 1


@pytest.mark.parametrize("gone", ["everything", "meta"])
async def test_rebuild_asks_the_gateways_for_what_a_living_store_lost(
    site: Site, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is made anew and no order comes: the rebuild calls, and the gateways say what they were told."""
    monkeypatch.setattr(core.desk.rebuild, "HEARD_S", 3.0)  # a busy machine's gateway looks later than every 0.2 s
    async with site.working():
        await site.taken_again()
    await site.life.drain()
    gateway = Gateway(site, witness=True)
    lost = await gateway.take(4)  # the workers have stopped: nobody drains them
    store = SharedConnection(site.settings.store_url, "fsync", 5.0, "pressure")
    pressure = Pressure(store, Catalogue(store, site.ledger, SHARDS), gateway.intake, site.settings, gateway.witness)
    await pressure.look()
    keys = site.sale.parts[0].keys
    assert await tell(site.bare, *(["FLUSHALL"] if gone == "everything" else ["DEL", keys.meta, keys.intake])) in (
        b"OK",
        2,
    )
    pressure.start()
    try:
        async with site.working() as worker:
            await site.healed(2, tuple(lost))
            assert worker.recovery.rebuilt == 1

        rows = await site.ledger.fetch("SELECT base, gap, missing FROM rebuilds")
        assert [tuple(row) for row in rows] == [(16, 4, "13-16")]
        assert await site.ledger.fetchval("SELECT min(seq) FROM orders WHERE epoch = 2") == 17
    finally:
        await pressure.stop()
        await gateway.intake.stop()
        await gateway.witness.stop()
        await store.close()


async def test_units_are_not_moved_on_a_store_that_is_not_as_it_was(site: Site) -> None:
    sale = await seen(site)
    units = AdmittedSharedConnection(site.settings.store_url, "fsync", 5.0, "units")
    async with site.working():
        await site.taken_again()
    assert await Balancer(units).seek(sale, 0, "red", 1)
    assert await tell(site.bare, "FLUSHALL") == b"OK"
    with pytest.raises(StoreUnavailable):
        await Balancer(units).seek(sale, 0, "red", 1)
    assert await contents(site.bare) == {}
    await units.close()
    with pytest.raises(StoreUnavailable, match="judged"):
        await Balancer(units).seek(sale, 0, "red", 1)


async def test_flag_is_not_raised_by_keys_that_an_emptied_store_no_longer_has(site: Site) -> None:
    """The last unit was just sold, the store promised that nothing comes back, and was emptied: whoever has an order
    must not be told "sold out" for it."""
    async with site.working():
        await site.taken_again()
    sale, part = await seen(site), site.sale.parts[0]
    mine = part.ask("mine")
    assert (await part.reserve(site.bare, mine)).outcomes[0].code is ReserveCode.ACCEPTED
    await site.life.sell_out(1)
    units = AdmittedSharedConnection(site.settings.store_url, "fsync", 5.0, "units")
    await units.exchange([("PING",)])  # was admitted, and stays connected
    for emptied in (False, True):  # control: on a store that is whole the flag stands, and lets `mine` through
        if emptied:
            assert await tell(site.bare, "FLUSHALL") == b"OK"
        flags = SoldOut(units)
        loop_s = asyncio.get_running_loop().time()
        flags.raise_flag(sale, "red", 60_000, b"0", loop_s)

        async def loaded(flags: SoldOut = flags) -> bool:
            return not flags._loading

        await eventually(loaded)
        assert flags.holds(sale, ["red"], mine.field) == ""
        assert flags.holds(sale, ["red"], b"app\0unheard") == ("" if emptied else "red")
    await units.close()


async def test_flag_of_the_old_epoch_has_fallen_when_the_campaign_is_sold_again(site: Site) -> None:
    """An order that nobody had drained is lost, its unit is on sale: no gateway may call that sold out from memory."""
    async with site.working():
        await site.taken_again()
    sale = await seen(site)
    await site.life.sell_out(1)  # not drained: lost with the store
    units = AdmittedSharedConnection(site.settings.store_url, "fsync", 5.0, "units")
    flags, loop = SoldOut(units), asyncio.get_running_loop()
    part = site.sale.parts[0]
    sent_s = loop.time()
    answers = await part.reserve(site.bare, part.ask("too late"))
    [lease] = answers.leases
    flags.raise_flag(sale, lease.sku, lease.ms, lease.mark, sent_s)

    async def up() -> bool:
        return flags.holds(sale, ["red"], b"app\0unheard") == "red"

    await eventually(up, every_s=0.001)
    assert await tell(site.bare, "FLUSHALL") == b"OK"
    done = await rebuilder(site.desk, site.auditor, site.bare, site.ledger).rebuild(sale.campaign, "test")
    assert (done.state, done.after[0].left) == ("open", 94)
    assert not await up()
    await units.close()
