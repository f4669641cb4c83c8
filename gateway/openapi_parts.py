"""What the OpenAPI document is put together from: parameters, answers, operations."""

from typing import Any

from gateway.problems import CODES

Json = dict[str, Any]

CHANNEL: list[Json] = [{"channelKey": []}, {"signedRequest": []}]
BUYER: list[Json] = [*CHANNEL, {"admissionTicket": []}]
ADMIN: list[Json] = [{"adminToken": []}]


LIMITS: Json = {  # headers of answers about orders, where there are rate limits
    "RateLimit": {
        "schema": {"type": "string"},
        "description": "of the tightest limit: requests that may follow at once (`r`), and seconds until all may (`t`)",
    },
    "RateLimit-Policy": {
        "schema": {"type": "string"}, "description": "all limits: so many requests (`q`) in so many seconds (`w`)",
    },
}  # fmt: skip


def ref(name: str) -> Json:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def content(name: str, kind: str = "application/json") -> Json:
    """A body of a schema."""
    return {kind: {"schema": ref(name)}}


def problems(*codes: str) -> Json:
    """One response per status, naming its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code][0], []).append(code)
    found: Json = {}
    for status, names in by_status.items():
        found[str(status)] = {
            "description": "; ".join(f"`{n}`: {CODES[n][1]}" for n in names),
            "content": content("Problem", "application/problem+json"),
        }
        if status in (429, 503):
            found[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
        if status == 429:
            found["429"]["headers"] |= LIMITS
    return found


def query(name: str, description: str, kind: str = "string", **more: Any) -> Json:
    """A parameter of the query, which may be left out."""
    return {
        "name": name, "in": "query", "required": False, "description": description, "schema": {"type": kind, **more},
    }  # fmt: skip


def path(name: str, description: str, values: list[str] | None = None) -> Json:
    """A part of the path."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"} if values is None else {"type": "string", "enum": values},
    }


CAMPAIGN = path("campaign", "name of the campaign: a-z, 0-9, _ and -, 1 to 64 characters")
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "the client's own key of this order: one key, one outcome. 1 to 64 visible ASCII characters",
    "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[!-~]+$"},
}
BODY = ("invalid", "malformed", "too_large")
STORE = ("store_unavailable", "store_not_as_promised", "campaign_lost", "recovering")
TAKING = ("overloaded", *STORE, "ledger_unavailable")
ASKING = (*STORE, "ledger_unavailable", "overloaded")


def operation(
    summary: str, ok: str, name: str | None, security: list[Json], refusals: Json, parameters: list[Json],
    body: str | None = None,
) -> Json:  # fmt: skip
    """One call. `refusals`: the responses beside `ok` and 500. What may be signed may be signed wrongly."""
    if any("signedRequest" in way for way in security) and "401" in refusals:
        refusals["401"]["description"] += f"; `signature_invalid`: {CODES['signature_invalid'][1]}"
    found: Json = {
        "summary": summary,
        "operationId": "".join(w.capitalize() for w in summary.split())[0:60],
        "parameters": parameters,
        "responses": {
            ok: {"description": summary, **({"content": content(name)} if name else {})},
            **refusals,
            **problems("internal"),
        },
        "security": security,
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": content(body)}
    return found
