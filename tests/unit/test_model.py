"""What callers may send: the limit on every field, and errors that say where and why."""

from typing import Any

import msgspec
import pytest

from core.model import MAX_LINES, CampaignSpec, OrderRequest, explain

ORDER: dict[str, Any] = {"buyer_id": "b", "items": [{"sku": "red", "quantity": 1}]}
CAMPAIGN: dict[str, Any] = {
    "opens_at": "2026-11-21T12:00:00Z",
    "closes_at": "2026-11-21T14:00:00Z",
    "currency": "CNY",
    "pay_within_s": 900,
    "skus": [{"sku": "red", "name": "Red", "stock": 3, "price": 1}],
}


def refused(kind: Any, body: dict[str, Any]) -> tuple[str, str]:
    """Field and reason."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(body), type=kind)
    return explain(caught.value)


def test_order_at_its_bounds_is_taken() -> None:
    items = [{"sku": f"{n}{'s' * 61}", "quantity": 1_000} for n in range(MAX_LINES)]
    body = {"buyer_id": "~" * 64, "items": items, "client_ip": "::", "device_id": "d" * 128}
    assert len(msgspec.convert(body, OrderRequest).items) == MAX_LINES


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"buyer_id": ""}, "buyer_id"),
        ({"buyer_id": "b" * 65}, "buyer_id"),
        ({"buyer_id": "a b"}, "buyer_id"),
        ({"buyer_id": "a\n"}, "buyer_id"),
        ({"buyer_id": "ü"}, "buyer_id"),
        ({"buyer_id": 5}, "buyer_id"),
        ({"items": []}, "items"),
        ({"items": [{"sku": "red", "quantity": 1}] * (MAX_LINES + 1)}, "items"),
        ({"items": [{"sku": "red", "quantity": 0}]}, "items[0].quantity"),
        ({"items": [{"sku": "red", "quantity": -1}]}, "items[0].quantity"),
        ({"items": [{"sku": "red", "quantity": 1_001}]}, "items[0].quantity"),
        ({"items": [{"sku": "red", "quantity": 1.5}]}, "items[0].quantity"),
        ({"items": [{"sku": "red", "quantity": "1"}]}, "items[0].quantity"),
        ({"items": [{"sku": "red", "quantity": True}]}, "items[0].quantity"),
        ({"items": [{"sku": "h:red", "quantity": 1}]}, "items[0].sku"),
        ({"items": [{"sku": "re d", "quantity": 1}]}, "items[0].sku"),
        ({"items": [{"sku": "red\n", "quantity": 1}]}, "items[0].sku"),
        ({"items": [{"sku": "red", "quantity": 1, "price": 1}]}, "items[0].price"),
        ({"client_ip": "1.2.3.4\n"}, "client_ip"),
        ({"client_ip": "x"}, "client_ip"),
        ({"device_id": "d" * 129}, "device_id"),
        ({"ship_to": {"name": "A", "phone": "x", "address": "B"}}, "ship_to.phone"),
        ({"ship_to": {"name": "A\0", "phone": "123", "address": "B"}}, "ship_to.name"),
        ({"ship_to": {"name": "A", "phone": "123"}}, "ship_to.address"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_order_past_a_bound_names_the_field(change: dict[str, Any], field: str) -> None:
    where, why = refused(OrderRequest, ORDER | change)
    assert where == field
    assert why


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"opens_at": "2026-11-21T12:00:00"}, "opens_at"),
        ({"closes_at": "2026-11-21T12:00:00Z"}, ""),
        ({"closes_at": "2026-11-21T13:00:00+09:00"}, ""),
        ({"currency": "cny"}, "currency"),
        ({"pay_within_s": 0}, "pay_within_s"),
        ({"spread": 0}, "spread"),
        ({"limits": {"buyer": 0}}, "limits.buyer"),
        ({"limits": {"buyers": 1}}, "limits.buyers"),
        ({"channels": []}, "channels"),
        ({"skus": []}, "skus"),
        ({"skus": CAMPAIGN["skus"] * 2}, ""),
        ({"skus": [CAMPAIGN["skus"][0] | {"stock": -1}]}, "skus[0].stock"),
        ({"skus": [CAMPAIGN["skus"][0] | {"price": 0.5}]}, "skus[0].price"),
        ({"order_type": "ticket"}, "order_type"),
    ],
)
def test_campaign_past_a_bound_names_the_field(change: dict[str, Any], field: str) -> None:
    where, why = refused(CampaignSpec, CAMPAIGN | change)
    assert where == field
    assert why


def test_campaign_reads_back() -> None:
    made = msgspec.convert(CAMPAIGN, CampaignSpec)
    assert msgspec.json.decode(msgspec.json.encode(made), type=CampaignSpec) == made
