"""The OpenAPI 3.1 document, made from the same structs and tables that the code uses."""

from typing import Any

import msgspec

from core.desk.campaigns import Campaign, Restocked
from core.desk.orders import Moved, TraceStep
from core.model import AuditReport, BatchLine, CampaignSpec, OrderRequest, OrderView, Payment, Restock
from gateway.problems import CODES, Problem
from gateway.views import CampaignView

Json = dict[str, Any]


class OrderAccepted(msgspec.Struct):
    """The answer to an accepted order; the same bytes again for the same key."""

    order_id: str
    status: str
    status_url: str
    pay_by: str
    durability: str


class BatchAccepted(OrderAccepted):
    """The answer to a line of a batch that is an order."""

    request_key: str
    http_status: int
    replayed: bool


class BatchRefused(Problem, frozen=True):
    """The answer to any other line of a batch; `request_key` is empty if the line has none that can be read."""

    request_key: str = ""
    http_status: int = 0


class ProblemKind(msgspec.Struct):
    """What a code means."""

    code: str
    status: int
    title: str


class Trace(msgspec.Struct):
    """The story of an order, the oldest step first."""

    order_id: str
    steps: list[TraceStep]


class Live(msgspec.Struct):
    """The process answers."""

    live: bool
    now: str


class Ready(msgspec.Struct, omit_defaults=True):
    """Whether orders are taken."""

    ready: bool
    durability: str = ""
    code: str = ""
    why: str = ""


BODIES = [
    OrderRequest, BatchLine, CampaignSpec, Restock, OrderAccepted, OrderView, CampaignView, Campaign, Restocked,
    AuditReport, Moved, Trace, Payment, Problem, Live, Ready, BatchAccepted, BatchRefused, ProblemKind,
]  # fmt: skip

CHANNEL: list[Json] = [{"channelKey": []}]
ADMIN: list[Json] = [{"adminToken": []}]
SIGNED: list[Json] = [{"webhookSignature": []}]


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(name: str, kind: str = "application/json") -> Json:
    return {kind: {"schema": _ref(name)}}


