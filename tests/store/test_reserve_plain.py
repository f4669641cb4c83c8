"""The plain case of `reserve`, which decides a batch as a whole, against the general one, which decides one by one."""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from core.wire import TAIL_BYTES, read_entry
from lua.connection import SharedConnection
from lua.reserve import Ask, Outcome, ReserveCode, pack, read
from lua.source import LuaSource
from tests.support import StoreSale, contents, reading, tell

PLAIN = b"if not all_accepted() then"
SKUS = ("red", "blue")


@cache
def with_instead(of_plain: bytes) -> LuaSource:
    """`reserve` with another condition for the general case."""
    text = LuaSource.read("reserve").text
    assert text.count(PLAIN) == 1
    text = text.replace(PLAIN, of_plain)
    return LuaSource("reserve", text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


GENERAL = with_instead(b"if true then")
ONLY_PLAIN = with_instead(b"if not all_accepted() then error('not plain') end if false then")

one_ask = st.tuples(
    st.sampled_from("abcdefghijkl"),  # buyer
    st.sampled_from([None, None, None, "k1"]),  # request key, a new one as a rule
    st.lists(
        st.tuples(st.sampled_from([*SKUS * 6, "unknown"]), st.sampled_from([1, 1, 1, 2, 3])), min_size=1, max_size=2
    ),
    st.sampled_from(["", "10.0.0.1"]),
    st.sampled_from(["", "d1"]),
)
buyers_only = st.fixed_dictionaries(
    {"limit_buyer": st.sampled_from(["", 1, 1, 2, 3])}, optional={"at_payment": st.just("1")}
)
any_limits = st.fixed_dictionaries(
    {"limit_buyer": st.sampled_from(["", 2, 5])},
    optional={
        "limit_buyer_sku": st.just(3), "limit_ip": st.just(6), "limit_device": st.just(6), "at_payment": st.just("1"),
        "state": st.sampled_from(["open", "paused"]), "count_channel": st.just(1), "shares": st.just('{"app": 7}'),
    },
)  # fmt: skip
metas = st.one_of(buyers_only, buyers_only, buyers_only, any_limits)
stocks = st.fixed_dictionaries({sku: st.sampled_from([0, 2, 6, 100, 100]) for sku in SKUS})


async def outcomes(store: SharedConnection, script: LuaSource, sale: StoreSale, asks: Sequence[Ask]) -> list[Any]:
    """Code, order, reason of each, without the times; leases without theirs; the number of the last order."""
    [reply] = await store.run(script, [pack(sale.keys, sale.campaign, 1, asks)])
    answers = read(reply, asks)
    return [
        [(o.code, o.order_id, o.detail) for o in answers.outcomes],
        sorted((lease.sku, lease.mark) for lease in answers.leases),
        answers.seq,
    ]


async def written(store: SharedConnection, sale: StoreSale) -> dict[str, Any]:
    """All that the store holds of the campaign, without times."""
    hashes = []
    for key in sale.keys[:5]:
        flat = await tell(store, "HGETALL", key)
        hashes.append(dict(zip(flat[::2], flat[1::2], strict=True)))
    meta, stock, used, requests, holds = hashes
    entries = [read_entry(fields) for _, fields in await tell(store, "XRANGE", sale.keys.intake, "-", "+")]
    return {
        "meta": {name: meta[name] for name in (b"seq", b"epoch", b"reopen")},
        "stock": stock,
        "used": used,
        "requests": {field: record[:24] for field, record in requests.items()},
        "holds": {order: hold[: 1 - TAIL_BYTES] for order, hold in holds.items()},
        "orders": [orders for head, orders in entries if head.campaign == sale.campaign],
        "numbers": [(head.first_seq, head.orders) for head, _ in entries if head.campaign == sale.campaign],
    }


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(meta=metas, stock=stocks, batches=st.lists(st.lists(one_ask, min_size=1, max_size=6), min_size=2, max_size=4))
async def test_plain_case_does_what_the_general_one_does(
    store: SharedConnection, meta: dict[str, Any], stock: dict[str, int], batches: list[list[Any]]
) -> None:
    one, other = await StoreSale.open(store, stock, **meta), await StoreSale.open(store, stock, **meta)
    for batch in batches:
        asks = [one.ask(who, *lines, key=key, ip=ip, device=device) for who, key, lines, ip, device in batch]
        shipped = await outcomes(store, LuaSource.read("reserve"), one, asks)
        assert shipped == await outcomes(store, GENERAL, other, asks)
        assert await written(store, one) == await written(store, other)


@pytest.mark.parametrize("baskets", [[[("red", 1)]], [[("red", 1)], [("blue", 2), ("red", 1)], [("red", 1)]]])
async def test_batch_of_new_buyers_is_the_plain_case(
    store: SharedConnection, baskets: list[list[tuple[str, int]]]
) -> None:
    """Control: otherwise the comparison above compares the general case with itself."""
    sale = await StoreSale.open(store, {"red": 50, "blue": 50}, limit_buyer=3)
    for _ in range(2):
        asks = [sale.ask(f"b{n}", *basket) for n, basket in enumerate(baskets * 3)]
        [reply] = await store.run(ONLY_PLAIN, [pack(sale.keys, sale.campaign, 1, asks[:1])])
        assert read(reply, asks[:1]).outcomes[0].code is ReserveCode.ACCEPTED
    [reply] = await store.run(ONLY_PLAIN, [pack(sale.keys, sale.campaign, 1, asks[1:])])
    assert [o.order_id for o in read(reply, asks[1:]).outcomes] == [a.order_id for a in asks[1:]]
    found = await reading(store, sale)
    assert found.held["red"] + found.left["red"] == 50
    assert (found.held["red"], found.seq) == (len(asks) + 1, len(asks) + 1)


async def test_batch_that_is_not_plain_is_known_as_such(store: SharedConnection) -> None:
    """Control: same buyer twice, same key twice, a limit that counts addresses, too few units."""
    sale = await StoreSale.open(store, {"red": 2}, limit_buyer=9)
    watched = await StoreSale.open(store, {"red": 9}, limit_ip=9)
    for at, asks in (
        (sale, [sale.ask("a"), sale.ask("a")]),
        (sale, [sale.ask("a", key="k"), sale.ask("b", key="k")]),
        (sale, [sale.ask("a"), sale.ask("b"), sale.ask("c")]),
        (watched, [watched.ask("a", ip="10.0.0.1")]),
    ):
        [reply] = await store.run(ONLY_PLAIN, [pack(at.keys, at.campaign, 1, asks)])
        assert isinstance(reply, ResponseError)
        assert "not plain" in str(reply)
    assert (await reading(store, sale)).seq == 0


async def test_campaign_of_an_older_layout_is_fenced(store: SharedConnection) -> None:
    """Its request keys have other names: a repeated one would be taken for a new one."""
    sale = await StoreSale.open(store, {"red": 2})
    before = await contents(store)
    for change in (("HDEL", sale.keys.meta, "layout"), ("HSET", sale.keys.meta, "layout", "1")):
        await store.exchange([change])
        ask = sale.ask("a")
        [reply] = await store.run(LuaSource.read("reserve"), [pack(sale.keys, sale.campaign, 1, [ask])])
        assert reply[0] == 1
    await store.exchange([("HSET", sale.keys.meta, "layout", "2")])
    assert await contents(store) == before
    assert (await sale.reserve(store, sale.ask("a"))).outcomes[0] != Outcome(ReserveCode.SOLD_OUT)
