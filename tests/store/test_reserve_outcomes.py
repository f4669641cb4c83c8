"""Every outcome of `reserve`, at its bound; what is refused writes nothing."""

from collections.abc import Awaitable, Callable

import pytest

from core.ids import shard_of
from lua.connection import SharedConnection
from lua.reserve import Answers, Ask, Outcome, ReserveCode
from tests.support import StoreSale, contents, reading

C = ReserveCode


def codes(answers: Answers) -> list[ReserveCode]:
    return [o.code for o in answers.outcomes]


@pytest.mark.parametrize("left", [0, 1, 7])
async def test_reserve_sells_exactly_what_is_left(store: SharedConnection, left: int) -> None:
    sale = await StoreSale.open(store, {"red": left})
    for want, expected in ((left + 1, C.SOLD_OUT), (left, C.ACCEPTED if left else None), (1, C.SOLD_OUT)):
        if expected is not None:
            [outcome] = (await sale.reserve(store, sale.ask("b", ("red", want)))).outcomes
            assert outcome.code is expected
            assert outcome.detail == ("red" if expected is C.SOLD_OUT else "")
    found = await reading(store, sale)
    assert (found.left, found.held, found.allocation) == ({"red": 0}, {"red": left}, {"red": left})


async def test_reserve_batch_sells_exactly_what_is_left(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 3})
    answers = await sale.reserve(store, *(sale.ask(f"b{n}") for n in range(5)))
    assert codes(answers) == [C.ACCEPTED] * 3 + [C.SOLD_OUT] * 2
    assert (await reading(store, sale)).left == {"red": 0}


async def test_reserve_large_request_refused_leaves_units_for_a_smaller_one(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 2})
    answers = await sale.reserve(store, sale.ask("a", ("red", 3)), sale.ask("b", ("red", 2)), sale.ask("c"))
    assert codes(answers) == [C.SOLD_OUT, C.ACCEPTED, C.SOLD_OUT]


async def test_reserve_last_unit_goes_to_the_first_of_a_batch(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    first, second = sale.ask("a"), sale.ask("b")
    answers = await sale.reserve(store, first, second)
    assert answers.outcomes[0].order_id == first.order_id
    assert answers.outcomes[1] == Outcome(C.SOLD_OUT, detail="red")
    assert (await reading(store, sale)).holds == 1


async def test_reserve_basket_is_all_or_nothing(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5, "blue": 1, "green": 5}, limit_buyer=20, limit_buyer_sku=20)
    before = await contents(store)
    basket = sale.ask("b", ("red", 2), ("blue", 2), ("green", 1))
    [outcome] = (await sale.reserve(store, basket)).outcomes
    assert outcome == Outcome(C.SOLD_OUT, detail="blue")
    assert await contents(store) == before
    answers = await sale.reserve(store, basket, sale.ask("b", ("red", 2), ("blue", 1), ("green", 1)))
    assert codes(answers) == [C.SOLD_OUT, C.ACCEPTED]
    found = await reading(store, sale)
    assert found.left == {"red": 3, "blue": 0, "green": 4}
    assert found.held == {"red": 2, "blue": 1, "green": 1}


async def test_reserve_sums_two_lines_of_one_sku(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 3})
    answers = await sale.reserve(
        store, sale.ask("a", ("red", 2), ("red", 2)), sale.ask("b", ("red", 2), ("red", 1)), sale.ask("c")
    )
    assert codes(answers) == [C.SOLD_OUT, C.ACCEPTED, C.SOLD_OUT]
    assert (await reading(store, sale)).held == {"red": 3}


