"""The OpenAPI 3.1 document, made from the same structs and tables that the code uses."""

import inspect
from typing import Any

import msgspec

from core.desk.campaigns import Campaign, Restocked
from core.model import AuditReport, BatchLine, CampaignSpec, OrderRequest, OrderView, Restock
from gateway.openapi_access import BODIES as ACCESS_BODIES
from gateway.openapi_access import access_paths
from gateway.openapi_line import BODIES as LINE_BODIES
from gateway.openapi_line import line_paths
from gateway.openapi_orders import BODIES as ORDER_BODIES
from gateway.openapi_orders import order_paths
from gateway.openapi_parts import (
    ADMIN,
    ASKING,
    BUYER,
    CAMPAIGN,
    CHANNEL,
    KEY,
    LIMITS,
    TAKING,
    Json,
    content,
    operation,
    path,
    problems,
    ref,
)
from gateway.problems import CODES, Problem
from gateway.views import CampaignView


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
    AuditReport, Problem, Live, Ready, BatchAccepted, BatchRefused, ProblemKind, *ORDER_BODIES, *ACCESS_BODIES,
    *LINE_BODIES,
]  # fmt: skip


def _orders() -> Json:
    found = operation(
        "Order from a campaign", "202", "OrderAccepted", BUYER,
        problems(
            "sold_out", "over_limit", "not_open", "closed", "paused", "key_missing", "key_invalid", "malformed",
            "key_reused", "unknown_sku", "invalid", "unauthorized", "channel_not_allowed", "campaign_not_allowed",
            "blocked", "ticket_needed", "ticket_wrong", "unknown_campaign", "too_large", "rate_limited", *TAKING,
        ),
        [CAMPAIGN, KEY], "OrderRequest",
    )  # fmt: skip
    found["responses"]["202"]["headers"] = {
        "Location": {"schema": {"type": "string"}, "description": "where the order stands"},
        "Idempotent-Replayed": {"schema": {"const": "true"}, "description": "this key was accepted before"},
        **LIMITS,
    }
    return found


def _batch() -> Json:
    found = operation(
        "Order many at once", "200", None, CHANNEL,
        problems("invalid", "unauthorized", "ticket_wrong", "unknown_campaign", "not_open", "too_large", *TAKING),
        [CAMPAIGN],
    )  # fmt: skip
    found["description"] = (
        "NDJSON, one order per line with its `request_key`, at most 1,000. The answer has one line per order in the "
        "same order: `request_key`, `http_status`, then what a single order would have been answered."
    )
    found["requestBody"] = {"required": True, "content": content("BatchLine", "application/x-ndjson")}
    found["responses"]["200"]["content"] = {
        "application/x-ndjson": {"schema": {"oneOf": [ref("BatchAccepted"), ref("BatchRefused")]}}
    }
    return found


def _admin(summary: str, result: str, body: str | None = None) -> Json:
    refusals = problems(
        "unauthorized", "operators_only", "unknown_campaign", "invalid", "malformed", "too_large", "conflict",
        "campaign_lost",
        "store_unavailable", "store_not_as_promised", "ledger_unavailable",
    )  # fmt: skip
    return operation(summary, "200", result, ADMIN, refusals, [CAMPAIGN], body)


def _metrics() -> Json:
    refusals = problems("unauthorized", "operators_only", "not_found")
    found = operation("Metrics of this process", "200", None, ADMIN, refusals, [])
    found["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return found


def _for_any_language(schema: Any) -> Any:
    """The schema with its texts unindented; in its patterns `$`, as only Python's regular expressions know `\\Z`."""
    if isinstance(schema, list):
        return [_for_any_language(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _for_any_language(value) for key, value in schema.items()}
    if isinstance(text := found.get("description"), str):
        found["description"] = inspect.cleandoc(text)
    if isinstance(pattern := found.get("pattern"), str):
        found["pattern"] = pattern.replace(r"\Z", "$")
    return found


def document() -> Json:
    """The whole document; its paths are exactly those that are served, which a test compares."""
    _, schemas = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")
    schemas = _for_any_language(schemas)
    schemas["Document"] = {"title": "Document", "type": "object"}
    base = "/v1/admin/campaigns/{campaign}"
    not_ready = {"503": {"description": "orders are not taken now", "content": content("Ready")}}
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
                "get": operation(
                    "Campaign as channels see it", "200", "CampaignView", BUYER,
                    problems("unauthorized", "unknown_campaign", "not_open", *ASKING), [CAMPAIGN],
                )
            },
            **order_paths(),
            base: {
                "put": _admin("Define or change a campaign", "Campaign", "CampaignSpec"),
                "get": _admin("Campaign as defined", "Campaign"),
            },
            base + "/open": {"post": _admin("Open or resume a campaign", "Campaign")},
            base + "/pause": {"post": _admin("Pause a campaign", "Campaign")},
            base + "/close": {"post": _admin("Close a campaign", "Campaign")},
            base + "/restock": {"post": _admin("Add or withdraw units", "Restocked", "Restock")},
            base + "/audit": {"get": _admin("Audit a campaign", "AuditReport")},
            **access_paths(),
            **line_paths(),
            "/livez": {"get": operation("Process is alive", "200", "Live", [], {}, [])},
            "/readyz": {"get": operation("Orders are taken", "200", "Ready", [], not_ready, [])},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": operation("This document", "200", "Document", [], {}, [])},
            "/problems/{code}": {
                "get": operation(
                    "What a code means", "200", "ProblemKind", [], problems("not_found"),
                    [path("code", "of a problem", sorted(CODES))],
                )
            },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "channelKey": {"type": "http", "scheme": "bearer", "description": "the key of a channel"},
                "signedRequest": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "rushgate-signature",
                    "description": "by a signing key of a channel, with two headers more: docs/channels.md",
                },
                "signedPlace": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a buyer's signed place in a line: what joining it gave as `line`",
                },
                "admissionTicket": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a buyer's ticket: knows the buyer's own orders in one campaign",
                },
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
