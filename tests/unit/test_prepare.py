"""From a request to what `reserve` wants."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from core.ids import IdSource, campaign_tag, shard_of, tag_of
from core.model import OrderRequest
from core.wire import decode_held, decode_placed, request_field
from gateway.catalogue import Sale
from gateway.prepare import ChannelNotAllowed, SkuUnknown, canonical_ip, prepare
from lua.keys import buyer_slot, home_shards
from lua.reserve import Ask
from tests.support import SHARDS, spec

SHIP_TO = {"name": "A", "phone": "123", "address": "B"}


def sale(**fields: Any) -> Sale:
    return Sale("launch", 1, 1, spec({"red": 5, "blue": 5}, **fields), SHARDS)


def ask(of: Sale | None = None, channel: str = "app", key: str = "k", **body: Any) -> Ask:
    order = msgspec.convert({"buyer_id": "b", "items": [{"sku": "red", "quantity": 2}]} | body, OrderRequest)
    return prepare(IdSource(), of or sale(), channel, key, order)[1]


def test_prepare_makes_the_ask_of_one_line() -> None:
    made = ask(client_ip="10.0.0.1", device_id="d")
    assert made.field == request_field("app", "k")
    assert (made.buyer_id, made.client_ip, made.device_id) == ("b", "10.0.0.1", "d")
    assert made.lines == ("red", 2)
    assert made.placed == b""
    held = decode_held(made.held)
    assert (held.channel, held.request_key, held.items, held.amount, held.currency) == (
        "app", "k", [("red", 2, 100)], 200, "CNY",
    )  # fmt: skip
    assert tag_of(made.order_id) == campaign_tag("launch")
    assert shard_of(made.order_id) == home_shards("launch", 1, SHARDS)[0]


def test_prepare_leaves_out_what_is_not_known() -> None:
    made = ask()
    assert (made.client_ip, made.device_id) == ("", "")


def test_prepare_sorts_lines_so_that_their_order_makes_no_other_body() -> None:
    lines = [{"sku": "red", "quantity": 2}, {"sku": "blue", "quantity": 1}]
    one, two = ask(items=lines), ask(items=lines[::-1])
    assert one.lines == two.lines == ("blue", 1, "red", 2)
    assert one.fingerprint == two.fingerprint
    assert one.held == two.held


def test_prepare_ship_to_is_in_placed_and_not_in_held() -> None:
    made = ask(ship_to=SHIP_TO)
    to = decode_placed(made.placed).ship_to
    assert to is not None
    assert to.address == "B"
    assert decode_held(made.held) == decode_held(ask().held)
    assert made.fingerprint != ask().fingerprint


def test_prepare_ip_makes_no_other_body_but_a_device_does() -> None:
    assert ask(client_ip="10.0.0.1").fingerprint == ask(client_ip="10.0.0.2").fingerprint
    assert ask(device_id="d1").fingerprint != ask(device_id="d2").fingerprint


@given(st.from_regex(r"[!-~]{1,64}", fullmatch=True))
def test_prepare_puts_a_buyer_on_the_shard_of_his_slot(buyer_id: str) -> None:
    of = sale(spread=7)
    order = msgspec.convert({"buyer_id": buyer_id, "items": [{"sku": "red", "quantity": 1}]}, OrderRequest)
    slot, made = prepare(IdSource(), of, "app", "k", order)
    assert slot == buyer_slot(buyer_id, 7)
    assert shard_of(made.order_id) == of.shards[slot]


DISCOUNTS = [{"min_amount": 300, "off": 50}, {"min_amount": 500, "off": 40}, {"min_amount": 900, "off": 800}]


@pytest.mark.parametrize(
    ("units", "amount"), [(1, 100), (2, 200), (3, 250), (4, 350), (5, 450), (8, 750), (9, 100), (10, 200)]
)
def test_prepare_takes_the_largest_discount_off_that_is_reached(units: int, amount: int) -> None:
    for discounts in (DISCOUNTS, DISCOUNTS[::-1]):
        of = sale(discounts=discounts)
        made = ask(of, items=[{"sku": "red", "quantity": units}], ship_to=SHIP_TO)
        assert decode_held(made.held).amount == decode_placed(made.placed).amount == amount
        assert decode_held(made.held).items == [("red", units, 100)]
        assert decode_held(ask(items=[{"sku": "red", "quantity": units}]).held).amount == units * 100


def test_prepare_counts_all_lines_for_a_discount_and_it_makes_no_other_body() -> None:
    two = [{"sku": "red", "quantity": 1}, {"sku": "blue", "quantity": 2}]
    made = ask(sale(discounts=[{"min_amount": 300, "off": 300}]), items=two)
    assert decode_held(made.held).amount == 0
    assert made.fingerprint == ask(items=two).fingerprint


def test_prepare_unknown_sku_names_its_line() -> None:
    with pytest.raises(SkuUnknown) as caught:
        ask(items=[{"sku": "red", "quantity": 1}, {"sku": "green", "quantity": 1}])
    assert (caught.value.field, caught.value.code, caught.value.status) == ("items[1].sku", "unknown_sku", 422)


def test_prepare_two_lines_of_one_sku_are_refused() -> None:
    with pytest.raises(Invalid, match="red stands in two lines") as caught:
        ask(items=[{"sku": "red", "quantity": 1}, {"sku": "blue", "quantity": 1}, {"sku": "red", "quantity": 2}])
    assert caught.value.field == "items"


def test_prepare_channel_of_another_campaign_is_refused() -> None:
    of = sale(channels=["web"])
    assert ask(of, channel="web").field == request_field("web", "k")
    with pytest.raises(ChannelNotAllowed) as caught:
        ask(of)
    assert (caught.value.status, caught.value.code) == (403, "channel_not_allowed")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8::0001", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:0a00:0001", "10.0.0.1"),
        ("0:0:0:0:0:ffff:10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("::", "::"),
    ],
)
def test_canonical_ip_has_one_spelling(text: str, canonical: str) -> None:
    assert canonical_ip(text) == canonical
    assert canonical_ip(canonical) == canonical


@pytest.mark.parametrize(
    "text", ["10.0.0", "10.0.0.256", "010.0.0.1", "1", "10.0.0.1.", ":", ":::", "1::2::3", "abc", "g::"]
)
def test_canonical_ip_refuses_what_is_none(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        canonical_ip(text)
    assert caught.value.field == "client_ip"


@given(st.ip_addresses())
def test_canonical_ip_keeps_the_address(address: Any) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    spellings = {str(address), address.exploded, str(address).upper()}
    assert len({canonical_ip(text) for text in spellings}) == 1
    assert canonical_ip(str(address)) == (str(mapped) if mapped else canonical_ip(address.exploded))