async def test_reserve_same_key_and_body_twice_in_a_batch_is_one_order(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    first, again = sale.ask("b", key="k"), sale.ask("b", key="k")
    assert first.order_id != again.order_id
    one, two = (await sale.reserve(store, first, again)).outcomes
    assert (one.code, two.code) == (C.ACCEPTED, C.REPLAYED)
    assert one.order_id == two.order_id == first.order_id
    assert one.pay_by_ms == two.pay_by_ms > 0
    assert (await reading(store, sale)).left == {"red": 4}


async def test_reserve_same_key_and_other_body_is_refused(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    answers = await sale.reserve(store, sale.ask("b", key="k"), sale.ask("b", ("red", 2), key="k"))
    assert answers.outcomes[1] == Outcome(C.KEY_REUSED)
    before = await contents(store)
    later = await sale.reserve(store, sale.ask("b", ("red", 2), key="k"), sale.ask("c", key="k"))
    assert codes(later) == [C.KEY_REUSED, C.KEY_REUSED]
    assert await contents(store) == before


async def test_reserve_same_key_of_another_channel_is_another_request(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    answers = await sale.reserve(store, sale.ask("b", key="k"), sale.ask("b", key="k", channel="web"))
    assert codes(answers) == [C.ACCEPTED, C.ACCEPTED]


async def test_reserve_key_of_a_refused_request_is_free(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    answers = await sale.reserve(store, sale.ask("b", ("red", 2), key="k"), sale.ask("b", key="k"))
    assert codes(answers) == [C.SOLD_OUT, C.ACCEPTED]


async def test_reserve_replay_changes_nothing_and_answers_the_same(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5}, limit_buyer=1)
    [first] = (await sale.reserve(store, sale.ask("b", key="k"))).outcomes
    before = await contents(store)
    answers = await sale.reserve(store, *(sale.ask("b", key="k") for _ in range(3)))
    assert answers.outcomes == [Outcome(C.REPLAYED, first.order_id, first.pay_by_ms)] * 3
    assert await contents(store) == before


@pytest.mark.parametrize("meta", [{"state": "paused"}, {"state": "closed"}, {"closes_ms": 1}, {"opens_ms": 2**45}])
async def test_reserve_replay_is_answered_after_the_sale_is_shut(
    store: SharedConnection, meta: dict[str, str | int]
) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    [first] = (await sale.reserve(store, sale.ask("b", key="k"))).outcomes
    await store.exchange([("HSET", sale.keys.meta, *(v for item in meta.items() for v in item))])
    replay, other, new = (
        await sale.reserve(store, sale.ask("b", key="k"), sale.ask("c", key="k"), sale.ask("d"))
    ).outcomes
    assert replay == Outcome(C.REPLAYED, first.order_id, first.pay_by_ms)
    assert other.code is C.KEY_REUSED
    assert new.code in (C.PAUSED, C.CLOSED, C.NOT_OPEN)


async def test_reserve_replay_is_answered_when_sold_out(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 1})
    [first] = (await sale.reserve(store, sale.ask("b", key="k"))).outcomes
    answers = await sale.reserve(store, sale.ask("c"), sale.ask("b", key="k"))
    assert codes(answers) == [C.SOLD_OUT, C.REPLAYED]
    assert answers.outcomes[1].order_id == first.order_id


async def test_reserve_unknown_sku_is_told_and_the_rest_of_the_batch_goes_on(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    answers = await sale.reserve(store, sale.ask("a", ("blue", 1)), sale.ask("b", ("red", 1), ("blue", 1)), sale.ask("c"))  # fmt: skip # noqa: E501
    assert answers.outcomes[:2] == [Outcome(C.NO_SKU, detail="blue")] * 2
    assert answers.outcomes[2].code is C.ACCEPTED
    found = await reading(store, sale)
    assert (found.left, found.held) == ({"red": 4}, {"red": 1})


async def test_reserve_accepted_names_the_order_and_the_version(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5}, version=7, pay_within_ms=1_000)
    ask = sale.ask("b")
    answers = await sale.reserve(store, ask)
    assert answers.version == 7
    assert answers.outcomes[0].order_id == ask.order_id
    assert shard_of(ask.order_id) == sale.shard
    now_ms = (await reading(store, sale)).now_ms
    assert now_ms < answers.outcomes[0].pay_by_ms + 1 <= now_ms + 1_001


async def test_reserve_mixed_batch_answers_each_as_if_alone(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 2, "blue": 1}, limit_buyer=2)
    await sale.reserve(store, sale.ask("a", key="old"))
    answers = await sale.reserve(
        store,
        sale.ask("a", key="old"),
        sale.ask("z", key="old"),
        sale.ask("b", ("blue", 1)),
        sale.ask("c", ("blue", 1)),
        sale.ask("a", ("red", 2)),
        sale.ask("d", ("none", 1)),
        sale.ask("d"),
        sale.ask("e"),
    )
    assert codes(answers) == [
        C.REPLAYED, C.KEY_REUSED, C.ACCEPTED, C.SOLD_OUT, C.OVER_LIMIT, C.NO_SKU, C.ACCEPTED, C.SOLD_OUT,
    ]  # fmt: skip
    assert [o.detail for o in answers.outcomes] == ["", "", "", "blue", "buyer", "none", "", "red"]


Refusal = Callable[[SharedConnection], Awaitable[tuple[StoreSale, list[Ask]]]]


async def _sold_out(store: SharedConnection) -> tuple[StoreSale, list[Ask]]:
    sale = await StoreSale.open(store, {"red": 1}, limit_buyer=9, limit_buyer_sku=9, limit_ip=9, limit_device=9)
    return sale, [sale.ask("a", ("red", 2), ip="10.0.0.1", device="d"), sale.ask("b", ("red", 3))]


async def _over_limit(store: SharedConnection) -> tuple[StoreSale, list[Ask]]:
    sale = await StoreSale.open(store, {"red": 9}, limit_buyer=1, limit_ip=1)
    return sale, [sale.ask("a", ("red", 2)), sale.ask("b", ("red", 2), ip="10.0.0.1")]


def _shut(**meta: str | int) -> Refusal:
    async def refusal(store: SharedConnection) -> tuple[StoreSale, list[Ask]]:
        sale = await StoreSale.open(store, {"red": 9}, limit_buyer=9, **meta)
        return sale, [sale.ask("a"), sale.ask("b")]

    return refusal


async def _replayed(store: SharedConnection) -> tuple[StoreSale, list[Ask]]:
    sale = await StoreSale.open(store, {"red": 9}, limit_buyer=9)
    await sale.reserve(store, sale.ask("a", key="k"))
    return sale, [sale.ask("a", key="k"), sale.ask("a", key="k")]


async def _key_reused(store: SharedConnection) -> tuple[StoreSale, list[Ask]]:
    sale, _ = await _replayed(store)
    return sale, [sale.ask("b", key="k"), sale.ask("a", ("red", 2), key="k")]


async def _no_sku(store: SharedConnection) -> tuple[StoreSale, list[Ask]]:
    sale = await StoreSale.open(store, {"red": 9}, limit_buyer=9)
    return sale, [sale.ask("a", ("red", 1), ("blue", 1)), sale.ask("b", ("blue", 1))]


REFUSALS: dict[ReserveCode, Refusal] = {
    C.REPLAYED: _replayed,
    C.SOLD_OUT: _sold_out,
    C.OVER_LIMIT: _over_limit,
    C.NOT_OPEN: _shut(opens_ms=2**45),
    C.CLOSED: _shut(closes_ms=1),
    C.PAUSED: _shut(state="paused"),
    C.KEY_REUSED: _key_reused,
    C.NO_SKU: _no_sku,
}


@pytest.mark.parametrize("code", [c for c in ReserveCode if c is not C.ACCEPTED])
async def test_reserve_refusal_writes_nothing(store: SharedConnection, code: ReserveCode) -> None:
    sale, asks = await REFUSALS[code](store)
    before = await contents(store)
    assert codes(await sale.reserve(store, *asks)) == [code] * len(asks)
    assert await contents(store) == before
    # Nor beside one that is accepted: only that one shows.
    if code in (C.SOLD_OUT, C.OVER_LIMIT, C.NO_SKU, C.REPLAYED, C.KEY_REUSED):
        good = sale.ask("good")
        assert codes(await sale.reserve(store, *asks, good)) == [code] * len(asks) + [C.ACCEPTED]
        after = await contents(store)
        for key, fields in ((sale.keys.requests, {good.field}), (sale.keys.holds, {good.order_id})):
            assert set(after[key]) - set(before.get(key, {})) == fields
        assert int(after[sale.keys.stock][b"red"]) == int(before[sale.keys.stock][b"red"]) - 1
        assert set(after.get(sale.keys.used, {})) - set(before.get(sale.keys.used, {})) <= {b"b:good", b"s:good red"}
