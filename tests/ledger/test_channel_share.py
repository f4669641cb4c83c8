"""A channel's share of stock in store and ledger: defined, changed, audited, given back, rebuilt."""

from collections import Counter
from typing import Any

import msgspec
import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk, looser, shares_here
from core.errors import Refused
from core.ledger.pool import Pool
from core.model import CampaignSpec, Loosest
from core.settings import Settings
from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from tests.ledger.rebuild_support import Life, in_service, rebuilder, wiped
from tests.ledger.support import Sale, drain, make_worker
from tests.support import fresh, spec, tell

C = ReserveCode


async def try_to_sell(sale: Sale, store: SharedConnection, channel: str, orders: int, epoch: int = 1) -> Counter[str]:
    """What so many orders of one unit, each of a new buyer, were answered: `accepted` or the limit."""
    found: Counter[str] = Counter()
    for _ in range(orders):
        buyer = fresh("buyer")
        part = sale.part(buyer)
        part.epoch = epoch
        [outcome] = (await part.reserve(store, part.ask(buyer, channel=channel))).outcomes
        found["accepted" if outcome.code is C.ACCEPTED else outcome.detail] += 1
    return found


async def counted(sale: Sale, store: SharedConnection) -> Counter[str]:
    """Units that the store has counted, by channel."""
    found: Counter[str] = Counter()
    for part in sale.parts:
        flat = await tell(store, "HGETALL", part.keys.used)
        for name, units in zip(flat[::2], flat[1::2], strict=True):
            if name.startswith(b"c:"):
                found[name[2:].decode()] += int(units)
    return found


@pytest.mark.parametrize("spread", [1, 3])
async def test_channel_sells_no_more_than_its_share_on_all_shards_together(
    spread: int, desk: CampaignDesk, store: SharedConnection, auditor: Auditor, settings: Settings, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 200}, spread=spread, channel_shares={"app": 20})
    found = await try_to_sell(sale, store, "app", 90)
    assert found == {"accepted": 20, "channel_share": 70}
    assert (await try_to_sell(sale, store, "web", 60)) == {"accepted": 60}
    await drain(store, make_worker(settings, ledger))
    assert (await auditor.audit(sale.campaign)).ok


def test_parts_of_a_share_add_up_and_never_shrink_as_it_grows() -> None:
    for spread in (1, 2, 3, 7):
        before = [0] * spread
        for units in range(spread, 40):
            parts = [shares_here({"app": units}, slot, spread)["app"] for slot in range(spread)]
            assert sum(parts) == units
            assert all(old <= new for old, new in zip(before, parts, strict=True))
            before = parts


async def test_audit_of_a_share_exceeded_in_the_ledger_finds_the_channel(
    desk: CampaignDesk, store: SharedConnection, auditor: Auditor, settings: Settings, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 10}, channel_shares={"app": 3, "web": 3})
    await try_to_sell(sale, store, "app", 3)
    await try_to_sell(sale, store, "web", 1)
    await drain(store, make_worker(settings, ledger))
    assert (await auditor.audit(sale.campaign)).ok  # exactly at the share
    await ledger.execute("UPDATE orders SET channel = 'app' WHERE channel = 'web'")
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.over_limit) == (False, 1)
    assert "channel_share app has 4 units, over the limit" in report.findings[0]


async def test_share_changes_while_the_campaign_is_open(
    desk: CampaignDesk, store: SharedConnection, auditor: Auditor, settings: Settings, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 100}, channel_shares={"app": 5})
    known = await desk.show(sale.campaign)

    async def put(**shares: int) -> None:
        await desk.put(sale.campaign, msgspec.structs.replace(known.spec, channel_shares=shares))

    assert (await try_to_sell(sale, store, "app", 6))["accepted"] == 5
    assert (await try_to_sell(sale, store, "web", 4))["accepted"] == 4
    await put(app=7, web=5)
    assert (await try_to_sell(sale, store, "app", 6))["accepted"] == 2
    assert (await try_to_sell(sale, store, "web", 6))["accepted"] == 1  # it was counted before it had a share
    await put()
    assert (await try_to_sell(sale, store, "app", 3))["accepted"] == 3
    await put(app=9)
    assert (await try_to_sell(sale, store, "app", 3))["accepted"] == 0
    await drain(store, make_worker(settings, ledger))
    assert (await auditor.audit(sale.campaign)).ok  # 10 of `app` are more than 9: it once had no share
    assert (await desk.show(sale.campaign)).loosest.channel_shares == {}


async def test_share_cannot_begin_once_a_campaign_was_opened(desk: CampaignDesk, store: SharedConnection) -> None:
    sale = await Sale.open(desk, {"red": 10})
    known = await desk.show(sale.campaign)
    with pytest.raises(Refused, match="channel_shares"):
        await desk.put(sale.campaign, msgspec.structs.replace(known.spec, channel_shares={"app": 5}))
    assert await desk.show(sale.campaign) == known


@pytest.mark.parametrize("spread", [1, 3])
async def test_rebuild_counts_what_channels_have_sold(
    spread: int, desk: CampaignDesk, store: SharedConnection, auditor: Auditor, settings: Settings, ledger: Pool
) -> None:
    """Of held and sold orders; what was cancelled or came back does not count. As before the loss, it goes on."""
    sale = await Sale.open(desk, {"red": 300}, spread=spread, channel_shares={"app": 60})
    life = Life(sale, settings, ledger, store)
    await life.live()
    before = await counted(sale, store)
    assert before == {"app": 6}
    await wiped(store)
    await rebuilder(desk, auditor, store, ledger).rebuild(sale.campaign, "test")
    assert await counted(sale, store) == before
    found = await try_to_sell(sale, store, "app", 150, epoch=2)
    assert found == {"accepted": 54, "channel_share": 96}
    await life.drain()
    await in_service(desk, auditor, sale, 2)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"channel_shares": {"app": 2}, "spread": 3}, "channel_shares"),
        ({"channel_shares": {"app": 2}, "channels": ["web"]}, "channel_shares"),
        ({"channel_shares": {"app": 0}}, "channel_shares"),
        ({"channel_shares": {"App!": 2}}, "channel_shares"),
    ],
)
def test_share_that_cannot_be_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        spec(**fields)


@pytest.mark.parametrize(
    ("known", "now", "loosest"),
    [(None, {}, None), ({"app": 5}, {"app": 7, "web": 2}, {"app": 7}), ({"app": 5}, {"app": 3}, {"app": 5}),
     ({"app": 5}, {}, {}), ({}, {"app": 3}, {})],
)  # fmt: skip
def test_loosest_share_is_none_once_there_was_a_time_without(
    known: dict[str, int] | None, now: dict[str, int], loosest: dict[str, int] | None
) -> None:
    changed: CampaignSpec = spec(channel_shares=now)
    assert looser(Loosest(channel_shares=known), changed).channel_shares == loosest
