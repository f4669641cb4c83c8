"""A store comes back as an older copy that agrees with the ledger: only who answered the orders after it can tell."""

import shutil
from collections.abc import AsyncIterator

import pytest

from core.errors import Recovering, StoreUnavailable
from core.wire import decode_held
from gateway.catalogue import Sale
from gateway.intake import Intake
from gateway.witness import Witness
from lua.life import AdmittedConnection
from lua.reserve import Fenced, ReserveCode
from lua.scripts import Scripts
from tests.faults.site import Site
from tests.support import SHARDS, eventually, tell


class Gateway:
    """The parts of a gateway that take orders and remember what they were told."""

    def __init__(self, site: Site, witness: bool) -> None:
        self._site = site
        self.witness = Witness(site.ledger)
        self._connection = AdmittedConnection(site.settings.store_url, "fsync", 5.0, "gateway")
        self.intake = Intake([self._connection], 100, 64)
        if witness:
            self.intake.on_seq = self.witness.note
            self._connection.greet = self.witness.meet
        self.intake.start()

    async def take(self, count: int, epoch: int = 1) -> list[bytes]:
        """So many orders are answered 202; the store has given them the next numbers."""
        known, site = await self._site.desk.show(self._site.sale.campaign), self._site
        sale = Sale(known.campaign, epoch, known.version, known.spec, SHARDS)
        part, orders = site.sale.parts[0], []
        for n in range(count):
            ask = part.ask(f"late-{epoch}-{n}-{len(site.life.asked)}")
            outcome = await self.intake.submit(sale, 0, ask)
            assert outcome.code is ReserveCode.ACCEPTED
            site.life.asked[ask.order_id] = ask
            orders.append(ask.order_id)
        return orders

    async def refused(self, epoch: int = 1) -> bool:
        """An order is not taken now."""
        try:
            await self.take(1, epoch)
        except (Fenced, StoreUnavailable):
            return True
        return False


@pytest.fixture
async def gateway(site: Site) -> AsyncIterator[Gateway]:
    found = Gateway(site, witness=True)
    yield found
    await found.intake.stop()


async def older_copy(site: Site, gateway: Gateway, lost: int) -> list[bytes]:
    """All is drained; a copy is taken; orders are answered; the store is the copy again. Returns these orders."""
    async with site.working():
        await site.taken_again()
    await site.life.drain()
    copy = site.data / "copy"
    await site.server.stop()
    shutil.copytree(site.data / "store", copy)
    await site.server.start()
    await site.door.close()
    async with site.working():
        await site.taken_again()
    orders = await gateway.take(lost)  # the workers have stopped: nobody drains them
    await site.server.kill()
    shutil.rmtree(site.data / "store")
    shutil.move(copy, site.data / "store")
    await site.server.start()
    await site.door.close()
    return orders


async def test_control_older_copy_that_agrees_with_the_ledger_gives_numbers_again(site: Site) -> None:
    """Control: nobody remembers, so the copy is taken as it is, and the next order has a number given before."""
    forgetful = Gateway(site, witness=False)
    await older_copy(site, forgetful, 3)
    async with site.working() as worker:
        await site.taken_again()
        await forgetful.take(1)
        assert worker.recovery.rebuilt == 0
    [reading] = await Scripts(site.bare).audit([site.sale.parts[0].keys])
    assert (reading.seq, (await site.desk.show(site.sale.campaign)).epoch) == (13, 1)
    await forgetful.intake.stop()


async def test_older_copy_that_agrees_with_the_ledger_is_rebuilt_and_no_number_is_given_again(
    site: Site, gateway: Gateway
) -> None:
    """Before the gateway meets the copy, it is admitted: then the gateway's word alone takes it out of service."""
    lost = await older_copy(site, gateway, 3)
    async with site.working() as worker:
        await site.taken_again()
        assert await gateway.refused()
        await site.door.close()
        await site.taken_again()
        await eventually(lambda: _rebuilt(site, 2))
        await gateway.take(1, epoch=2)
        await site.healed(2, tuple(lost))
        assert worker.recovery.rebuilt == 1
    rows = await site.ledger.fetch("SELECT base, gap, missing FROM rebuilds")
    assert [tuple(row) for row in rows] == [(15, 3, "13-15")]
    assert await site.ledger.fetchval("SELECT min(seq) FROM orders WHERE epoch = 2") == 16


