"""What callers may send: the limit on every field, and errors that say where and why."""

from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

import core.model
from core.model import MAX_LINES, WORDS, CampaignSpec, OrderRequest, Payment, Restock, explain

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


PAYMENT: dict[str, Any] = {
    "payment_no": "p", "order_id": "x" * 36, "amount": 1, "currency": "CNY", "status": "paid",
    "paid_at": "2026-11-22T10:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "body", "field", "why"),
    [
        (Payment, PAYMENT | {"currency": "cny"}, "currency",
         "must be a currency's three capital letters (ISO 4217), such as CNY"),
        (Payment, PAYMENT | {"status": "magic"}, "status", "'magic' is none of paid, failed, refunded"),
        (Payment, PAYMENT | {"status": "m" * 9_000}, "status", f"'{'m' * 63}… is none of paid, failed, refunded"),
        (Payment, PAYMENT | {"status": "x - at `$.amount`"}, "status",
         "'x - at `$.amount`' is none of paid, failed, refunded"),
        (CampaignSpec, CAMPAIGN | {"order_type": "ticket"}, "order_type",
         "'ticket' is none of goods, virtual, reserve_at_payment"),
        (OrderRequest, ORDER | {"items": [{"sku": "re d", "quantity": 1}]}, "items[0].sku",
         "must be A-Z, a-z, 0-9, ., _ and -, the first one a letter or a digit"),
        (OrderRequest, ORDER | {"buyer_id": "a b"}, "buyer_id", "must be visible ASCII characters without blanks"),
    ],
)  # fmt: skip
def test_error_is_told_in_words(kind: Any, body: dict[str, Any], field: str, why: str) -> None:
    assert refused(kind, body) == (field, why)


def sent_fields() -> list[Any]:
    """The annotation of every field that a caller may send, and of what is in it."""
    kinds = [k for k in vars(core.model).values() if isinstance(k, type) and issubclass(k, msgspec.Struct)]
    strict = [k for k in kinds if k.__struct_config__.forbid_unknown_fields]
    assert {OrderRequest, Payment, Restock, CampaignSpec} <= set(strict)
    todo = [field.type for kind in strict for field in msgspec.structs.fields(kind)]
    found = []
    while todo:
        found.append(todo.pop())
        todo += getattr(found[-1], "__metadata__", ()) if get_origin(found[-1]) is not Literal else ()
        todo += get_args(found[-1]) if get_origin(found[-1]) is not Literal else ()
    return found


def test_every_pattern_has_words_and_every_choice_is_told() -> None:
    patterns = {part.pattern for part in sent_fields() if isinstance(part, msgspec.Meta) and part.pattern}
    assert patterns <= set(WORDS)
    choices = {tuple(get_args(part)) for part in sent_fields() if get_origin(part) is Literal}
    assert choices == set(core.model._CHOICES.values())