def _problems(*codes: str) -> Json:
    """One response per status, naming its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code][0], []).append(code)
    found: Json = {}
    for status, names in by_status.items():
        found[str(status)] = {
            "description": "; ".join(f"`{n}`: {CODES[n][1]}" for n in names),
            "content": _content("Problem", "application/problem+json"),
        }
        if status == 503:
            found["503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


def _path(name: str, description: str, values: list[str] | None = None) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"} if values is None else {"type": "string", "enum": values},
    }


CAMPAIGN = _path("campaign", "name of the campaign: a-z, 0-9, _ and -, 1 to 64 characters")
ORDER = _path("order_id", "as a 202 gave it")
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "the client's own key of this order: one key, one outcome. 1 to 64 visible ASCII characters",
    "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[!-~]+$"},
}
WEBHOOK = [
    {"name": name, "in": "header", "required": True, "description": words, "schema": {"type": "string"}}
    for name, words in (
        ("webhook-id", "unlike any other message's; the same again for a repeated one"),
        ("webhook-timestamp", "seconds since 1970; at most 300 s old or ahead"),
    )
]
TAKING = ("overloaded", "store_unavailable", "store_not_as_promised", "ledger_unavailable", "campaign_lost")
ASKING = ("store_unavailable", "store_not_as_promised", "ledger_unavailable", "overloaded", "campaign_lost")


def _operation(
    summary: str, ok: str, name: str | None, security: list[Json], problems: Json, parameters: list[Json],
    body: str | None = None,
) -> Json:  # fmt: skip
    operation: Json = {
        "summary": summary,
        "operationId": "".join(w.capitalize() for w in summary.split())[0:60],
        "parameters": parameters,
        "responses": {
            ok: {"description": summary, **({"content": _content(name)} if name else {})},
            **problems,
            **_problems("internal"),
        },
        "security": security,
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    return operation


def _orders() -> Json:
    operation = _operation(
        "Order from a campaign", "202", "OrderAccepted", CHANNEL,
        _problems(
            "sold_out", "over_limit", "not_open", "closed", "paused", "key_missing", "key_invalid", "malformed",
            "key_reused", "unknown_sku", "invalid", "unauthorized", "channel_not_allowed", "unknown_campaign",
            "too_large", *TAKING,
        ),
        [CAMPAIGN, KEY], "OrderRequest",
    )  # fmt: skip
    operation["responses"]["202"]["headers"] = {
        "Location": {"schema": {"type": "string"}, "description": "where the order stands"},
        "Idempotent-Replayed": {"schema": {"const": "true"}, "description": "this key was accepted before"},
    }
    return operation


def _batch() -> Json:
    operation = _operation(
        "Order many at once", "200", None, CHANNEL,
        _problems("invalid", "unauthorized", "unknown_campaign", "not_open", "too_large", *TAKING), [CAMPAIGN],
    )  # fmt: skip
    operation["description"] = (
        "NDJSON, one order per line with its `request_key`, at most 1,000. The answer has one line per order in the "
        "same order: `request_key`, `http_status`, then what a single order would have been answered."
    )
    operation["requestBody"] = {"required": True, "content": _content("BatchLine", "application/x-ndjson")}
    operation["responses"]["200"]["content"] = {
        "application/x-ndjson": {"schema": {"oneOf": [_ref("BatchAccepted"), _ref("BatchRefused")]}}
    }
    return operation


def _admin(summary: str, result: str, body: str | None = None) -> Json:
    problems = _problems(
        "unauthorized", "unknown_campaign", "invalid", "malformed", "too_large", "conflict", "campaign_lost",
        "store_unavailable", "store_not_as_promised", "ledger_unavailable",
    )  # fmt: skip
    return _operation(summary, "200", result, ADMIN, problems, [CAMPAIGN], body)


def document() -> Json:
    """The whole document; its paths are exactly those that are served, which a test compares."""
    _, schemas = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")
    schemas["Document"] = {"title": "Document", "type": "object"}
    base = "/v1/admin/campaigns/{campaign}"
    not_ready = {"503": {"description": "orders are not taken now", "content": _content("Ready")}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Rushgate",
            "version": "1",
            "description": "Takes the orders of a flash sale. Errors are problem+json (RFC 9457) with a stable `code`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/v1/campaigns/{campaign}/orders": {"post": _orders()},
            "/v1/campaigns/{campaign}/orders:batch": {"post": _batch()},
            "/v1/campaigns/{campaign}": {
                "get": _operation(
                    "Campaign as channels see it", "200", "CampaignView", CHANNEL,
                    _problems("unauthorized", "unknown_campaign", "not_open", *ASKING), [CAMPAIGN],
                )
            },
            "/v1/orders/{order_id}": {
                "get": _operation(
                    "Order as it stands", "200", "OrderView", CHANNEL,
                    _problems("unauthorized", "unknown_order", *ASKING), [ORDER],
                )
            },
            "/v1/orders/{order_id}/cancel": {
                "post": _operation(
                    "Cancel an order", "200", "OrderView", CHANNEL + ADMIN,
                    _problems("unauthorized", "unknown_order", "not_allowed", "on_its_way", *ASKING), [ORDER],
                )
            },
            "/v1/orders/{order_id}/trace": {
                "get": _operation(
                    "Every step of an order", "200", "Trace", CHANNEL + ADMIN,
                    _problems("unauthorized", "unknown_order", "on_its_way", *ASKING), [ORDER],
                )
            },
            "/v1/payments/callback": {
                "post": _operation(
                    "Payment as the payment centre reports it", "200", "Moved", SIGNED,
                    _problems(
                        "signature_invalid", "malformed", "invalid", "too_large", "unknown_order", "contradicts",
                        "on_its_way", *ASKING,
                    ), WEBHOOK, "Payment",
                )
            },
            base: {
                "put": _admin("Define or change a campaign", "Campaign", "CampaignSpec"),
                "get": _admin("Campaign as defined", "Campaign"),
            },
            base + "/open": {"post": _admin("Open or resume a campaign", "Campaign")},
            base + "/pause": {"post": _admin("Pause a campaign", "Campaign")},
            base + "/close": {"post": _admin("Close a campaign", "Campaign")},
            base + "/restock": {"post": _admin("Add or withdraw units", "Restocked", "Restock")},
            base + "/audit": {"get": _admin("Audit a campaign", "AuditReport")},
            "/livez": {"get": _operation("Process is alive", "200", "Live", [], {}, [])},
            "/readyz": {"get": _operation("Orders are taken", "200", "Ready", [], not_ready, [])},
            "/openapi.json": {"get": _operation("This document", "200", "Document", [], {}, [])},
            "/problems/{code}": {
                "get": _operation(
                    "What a code means", "200", "ProblemKind", [], _problems("not_found"),
                    [_path("code", "of a problem", sorted(CODES))],
                )
            },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "channelKey": {"type": "http", "scheme": "bearer", "description": "the key of a channel"},
                "webhookSignature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "webhook-signature",
                    "description": "Standard Webhooks 1.0: over webhook-id, webhook-timestamp and the raw body",
                },
                "adminToken": {"type": "http", "scheme": "bearer", "description": "the admin token"},
            },
        },
    }  # fmt: skip