async def test_copy_that_hears_the_witness_before_it_is_judged_is_not_sold_from(site: Site, gateway: Gateway) -> None:
    lost = await older_copy(site, gateway, 1)
    with pytest.raises(Recovering):
        await gateway.take(1)
    assert await tell(site.bare, "HMGET", site.sale.parts[0].keys.meta, "epoch", "told") == [None, b"13"]
    async with site.working() as worker:
        await site.taken_again()
        await site.healed(2, tuple(lost))
        assert worker.recovery.rebuilt == 1


async def test_emptied_store_is_told_of_orders_beyond_the_ledger(site: Site, gateway: Gateway) -> None:
    """Their numbers are above all that the ledger knows: without the witness there is no gap to be seen."""
    async with site.working():
        await site.taken_again()
    await site.life.drain()
    lost = await gateway.take(4)
    await site.server.stop()
    shutil.rmtree(site.data / "store")
    await site.server.start()
    with pytest.raises(Recovering):
        await gateway.take(1)
    async with site.working():
        await site.healed(2, tuple(lost))
    assert await site.ledger.fetchval("SELECT missing FROM rebuilds") == "13-16"


async def test_store_killed_under_a_witness_comes_back_whole_and_is_not_rebuilt(site: Site, gateway: Gateway) -> None:
    async with site.working() as worker:
        await site.taken_again()
        await gateway.take(20)
        await site.server.kill()
        await site.server.start()
        await eventually(lambda: _taken(gateway))
        assert worker.recovery.rebuilt == 0
        await site.healed(1)


async def test_late_entry_of_an_older_copy_shows_that_the_store_is_behind(site: Site) -> None:
    """A ledger worker had read the entry before the loss, and writes it when the copy has been admitted: nobody else
    remembers. The ledger then has a number that the store has not given."""
    forgetful = Gateway(site, witness=False)
    [order] = await older_copy(site, forgetful, 1)
    async with site.working() as worker:
        await site.taken_again()
        await site.ledger.execute(
            "INSERT INTO orders (shard, order_id, campaign, epoch, seq, channel, request_key, buyer_id, client_ip, "
            "device_id, state, version, amount, currency, accepted_at, pay_by) "
            "SELECT shard, $1, campaign, epoch, 13, channel, $2, $3, '', '', 'accepted', 1, amount, currency, now(), "
            "now() + interval '15 minutes' FROM orders WHERE seq = 1",
            order.hex(), decode_held(site.life.asked[order].held).request_key, site.life.asked[order].buyer_id,
        )  # fmt: skip
        await site.ledger.execute(
            "INSERT INTO order_items (shard, order_id, line, sku, quantity, price) "
            "SELECT shard, order_id, 1, 'red', 1, 100 FROM orders WHERE seq = 13"
        )
        await site.ledger.execute(
            "INSERT INTO order_events (shard, order_id, version, at, action, to_state, actor) "
            "SELECT shard, order_id, 1, now(), 'accept', 'accepted', 'channel:app' FROM orders WHERE seq = 13"
        )
        await site.healed(2)
        assert worker.recovery.rebuilt == 1
    await forgetful.intake.stop()


