"""The OpenAPI document: valid, and about exactly what is served."""

import base64
import hashlib
import hmac
import json
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import validate

from core.settings import Settings
from gateway.access import Access
from gateway.access_admin import AccessAdmin
from gateway.admin import Admin
from gateway.app import BATCH, LINE, ORDERS, PREFIX
from gateway.lifecycle import Lifecycle
from gateway.line_calls import LineCalls
from gateway.openapi import document
from gateway.problems import CODES
from gateway.views import Views
from lua.durability import Level

ANY: Any = None  # routes are made without a look at these


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, op) for path, item in document()["paths"].items() for method, op in item.items()]


def test_document_is_valid_openapi() -> None:
    validate(document())


def test_paths_and_methods_are_exactly_those_served() -> None:
    access = Access({}, "")
    views = Views(access, ANY, ANY, Level("fsync"), 1, b"")
    admin = Admin(access, ANY, ANY, ANY, 1)
    lifecycle = Lifecycle(access, ANY, ANY, ANY, ANY, ANY, None, None, 1)
    access_admin = AccessAdmin(access, ANY, ANY, ANY, 1)
    line_calls = LineCalls(Settings(), access, ANY, ANY, ANY)
    served = {
        (route.path, method)
        for route in lifecycle.routes() + views.routes() + admin.routes() + access_admin.routes() + line_calls.routes()
        for method in cast("set[str]", route.methods) - {"HEAD"}
    }
    served |= {(PREFIX + "{campaign}" + end, "POST") for end in (ORDERS, BATCH, LINE)}
    served.add((PREFIX + "{campaign}" + LINE, "GET"))
    assert {(path, method.upper()) for path, method, _ in operations()} == served


def test_every_problem_code_is_documented() -> None:
    [parameter] = document()["paths"]["/problems/{code}"]["get"]["parameters"]
    assert set(parameter["schema"]["enum"]) == set(CODES)


def test_every_code_of_an_order_is_named_by_its_status() -> None:
    responses = document()["paths"]["/v1/campaigns/{campaign}/orders"]["post"]["responses"]
    elsewhere = {"conflict", "unknown_order", "unknown_refund", "not_found", "method_not_allowed"}
    elsewhere |= {"not_allowed", "contradicts", "signature_invalid", "on_its_way"}  # of what comes after the 202
    elsewhere |= {"proof_needed", "proof_wrong", "captcha_unavailable"}  # of joining a line
    elsewhere |= {"operators_only", "unknown_channel"}
    elsewhere |= {"head_too_large", "bad_http", "too_slow", "too_many_connections"}  # before there is a path
    for code, (status, _) in CODES.items():
        if code not in elsewhere:
            assert f"`{code}`" in responses[str(status)]["description"]


def test_every_503_of_a_problem_has_retry_after() -> None:
    for path, _, operation in operations():
        unavailable = operation["responses"].get("503")
        if unavailable and path != "/readyz":
            assert "Retry-After" in unavailable["headers"], path


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)


def test_every_call_beside_health_and_documents_is_behind_a_key() -> None:
    schemes = {path: operation["security"] for path, _, operation in operations()}
    open_paths = {path for path, security in schemes.items() if not security}
    assert open_paths == {"/livez", "/readyz", "/openapi.json", "/problems/{code}"}
    assert all(s == [{"adminToken": []}] for path, s in schemes.items() if path.startswith("/v1/admin/"))


def test_campaign_and_order_are_described_with_discounts_and_times() -> None:
    schemas = document()["components"]["schemas"]
    campaign = schemas["CampaignSpec"]["properties"]
    assert campaign["order_type"]["enum"] == ["goods", "reserve_at_payment", "virtual"]
    assert (campaign["after_sales_s"]["default"], campaign["after_sales_s"]["maximum"]) == (604_800, 7_776_000)
    assert (campaign["discounts"]["maxItems"], schemas["Discount"]["required"]) == (20, ["min_amount", "off"])
    assert schemas["OrderView"]["properties"]["discount"] == {"type": "integer", "default": 0}
    assert "discount" not in schemas["OrderView"]["required"]
    assert "discounts" in schemas["CampaignView"]["required"]


def test_steps_of_an_operator_are_those_without_a_body() -> None:
    actions = document()["paths"]["/v1/orders/{order_id}/actions/{action}"]["post"]["parameters"][1]["schema"]["enum"]
    assert {"pick", "lost", "complete_early", "provision_failed"} <= set(actions)
    assert not {"refund", "reject_refund", "change", "urge", "pay", "expire"} & set(actions)


def test_schemas_are_for_any_language_not_for_python() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["ChannelSpec"]["properties"]["channel"]["pattern"] == "^[a-z0-9][a-z0-9_-]*$"
    assert schemas["JoinRequest"]["description"].splitlines()[1].startswith("the proofs")
    assert r"\\Z" not in json.dumps(schemas)
    assert "None" not in " ".join(one.get("description", "") for one in schemas.values())


def test_order_body_names_the_bounds_of_its_fields() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["Item"]["properties"]["quantity"] == {"type": "integer", "minimum": 1, "maximum": 1_000}
    assert schemas["OrderRequest"]["additionalProperties"] is False


def test_every_call_for_operators_alone_says_what_a_channel_is_told() -> None:
    for path, _, operation in operations():
        alone = operation["security"] == [{"adminToken": []}]
        assert ("operators_only" in operation["responses"].get("403", {"description": ""})["description"]) == alone, (
            path
        )


@pytest.mark.parametrize("path", ["/v1/payments/callback", "/v1/partners/{partner}/callback"])
def test_example_of_a_callback_fits_its_schema_and_its_signature_its_body(path: str) -> None:
    found = document()
    operation = found["paths"][path]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    schema = body["schema"] | {"components": found["components"]}
    assert body["examples"]
    for example in body["examples"].values():
        Draft202012Validator(schema, format_checker=FormatChecker()).validate(example["value"])
    # By hand, from what the description says and nothing else.
    words = operation["description"]
    secret = words.split("`whsec_")[-1].split("`")[0]
    lines = [line.strip() for line in words.splitlines() if line.startswith("    ")]
    headers = dict(line.split(": ") for line in lines[1:])
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{lines[0]}".encode()
    digest = hmac.new(base64.b64decode(secret), content, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
