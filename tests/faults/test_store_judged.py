"""How a store that was started anew is judged: no closed campaign sells again, none keeps the others shut, and orders
that only the store has are not thrown away."""

import shutil

import pytest
from asyncpg.pgproto.pgproto import UUID

from core.desk.rebuild import Rebuilder
from core.desk.recovery import Recovery
from core.errors import CampaignLost, Refused
from gateway.catalogue import Catalogue
from lua.life import admit, look
from lua.reserve import Fenced
from tests.faults.site import Site
from tests.ledger.reconcile_support import entry_lost, is_set_aside, open_alerts
from tests.ledger.support import Sale, make_worker, running
from tests.support import SHARDS, eventually, fresh, tell
from workers import recovery as watch


async def restarted(site: Site) -> None:
    await site.server.kill()
    await site.server.start()
    await site.door.close()


async def judged(site: Site) -> Recovery:
    """The store was judged, and admitted; nothing was mended yet."""
    worker = site.reconciler()
    assert await worker.recovery.step()
    worker.stop()
    await worker.run()
    return worker.recovery


async def served(site: Site) -> None:
    async with site.working():
        await site.taken_again()
    await site.life.drain()


async def closed_over_a_copy(site: Site) -> None:
    """The campaign is closed in the ledger; the store is a copy of before, with its units on sale."""
    await served(site)
    copy = site.data / "copy"
    await site.server.stop()
    shutil.copytree(site.data / "store", copy)
    await site.server.start()
    await site.desk.close(site.sale.campaign)
    await site.server.kill()
    shutil.rmtree(site.data / "store")
    shutil.move(copy, site.data / "store")
    await site.server.start()
    await site.door.close()


async def refused(site: Site) -> bool:
    """No order of it is taken on any shard."""
    for part in site.sale.parts:
        try:
            [outcome] = (await part.reserve(site.bare, part.ask(fresh("late")))).outcomes
        except Fenced:
            continue
        if outcome.code.name in ("ACCEPTED", "REPLAYED"):
            return False
    return True


@pytest.mark.parametrize("site", [1, 3], indirect=True)
async def test_closed_campaign_does_not_sell_again_on_an_older_copy(site: Site) -> None:
    await closed_over_a_copy(site)
    recovery = await judged(site)
    assert await site.open_door()
    assert await refused(site)  # from the first moment on
    assert list(recovery.damaged) == [site.sale.campaign]
    async with site.working():

        async def rebuilt() -> bool:
            known = await site.desk.show(site.sale.campaign)
            return (known.state, known.epoch) == ("closed", 2) and await open_alerts(site.ledger) == {}

        await eventually(rebuilt, 20.0)
    report = await site.auditor.audit(site.sale.campaign)
    assert (report.ok, report.unsold) == (True, 0)
    assert await refused(site)


async def test_closed_campaign_that_a_served_store_sells_is_ended_within_a_round(site: Site) -> None:
    """Many closed campaigns are at rest, and a round audits some of them only."""
    await closed_over_a_copy(site)
    await admit(site.bare, await site.desk.deployment(), (await look(site.bare)).run_id)
    worker = site.reconciler()
    worker._chosen = lambda rows: []  # type: ignore[method-assign] # it is not this one's turn
    await worker.step()
    assert await refused(site)
    worker.stop()
    await worker.run()


async def test_close_that_broke_off_before_the_store_heard_of_it_is_no_damage(site: Site) -> None:
    await served(site)
    await site.ledger.execute("UPDATE campaigns SET state = 'closed', version = version + 1")
    await restarted(site)
    recovery = await judged(site)
    assert recovery.damaged == {}
    assert await refused(site)
    assert (await site.desk.show(site.sale.campaign)).epoch == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_order_that_only_the_store_has_outlives_its_restart(site: Site, restart: bool) -> None:
    await served(site)
    [order] = await site.life.accept(1)
    await entry_lost(site.bare, site.sale.parts[0].keys)
    if restart:
        await restarted(site)
    async with site.working() as worker:
        await site.taken_again()

        async def is_there() -> bool:
            found = await site.ledger.fetchval("SELECT count(*) FROM orders WHERE order_id = $1", UUID(order))
            return bool(found)

        await eventually(is_there, 20.0)
        await site.healed(1)
        assert worker.recovery.rebuilt == 0


async def test_campaign_of_another_program_does_not_keep_the_others_shut(site: Site) -> None:
    """One is on sale, and is out of service and alerted; one was closed long ago, and is left alone."""
    await served(site)
    sold, ended = await Sale.open(site.desk, {"red": 5}), await Sale.open(site.desk, {"red": 5})
    await site.desk.close(ended.campaign)
    await site.ledger.execute(
        """UPDATE campaigns SET spec = spec || '{"order_type": "barter"}' WHERE campaign = ANY ($1::text[])""",
        [sold.campaign, ended.campaign],
    )
    before = await content(site, ended)
    await restarted(site)
    async with site.working() as worker:
        await site.taken_again()
        with pytest.raises(Fenced):
            await sold.parts[0].reserve(site.bare, sold.parts[0].ask("eve"))
        assert await content(site, ended) == before
        await eventually(lambda: alerted(site, {sold.campaign: "store_lost", ended.campaign: "unchecked"}))
        await site.life.accept(1)
        assert list(worker.recovery.damaged) == [sold.campaign]
        await site.ledger.execute('UPDATE campaigns SET spec = spec || \'{"order_type": "goods"}\'')
        await site.healed(1)
        assert (await site.desk.show(sold.campaign)).epoch == 2


