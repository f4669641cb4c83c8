"""A store that an older version wrote is judged anew: campaigns are rebuilt in today's layout, no order is lost."""

import pytest

from core.wire import decode_held, read_entry
from lua.keys import life_key
from lua.life import look
from tests.faults.site import Site
from tests.support import tell


async def left_by_version_1(site: Site) -> None:
    """Requests have the names, entries the form, and the admission the words of layout 1; the meta says no layout."""
    for part in site.sale.parts:
        keys = part.keys
        await tell(site.bare, "HDEL", keys.meta, "layout")
        for ask in site.life.asked.values():
            record = await tell(site.bare, "HGET", keys.requests, ask.field)
            if record is not None:
                held = decode_held(ask.held)
                await tell(site.bare, "HDEL", keys.requests, ask.field)
                await tell(site.bare, "HSET", keys.requests, f"{held.channel}\0{held.request_key}", record)
        for entry_id, fields in await tell(site.bare, "XRANGE", keys.intake, "-", "+"):
            head, orders = read_entry(fields)
            header = f"1|{head.campaign}|{head.epoch}|{head.accepted_ms}|{head.pay_by_ms}|{head.first_seq}"
            flat = [part for order in orders for part in order]
            await tell(site.bare, "XDEL", keys.intake, entry_id)
            await tell(site.bare, "XADD", keys.intake, "*", "h", header, *flat)
    seen = await look(site.bare)
    await tell(site.bare, "SET", life_key(), f"{seen.deployment} {seen.run_id}")


@pytest.mark.parametrize("site", [1, 3], indirect=True)
async def test_campaign_of_an_older_layout_is_rebuilt_and_finds_its_orders(site: Site) -> None:
    async with site.working():
        await site.taken_again()
    await site.life.accept(4)  # these stand in the intake
    assert (await look(site.bare)).admitted
    await left_by_version_1(site)
    assert not (await look(site.bare)).admitted
    await site.shut()
    async with site.working() as worker:
        await site.taken_again()
        await site.healed(2)
        assert worker.recovery.rebuilt == 1
    for part in site.sale.parts:
        assert await tell(site.bare, "HGET", part.keys.meta, "layout") == b"2"


async def test_entries_of_version_1_are_drained(site: Site) -> None:
    orders = await site.life.accept(3)
    await left_by_version_1(site)
    await site.life.drain()
    rows = await site.ledger.fetch("SELECT order_id FROM orders")
    assert set(orders) <= {row["order_id"].bytes for row in rows}
    assert await site.ledger.fetchval("SELECT count(*) FROM dead_letters") == 0