async def test_fresh_gateway_that_sells_first_does_not_hide_what_the_older_copy_lost(
    site: Site, gateway: Gateway
) -> None:
    """The numbers of three lost orders are given again before the gateway that was told them is heard: it says what an
    earlier run of the server told, and that began with fewer. Six were answered after the copy, two are left."""
    lost = await older_copy(site, gateway, 3)
    other = Gateway(site, witness=True)
    async with site.working() as worker:
        await site.taken_again()
        await other.take(4)
        assert await gateway.refused()
        await site.healed(2, tuple(lost))
        assert worker.recovery.rebuilt == 1
    rows = await site.ledger.fetch("SELECT base, gap FROM rebuilds")
    assert [tuple(row) for row in rows] == [(19, 3)]  # four of the new orders, and three numbers more
    await other.intake.stop()


async def test_word_of_an_earlier_run_does_not_stop_a_store_that_is_whole(site: Site, gateway: Gateway) -> None:
    """It was restarted twice, and has sold more meanwhile. Control of the test before."""
    async with site.working() as worker:
        await site.taken_again()
        await gateway.take(3)
        other = Gateway(site, witness=True)
        for _ in range(2):
            await site.server.kill()
            await site.server.start()
            await site.door.close()
            await site.taken_again()
            await eventually(lambda: _taken(other))
            await other.take(4)
        await eventually(lambda: _taken(gateway))
        assert worker.recovery.rebuilt == 0
        assert (await tell(site.bare, "HGET", site.sale.parts[0].keys.meta, "judged")).count(b" ") == 2
        await site.healed(1)
    await other.intake.stop()


async def test_late_answer_of_the_old_server_is_remembered_beside_the_new_one(site: Site, gateway: Gateway) -> None:
    """Another connection met the new server, and has noted greater numbers, before the answer is noted."""
    sale = Sale(site.sale.campaign, 1, 1, (await site.desk.show(site.sale.campaign)).spec, SHARDS)
    witness = gateway.witness
    witness.note(sale, 0, 50, "b" * 40)
    witness.note(sale, 0, 15, "a" * 40)
    witness.note(sale, 0, 14, "a" * 40)
    meta = site.sale.parts[0].keys.meta
    await tell(site.bare, "HSET", meta, "seq", 50, "judged", "a" * 40 + ":3 " + "b" * 40 + ":12 ")
    await witness.meet(site.bare)
    assert await tell(site.bare, "HMGET", meta, "epoch", "told") == [None, b"53"]


async def test_word_that_comes_after_the_rebuild_is_added_to_its_gap_once(site: Site, gateway: Gateway) -> None:
    """The gateways stand still, so the rebuild does not hear them."""
    async with site.working():
        await site.taken_again()
        await site.life.drain()
    lost = await gateway.take(4)
    assert await tell(site.bare, "FLUSHALL") == b"OK"
    async with site.working():
        await eventually(lambda: _rebuilt(site, 2))
        assert [tuple(r) for r in await site.ledger.fetch("SELECT base, gap FROM rebuilds")] == [(12, 0)]
        other = Witness(site.ledger)
        sale = Sale(site.sale.campaign, 1, 1, (await site.desk.show(site.sale.campaign)).spec, SHARDS)
        other.note(sale, 0, 14, "a" * 40)
        await other.called(site.bare, b"anew")
        await eventually(lambda: _gap(site, 2))
        for _ in range(2):
            await gateway.witness.called(site.bare, b"anew")
            await eventually(lambda: _gap(site, 4))
        await other.stop()
        await site.healed(2, tuple(lost))
    assert await site.ledger.fetchval("SELECT missing FROM rebuilds") == "up to 16 told late"
    await gateway.witness.stop()


async def _gap(site: Site, gap: int) -> bool:
    return bool(await site.ledger.fetchval("SELECT gap FROM rebuilds") == gap)


async def _rebuilt(site: Site, epoch: int) -> bool:
    known = await site.desk.show(site.sale.campaign)
    state = await tell(site.bare, "HGET", site.sale.parts[0].keys.meta, "state")
    return (known.state, known.epoch, state) == ("open", epoch, b"open")


async def _taken(gateway: Gateway) -> bool:
    return not await gateway.refused()