async def test_campaign_of_another_deployment_does_not_keep_the_others_shut(site: Site) -> None:
    await served(site)
    foreign = await Sale.open(site.desk, {"red": 5})
    meta = foreign.parts[0].keys.meta
    await tell(site.bare, "HSET", meta, "deployment", "another")
    before = await content(site, foreign)
    await restarted(site)
    async with site.working():
        await site.taken_again()
        await eventually(lambda: alerted(site, {foreign.campaign: "store_lost"}))
        assert await content(site, foreign) == before
        catalogue = Catalogue(site.bare, site.ledger, SHARDS)
        with pytest.raises(CampaignLost, match="another deployment"):  # a gateway that reads it does not sell it
            await catalogue.get(foreign.campaign)
        assert (await catalogue.get(site.sale.campaign)).epoch == 1
        await site.life.accept(1)


@pytest.mark.parametrize("which", ["meta", "stock", "requests"])
async def test_key_of_another_type_does_not_keep_the_others_shut(site: Site, which: str) -> None:
    await served(site)
    other = await Sale.open(site.desk, {"red": 5})
    key = getattr(other.parts[0].keys, which)
    await tell(site.bare, "DEL", key)
    await tell(site.bare, "SET", key, "no hash")
    await restarted(site)
    async with site.working():
        await site.taken_again()
        await eventually(lambda: alerted(site, {other.campaign: "store_lost"}))
        await site.life.accept(1)


async def test_watch_outlives_what_it_did_not_expect(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await restarted(site)
    worker = site.reconciler()
    step, failures = worker.recovery.step, 0

    async def broken() -> bool:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise ValueError("unexpected")
        return await step()

    worker._watch._recovery.step = broken  # type: ignore[method-assign]
    worker._reconcile = worker._stopping.wait  # type: ignore[method-assign,assignment]
    async with running(worker):
        await site.taken_again()
    assert [r.getMessage() for r in caplog.records].count("the store could not be judged") == 2


async def test_store_that_a_campaign_keeps_shut_is_alerted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await served(site)
    monkeypatch.setattr(watch, "LONG_S", 0.5)
    await tell(site.bare, "DEL", site.sale.parts[0].keys.stock)  # damaged
    await restarted(site)
    worker = site.reconciler()
    fence = worker.recovery._rebuilder.fence

    async def no(head: object) -> None:
        raise Refused("test")

    monkeypatch.setattr(worker.recovery._rebuilder, "fence", no)
    monkeypatch.setattr(worker.recovery, "due", list)
    async with running(worker):

        async def shut() -> bool:
            return "store_shut" in await open_alerts(site.ledger)

        await eventually(shut)
        assert not await site.open_door()
        monkeypatch.setattr(worker.recovery._rebuilder, "fence", fence)
        await site.taken_again()

        async def told() -> bool:
            return set(await open_alerts(site.ledger)) == {"store_lost"}

        await eventually(told)


async def test_campaign_whose_intake_nobody_drains_is_tried_again_and_does_not_hold_up_the_rounds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.desk.rebuild.STILL_S", 1.0)
    await served(site)
    await site.life.accept(1)
    await tell(site.bare, "DEL", site.sale.parts[0].keys.stock)
    await restarted(site)
    worker = site.reconciler()
    async with running(worker):  # and no ledger worker
        await site.taken_again()

        async def told() -> bool:
            detail = await site.ledger.fetchval("SELECT detail FROM alerts WHERE over_at IS NULL")
            return "not drained" in (detail or "")

        await eventually(told, 20.0)
        rounds = worker.rounds
        assert set(await open_alerts(site.ledger)) == {"store_lost"}
        assert list(worker.recovery.damaged) == [site.sale.campaign]

        async def more() -> bool:
            return worker.rounds > rounds + 2

        await eventually(more)
        async with running(make_worker(site.settings, site.ledger, fresh("w"))):

            async def rebuilt() -> bool:
                known = await site.desk.show(site.sale.campaign)
                return (known.state, known.epoch) == ("open", 2)

            await eventually(rebuilt, 20.0)
            await site.healed(2)


async def test_rebuild_by_hand_is_noticed(site: Site) -> None:
    assert await tell(site.bare, "FLUSHALL") == b"OK"
    async with site.working(auto=False) as worker:
        await eventually(lambda: alerted(site, {site.sale.campaign: "store_lost"}))
        await eventually(lambda: is_set_aside(site.ledger, site.sale.campaign))
        rebuilder = Rebuilder(site.desk, site.auditor, site.bare, site.ledger, "me")
        assert (await rebuilder.rebuild(site.sale.campaign, "by hand")).state == "open"
        await eventually(lambda: alerted(site, {}))
        assert worker.recovery.damaged == {}


async def content(site: Site, sale: Sale) -> dict[bytes, bytes]:
    flat = await tell(site.bare, "HGETALL", sale.parts[0].keys.meta)
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    found.pop(b"judged", None)
    return found


async def alerted(site: Site, kinds: dict[str, str]) -> bool:
    """Just these alerts stand: campaign -> kind."""
    rows = await site.ledger.fetch("SELECT campaign, kind FROM alerts WHERE over_at IS NULL")
    return {r["campaign"]: r["kind"] for r in rows} == kinds and len(rows) == len(kinds)
