"""A channel's share of stock: counted with the other limits, and given back with them."""

import asyncio
import json
from typing import Any

import pytest

from core.model import ShipTo
from core.wire import Placed, decode_held, encode, with_trace
from lua.connection import SharedConnection
from lua.reserve import Ask, ReserveCode
from lua.scripts import GivebackCode, ReleaseCode, Scripts, SettleCode, Sold
from tests.conftest import Services
from tests.support import StoreSale, reading, tell

C = ReserveCode
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def opened(store: SharedConnection, shares: dict[str, int], **meta: Any) -> StoreSale:
    fields: dict[str, Any] = {"count_channel": 1, "shares": json.dumps(shares)}
    return await StoreSale.open(store, {"red": 100}, **fields | meta)


async def order(store: SharedConnection, sale: StoreSale, channel: str, units: int = 1) -> tuple[C, str, bytes]:
    ask = sale.ask("b", ("red", units), channel=channel)
    [outcome] = (await sale.reserve(store, ask)).outcomes
    return outcome.code, outcome.detail, outcome.order_id


async def sold_by(store: SharedConnection, sale: StoreSale, channel: str) -> int:
    return int(await tell(store, "HGET", sale.keys.used, f"c:{channel}") or 0)


async def test_channel_sells_no_more_than_its_share_and_the_others_go_on(store: SharedConnection) -> None:
    sale = await opened(store, {"app": 3})
    asks = [sale.ask(f"b{n}", channel=channel) for n, channel in enumerate(["app", "web"] * 5)]
    outcomes = (await sale.reserve(store, *asks)).outcomes
    assert [o.code for o in outcomes[1::2]] == [C.ACCEPTED] * 5
    assert [o.code for o in outcomes[::2]] == [C.ACCEPTED] * 3 + [C.OVER_LIMIT] * 2
    assert outcomes[8].detail == "channel_share"
    # All or nothing: two units are not one.
    more = await opened(store, {"app": 3})
    assert [(await order(store, more, "app", n))[0] for n in (2, 2, 1)] == [C.ACCEPTED, C.OVER_LIMIT, C.ACCEPTED]


async def test_control_a_campaign_that_does_not_count_channels_has_no_share(store: SharedConnection) -> None:
    """Control: without the field, that the desk sets at the opening only, the same crowd is sold everything."""
    sale = await StoreSale.open(store, {"red": 100}, shares='{"app": 3}')
    assert [(await order(store, sale, "app"))[0] for _ in range(5)] == [C.ACCEPTED] * 5
    assert await sold_by(store, sale, "app") == 0


async def test_share_is_not_exceeded_under_contention(store: SharedConnection, services: Services) -> None:
    sale = await opened(store, {"app": 10})
    pool = [SharedConnection(services.store_url, "fsync", 10.0, "test") for _ in range(8)]
    found = await asyncio.gather(
        *(sale.reserve(pool[n % 8], *(sale.ask(f"b{n}-{m}") for m in range(5))) for n in range(16))
    )
    assert sum(o.code is C.ACCEPTED for answers in found for o in answers.outcomes) == 10
    for one in pool:
        await one.close()


@pytest.mark.parametrize("form", ["address", "trace", "both", "longest name"])
async def test_channel_is_read_from_every_form_of_an_order(store: SharedConnection, form: str) -> None:
    channel = "c" * 32 if form == "longest name" else "app"
    sale = await opened(store, {channel: 1})

    def ask() -> Ask:
        found = sale.ask("b", channel=channel)
        held = decode_held(found.held)
        parts: dict[str, Any] = {name: getattr(held, name) for name in held.__struct_fields__}
        if form in ("address", "both"):
            found = found._replace(placed=encode(Placed(**parts, ship_to=ShipTo("Ann", "12345", "Street 1"))))
        if form in ("trace", "both"):
            placed = found.placed and with_trace(found.placed, TRACE)
            found = found._replace(held=with_trace(found.held, TRACE), placed=placed)
        return found

    outcomes = (await sale.reserve(store, ask(), ask())).outcomes
    assert [(o.code, o.detail) for o in outcomes] == [(C.ACCEPTED, ""), (C.OVER_LIMIT, "channel_share")]
    assert await sold_by(store, sale, channel) == 1
    [released] = await Scripts(store).release(sale.keys, 1, [outcomes[0].order_id]) or []
    assert released is ReleaseCode.RELEASED
    assert await sold_by(store, sale, channel) == 0


@pytest.mark.parametrize("at_payment", [{}, {"at_payment": "1"}])
async def test_share_comes_back_with_the_hold(
    store: SharedConnection, scripts: Scripts, at_payment: dict[str, str]
) -> None:
    """Also of a hold that has no units yet: it counts for its limits."""
    sale = await opened(store, {"app": 2}, **at_payment)
    code, _, order_id = await order(store, sale, "app", 2)
    assert code is C.ACCEPTED
    assert (await order(store, sale, "app"))[:2] == (C.OVER_LIMIT, "channel_share")
    assert await scripts.release(sale.keys, 1, [order_id]) == [ReleaseCode.RELEASED]
    assert await scripts.release(sale.keys, 1, [order_id]) == [ReleaseCode.NOTHING]
    assert await sold_by(store, sale, "app") == 0
    assert (await order(store, sale, "app", 2))[0] is C.ACCEPTED


@pytest.mark.parametrize("counted", [True, False])
async def test_share_of_a_settled_order_comes_back_with_its_units(
    store: SharedConnection, scripts: Scripts, counted: bool
) -> None:
    sale = await opened(store, {"app": 2}) if counted else await StoreSale.open(store, {"red": 100})
    _, _, order_id = await order(store, sale, "app", 2)
    assert await scripts.settle(sale.keys, 1, [order_id]) == [SettleCode.SETTLED]
    assert await sold_by(store, sale, "app") == (2 if counted else 0)
    back = Sold(order_id, "app", "b", "", "", {"red": 2})
    assert await scripts.giveback(sale.keys, 1, [back]) == [GivebackCode.RETURNED]
    assert await scripts.giveback(sale.keys, 1, [back]) == [GivebackCode.REPEATED]
    assert await sold_by(store, sale, "app") == 0
    assert (await reading(store, sale)).left == {"red": 100}


async def test_share_that_is_changed_finds_what_was_sold_before(store: SharedConnection, scripts: Scripts) -> None:
    sale = await opened(store, {"web": 1})
    assert [(await order(store, sale, "app"))[0] for _ in range(4)] == [C.ACCEPTED] * 4
    await scripts.change(sale.keys, 1, 2, {"shares": '{"app":5}'})
    assert [(await order(store, sale, "app"))[0] for _ in range(2)] == [C.ACCEPTED, C.OVER_LIMIT]
    await scripts.change(sale.keys, 1, 3, {"shares": "{}"})
    assert (await order(store, sale, "app"))[0] is C.ACCEPTED
    assert await sold_by(store, sale, "app") == 6
