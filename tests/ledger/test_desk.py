"""The desk: every transition of a campaign and every refusal, stock that moves once per id, nothing installed twice."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk, Restocked
from core.errors import CampaignLost, CampaignUnknown, Invalid, Refused
from core.ledger.pool import Pool
from core.model import CampaignSpec, Restock
from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from lua.scripts import Reading, Scripts
from tests.ledger.support import Sale, drained, make_worker, running
from tests.support import SHARDS, fresh, spec

STATES = ("draft", "open", "paused", "closed")


async def in_state(desk: CampaignDesk, state: str, **fields: Any) -> str:
    """A campaign that was brought to this state."""
    campaign = fresh("sale")
    await desk.put(campaign, spec(**fields))
    if state != "draft":
        await desk.open(campaign)
    if state == "paused":
        await desk.pause(campaign)
    if state == "closed":
        await desk.close(campaign)
    return campaign


async def readings(scripts: Scripts, sale: Sale) -> list[Reading]:
    return await scripts.audit([part.keys for part in sale.parts])


async def left(scripts: Scripts, sale: Sale, sku: str = "red") -> list[int]:
    return [r.left[sku] for r in await readings(scripts, sale)]


async def journal(ledger: Pool) -> Counter[tuple[str, str]]:
    """Units by kind and state."""
    found: Counter[tuple[str, str]] = Counter()
    for r in await ledger.fetch("SELECT kind, state, units FROM stock_moves"):
        found[r["kind"], r["state"]] += r["units"]
    return found


async def test_show_of_an_unknown_campaign_says_so(desk: CampaignDesk) -> None:
    with pytest.raises(CampaignUnknown):
        await desk.show("nothing")
    with pytest.raises(CampaignUnknown):
        await desk.open("nothing")


async def test_put_makes_a_draft_and_changes_all_of_it(desk: CampaignDesk) -> None:
    campaign = fresh("sale")
    first = await desk.put(campaign, spec({"red": 10}))
    assert (first.state, first.version, first.epoch) == ("draft", 1, 1)
    second = await desk.put(campaign, other := spec({"blue": 3}, currency="EUR", spread=2))
    assert (second.state, second.version, second.spec) == ("draft", 2, other)
    assert await desk.show(campaign) == second


async def test_put_with_more_shards_than_there_are_is_invalid(desk: CampaignDesk) -> None:
    with pytest.raises(Invalid) as caught:
        await desk.put(fresh("sale"), spec(spread=SHARDS + 1))
    assert caught.value.field == "spread"


OUTCOMES = {
    ("draft", "open"): "open", ("open", "open"): "open", ("paused", "open"): "open", ("closed", "open"): None,
    ("draft", "pause"): None, ("open", "pause"): "paused", ("paused", "pause"): "paused", ("closed", "pause"): None,
    ("draft", "close"): None, ("open", "close"): "closed", ("paused", "close"): "closed", ("closed", "close"): "closed",
}  # fmt: skip


@pytest.mark.parametrize(("state", "action"), OUTCOMES)
async def test_campaign_action_in_a_state_leads_on_or_is_refused(
    state: str, action: str, desk: CampaignDesk, store: SharedConnection, scripts: Scripts
) -> None:
    campaign = await in_state(desk, state)
    before = await desk.show(campaign)
    expected = OUTCOMES[state, action]
    if expected is None:
        with pytest.raises(Refused, match=state):
            await getattr(desk, action)(campaign)
        assert await desk.show(campaign) == before
        return
    result = await getattr(desk, action)(campaign)
    assert (result.state, result) == (expected, await desk.show(campaign))
    sale = Sale(campaign, 1)
    [reading] = await readings(scripts, sale)
    assert (reading.meta["state"], reading.meta["version"]) == (expected, str(result.version))
    [outcome] = await sale.buy(store, ["anna"])
    codes = {"open": ReserveCode.ACCEPTED, "paused": ReserveCode.PAUSED, "closed": ReserveCode.CLOSED}
    assert outcome.code is codes[expected]


async def test_open_twice_installs_the_stock_once(
    desk: CampaignDesk, store: SharedConnection, scripts: Scripts
) -> None:
    sale = await Sale.open(desk, {"red": 10})
    await sale.accept(store, 4)
    again = await desk.open(sale.campaign)
    assert again.state == "open"
    assert await left(scripts, sale) == [6]


async def test_open_at_once_by_two_installs_the_stock_once(
    desk: CampaignDesk, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    campaign = await in_state(desk, "draft", stock={"red": 10}, spread=4)
    results = await asyncio.gather(desk.open(campaign), desk.open(campaign), return_exceptions=True)
    assert [type(r) for r in results if isinstance(r, BaseException)] in ([], [Refused])
    await desk.open(campaign)
    assert sum(await left(scripts, Sale(campaign, 4))) == 10
    assert await journal(ledger) == {("open", "applied"): 10}
    assert (await auditor.audit(campaign)).ok


async def test_open_that_broke_off_is_finished_by_the_same_call(
    desk: CampaignDesk, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    """The ledger says `opening` and half of the shards have the stock."""
    sale = await Sale.open(desk, {"red": 10}, spread=4)
    for part in sale.parts[2:]:
        await scripts.connection.exchange([("DEL", part.keys.meta, part.keys.stock)])
    await ledger.execute("UPDATE campaigns SET state = 'opening', version = 2")
    await ledger.execute("UPDATE stock_moves SET state = 'pending'")
    assert (await desk.open(sale.campaign)).state == "open"
    assert await left(scripts, sale) == [3, 3, 2, 2]
    assert (await auditor.audit(sale.campaign)).ok


async def test_put_while_opening_waits_for_open_to_tell_the_store(
    desk: CampaignDesk, scripts: Scripts, ledger: Pool
) -> None:
    campaign = await in_state(desk, "draft", stock={"red": 10})
    await ledger.execute("UPDATE campaigns SET state = 'opening'")
    changed = await desk.put(campaign, spec({"red": 10}, pay_within_s=60, limits={"buyer": 1}))
    assert changed.state == "opening"
    await desk.open(campaign)
    [reading] = await readings(scripts, Sale(campaign, 1))
    assert (reading.meta["state"], reading.meta["pay_within_ms"]) == ("open", "60000")


@pytest.mark.parametrize("action", ["open", "pause", "close"])
async def test_campaign_that_the_store_has_lost_is_never_installed_again(
    action: str, desk: CampaignDesk, store: SharedConnection
) -> None:
    """Installed again, its stock would be sold a second time."""
    sale = await Sale.open(desk, {"red": 10})
    await sale.accept(store, 10)
    await store.exchange([("FLUSHALL",)])
    for _ in range(2):
        with pytest.raises(CampaignLost):
            await getattr(desk, action)(sale.campaign)
    assert await store.exchange([("DBSIZE",)]) == [0]
    with pytest.raises((CampaignLost, Refused)):
        await desk.restock(sale.campaign, Restock("one", "red", 5))
    assert await store.exchange([("DBSIZE",)]) == [0]


async def test_open_over_the_remains_of_a_campaign_is_lost(desk: CampaignDesk, store: SharedConnection) -> None:
    sale = Sale(await in_state(desk, "draft"), 1)
    await store.exchange([("HSET", sale.parts[0].keys.holds, "an", "order")])
    with pytest.raises(CampaignLost, match="DIRTY"):
        await desk.open(sale.campaign)


async def test_put_of_an_open_campaign_changes_window_limits_and_pay_within(
    desk: CampaignDesk, store: SharedConnection, scripts: Scripts
) -> None:
    sale = await Sale.open(desk, {"red": 10})
    known = (await desk.show(sale.campaign)).spec
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    new = msgspec.convert(
        msgspec.to_builtins(known)
        | {"opens_at": later, "closes_at": later + timedelta(hours=1), "pay_within_s": 60}
        | {"limits": {"buyer": 2, "ip": 3}},
        CampaignSpec,
    )
    changed = await desk.put(sale.campaign, new)
    assert (changed.state, changed.spec) == ("open", new)
    [reading] = await readings(scripts, sale)
    opens_ms = int(later.timestamp() * 1000)
    meta = {name: reading.meta[name] for name in ("opens_ms", "closes_ms", "pay_within_ms", "limit_buyer", "limit_ip")}
    assert meta == {
        "opens_ms": str(opens_ms), "closes_ms": str(opens_ms + 3_600_000), "pay_within_ms": "60000",
        "limit_buyer": "2", "limit_ip": "3",
    }  # fmt: skip
    [outcome] = await sale.buy(store, ["anna"])
    assert outcome.code is ReserveCode.NOT_OPEN
    assert (await desk.put(sale.campaign, new)).version == changed.version  # the same again changes nothing


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("currency", "EUR"), ("spread", 2), ("channels", ["web"]),
        ("skus", [{"sku": "red", "name": "red", "stock": 11, "price": 100}]),
        ("skus", [{"sku": "red", "name": "red", "stock": 10, "price": 99}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("state", ["open", "paused"])
async def test_put_of_an_opened_campaign_refuses_other_changes(
    state: str, field: str, value: object, desk: CampaignDesk
) -> None:
    campaign = await in_state(desk, state, stock={"red": 10})
    before = await desk.show(campaign)
    other = msgspec.convert(msgspec.to_builtins(before.spec) | {field: value}, CampaignSpec)
    with pytest.raises(Refused, match=field):
        await desk.put(campaign, other)
    assert await desk.show(campaign) == before


async def test_put_of_a_closed_campaign_is_refused(desk: CampaignDesk) -> None:
    campaign = await in_state(desk, "closed")
    with pytest.raises(Refused, match="closed"):
        await desk.put(campaign, spec())


async def test_campaign_changed_by_two_at_once_lets_one_win(desk: CampaignDesk, scripts: Scripts) -> None:
    sale = await Sale.open(desk)
    known = await desk.show(sale.campaign)
    specs = [
        msgspec.convert(msgspec.to_builtins(known.spec) | {"pay_within_s": n}, CampaignSpec) for n in range(100, 108)
    ]
    results = await asyncio.gather(*(desk.put(sale.campaign, s) for s in specs), return_exceptions=True)
    losers = [r for r in results if isinstance(r, BaseException)]
    winners = [r for r in results if not isinstance(r, BaseException)]
    assert winners
    assert {type(r) for r in losers} == {Refused}
    last = await desk.show(sale.campaign)
    assert last.version == known.version + len(winners)
    [reading] = await readings(scripts, sale)
    assert reading.meta["version"] == str(last.version)
    assert reading.meta["pay_within_ms"] == str(last.spec.pay_within_s * 1000)


async def test_change_recorded_but_not_told_is_told_by_the_same_call(
    desk: CampaignDesk, scripts: Scripts, ledger: Pool
) -> None:
    sale = await Sale.open(desk)
    await ledger.execute("UPDATE campaigns SET state = 'paused', version = version + 1")
    assert (await readings(scripts, sale))[0].meta["state"] == "open"
    await desk.pause(sale.campaign)
    assert (await readings(scripts, sale))[0].meta["state"] == "paused"


async def test_restock_adds_and_withdraws_and_is_journalled(
    desk: CampaignDesk, store: SharedConnection, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 10, "blue": 5})
    await sale.accept(store, 3)
    more = await desk.restock(sale.campaign, Restock("more", "red", 5))
    assert more == Restocked("more", "red", 5, False)
    less = await desk.restock(sale.campaign, Restock("less", "red", -12))
    assert less == Restocked("less", "red", -12, False)
    [reading] = await readings(scripts, sale)
    assert (reading.left, reading.allocation) == ({"red": 0, "blue": 5}, {"red": 3, "blue": 5})
    assert await journal(ledger) == {("open", "applied"): 15, ("restock", "applied"): -7}
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.unsold) == (True, 5)


async def test_restock_again_changes_nothing(desk: CampaignDesk, scripts: Scripts, ledger: Pool) -> None:
    sale = await Sale.open(desk, {"red": 10}, spread=4)
    for n in range(3):
        result = await desk.restock(sale.campaign, Restock("more", "red", 6))
        assert result == Restocked("more", "red", 6, n > 0)
    assert await left(scripts, sale) == [5, 5, 3, 3]
    assert await journal(ledger) == {("open", "applied"): 10, ("restock", "applied"): 6}


@pytest.mark.parametrize("other", [Restock("one", "red", 7), Restock("one", "red", -5), Restock("one", "blue", 5)])
async def test_restock_of_another_change_under_the_same_id_is_refused(
    other: Restock, desk: CampaignDesk, scripts: Scripts
) -> None:
    sale = await Sale.open(desk, {"red": 10, "blue": 10})
    await desk.restock(sale.campaign, Restock("one", "red", 5))
    with pytest.raises(Refused, match="5 units of red"):
        await desk.restock(sale.campaign, other)
    [reading] = await readings(scripts, sale)
    assert reading.left == {"red": 15, "blue": 10}


async def test_restock_of_more_than_is_left_is_refused_and_changes_nothing(
    desk: CampaignDesk, scripts: Scripts, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 10}, spread=4)
    for _ in range(2):
        with pytest.raises(Refused, match="fewer than 11"):
            await desk.restock(sale.campaign, Restock("less", "red", -11))
    assert await left(scripts, sale) == [3, 3, 2, 2]
    assert (await auditor.audit(sale.campaign)).ok


@pytest.mark.parametrize("state", ["draft", "closed"])
async def test_restock_of_a_campaign_that_is_not_on_sale_is_refused(state: str, desk: CampaignDesk) -> None:
    campaign = await in_state(desk, state)
    with pytest.raises(Refused, match=state):
        await desk.restock(campaign, Restock("one", "red", 1))


@pytest.mark.parametrize(
    ("change", "field"), [(Restock("one", "green", 1), "sku"), (Restock("one", "red", 0), "units")]
)
async def test_restock_that_makes_no_sense_is_invalid(change: Restock, field: str, desk: CampaignDesk) -> None:
    campaign = await in_state(desk, "paused")
    with pytest.raises(Invalid) as caught:
        await desk.restock(campaign, change)
    assert caught.value.field == field


@pytest.mark.parametrize("in_store", [False, True])
async def test_restock_that_broke_off_is_finished_once_by_the_same_call(
    in_store: bool, desk: CampaignDesk, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    """The change stands in the journal, and is in the store or not: the caller died in between."""
    sale = await Sale.open(desk, {"red": 10})
    keys = sale.parts[0].keys
    await ledger.execute(
        "INSERT INTO stock_moves (shard, campaign, move_id, sku, kind, units, state)"
        " VALUES ($1, $2, 'restock.one', 'red', 'restock', 5, 'pending')", sale.shards[0], sale.campaign,
    )  # fmt: skip
    if in_store:
        await scripts.restock(keys, 1, "restock.one", "red", 5)
    assert (await auditor.audit(sale.campaign)).ok  # a change that is under way is no fault
    assert await desk.restock(sale.campaign, Restock("one", "red", 5)) == Restocked("one", "red", 5, False)
    assert await desk.restock(sale.campaign, Restock("one", "red", 5)) == Restocked("one", "red", 5, True)
    assert await left(scripts, sale) == [15]
    assert await journal(ledger) == {("open", "applied"): 10, ("restock", "applied"): 5}
    assert (await auditor.audit(sale.campaign)).ok


@pytest.mark.parametrize("units", [10, -10])
async def test_restock_at_once_by_many_happens_once(
    units: int, desk: CampaignDesk, store: SharedConnection, scripts: Scripts, auditor: Auditor
) -> None:
    """Plans made from different readings must not add up: the one in the journal counts."""
    sale = await Sale.open(desk, {"red": 40}, spread=4)

    async def sell() -> None:
        for n in range(10):
            await sale.buy(store, [f"buyer{n}", f"other{n}"])

    change = Restock("one", "red", units)
    calls = (desk.restock(sale.campaign, change) for _ in range(6))
    *results, _ = await asyncio.gather(*calls, sell(), return_exceptions=True)
    # A shard that sold its units meanwhile withdraws none; but all callers are told the same, and it is what happened.
    moved = {r.units if isinstance(r, Restocked) else 0 for r in results}
    total = sum(await left(scripts, sale)) + sum(r.held["red"] for r in await readings(scripts, sale))
    assert moved == {total - 40}
    assert total - 40 == units if units > 0 else units <= total - 40 <= 0
    assert (await auditor.audit(sale.campaign)).ok


async def test_restock_with_one_id_and_two_wishes_at_once_lets_one_win(
    desk: CampaignDesk, scripts: Scripts, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 10})
    changes = [Restock("one", "red", n) for n in (1, 2, 3, 4)]
    results = await asyncio.gather(*(desk.restock(sale.campaign, c) for c in changes), return_exceptions=True)
    [winner] = [r for r in results if isinstance(r, Restocked)]
    assert {type(r) for r in results} == {Restocked, Refused}
    assert await left(scripts, sale) == [10 + winner.units]
    assert (await auditor.audit(sale.campaign)).ok


async def test_spread_divides_stock_and_restock_and_withdraws_across_shards(
    desk: CampaignDesk, scripts: Scripts, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 10, "blue": 2}, spread=4)
    assert await left(scripts, sale) == [3, 3, 2, 2]
    assert await left(scripts, sale, "blue") == [1, 1, 0, 0]
    await desk.restock(sale.campaign, Restock("more", "red", 7))
    assert await left(scripts, sale) == [5, 5, 4, 3]
    await desk.restock(sale.campaign, Restock("less", "red", -12))
    assert await left(scripts, sale) == [0, 0, 2, 3]
    report = await auditor.audit(sale.campaign)
    assert report.ok
    assert {s.sku: s.allocation for s in report.skus} == {"red": 5, "blue": 2}


async def test_close_withdraws_what_is_left_and_can_be_repeated(
    desk: CampaignDesk, store: SharedConnection, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 40, "blue": 6}, spread=4)
    await sale.accept(store, 5)
    for _ in range(2):
        assert (await desk.close(sale.campaign)).state == "closed"
        assert await left(scripts, sale) == [0] * 4
        assert await left(scripts, sale, "blue") == [0] * 4
        assert sum(r.allocation["red"] for r in await readings(scripts, sale)) == 5
        assert await journal(ledger) == {("open", "applied"): 46, ("close", "applied"): -41}
        report = await auditor.audit(sale.campaign)
        assert (report.ok, report.unsold, report.accepted) == (True, 0, 5)


@pytest.mark.parametrize("in_store", [False, True])
async def test_close_that_broke_off_is_finished_by_the_same_call(
    in_store: bool, desk: CampaignDesk, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 10})
    await ledger.execute("UPDATE campaigns SET state = 'closed', version = version + 1")
    await ledger.execute(
        "INSERT INTO stock_moves (shard, campaign, move_id, sku, kind, units, state)"
        " VALUES ($1, $2, 'close.1.red', 'red', 'close', -10, 'pending')", sale.shards[0], sale.campaign,
    )  # fmt: skip
    if in_store:
        await scripts.restock(sale.parts[0].keys, 1, "close.1.red", "red", -10)
    await desk.close(sale.campaign)
    assert await left(scripts, sale) == [0]
    assert await journal(ledger) == {("open", "applied"): 10, ("close", "applied"): -10}
    assert (await auditor.audit(sale.campaign)).ok


@pytest.mark.parametrize("arrived", [False, True])
async def test_close_finishes_a_transfer_that_broke_off(
    arrived: bool, desk: CampaignDesk, scripts: Scripts, ledger: Pool, auditor: Auditor
) -> None:
    """A gateway died between the withdrawal from one shard and the arrival on another."""
    sale = await Sale.open(desk, {"red": 10}, spread=2)
    source, target = sale.parts
    await scripts.restock(source.keys, 1, "x.1", "red", -2, target.shard)
    if arrived:
        await scripts.restock(target.keys, 1, "x.1", "red", 2, source.shard)
    await desk.close(sale.campaign)
    assert await left(scripts, sale) == [0, 0]
    assert [(r.allocation["red"], r.moves) for r in await readings(scripts, sale)] == [(0, {}), (0, {})]
    assert await journal(ledger) == {("open", "applied"): 10, ("close", "applied"): -10}
    assert (await auditor.audit(sale.campaign)).ok


async def test_close_at_once_by_two_withdraws_once(
    desk: CampaignDesk, store: SharedConnection, scripts: Scripts, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 20}, spread=4)
    await sale.accept(store, 1)
    await desk.pause(sale.campaign)
    await asyncio.gather(*(desk.close(sale.campaign) for _ in range(3)), return_exceptions=True)
    await desk.close(sale.campaign)
    assert await left(scripts, sale) == [0] * 4
    report = await auditor.audit(sale.campaign)
    assert (report.ok, [s.allocation for s in report.skus]) == (True, [1])


async def test_close_keeps_what_was_accepted_until_it_is_in_the_ledger(
    desk: CampaignDesk, store: SharedConnection, ledger: Pool, settings: Any, auditor: Auditor
) -> None:
    sale = await Sale.open(desk, {"red": 10})
    await sale.accept(store, 4)
    await desk.close(sale.campaign)
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.in_flight, report.persisted) == (True, 4, 0)
    async with running(make_worker(settings, ledger)):
        await drained(store)
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.in_flight, report.persisted) == (True, 0, 4)


async def test_put_of_a_spread_beyond_the_shards_is_refused_and_writes_nothing(desk: CampaignDesk) -> None:
    campaign = fresh("sale")
    await desk.put(campaign, spec(spread=SHARDS))
    with pytest.raises(Invalid, match=f"at most {SHARDS}") as refused:
        await desk.put(campaign, spec(spread=SHARDS + 1))
    assert refused.value.field == "spread"
    assert (await desk.show(campaign)).spec.spread == SHARDS
