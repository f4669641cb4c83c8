"""Answers that are not orders: problem+json (RFC 9457) with a stable `code`. The table is the list of all codes."""

from functools import lru_cache

import msgspec

from core.errors import Fault, Invalid, NotAllowed, RateLimited
from lua.reserve import Outcome, ReserveCode

# code -> HTTP status, title. `detail` says what is special about this very request.
CODES: dict[str, tuple[int, str]] = {
    "sold_out": (409, "Fewer units are left than the order asks for"),
    "over_limit": (409, "The order would pass a purchase limit"),
    "not_open": (409, "The campaign is not open yet"),
    "closed": (409, "The campaign is closed"),
    "paused": (409, "The campaign is paused"),
    "not_allowed": (409, "The flow has no such move from where the order or the refund is"),
    "contradicts": (409, "The request contradicts what is on record"),
    "conflict": (409, "Not possible in the present state"),
    "key_missing": (400, "The Idempotency-Key header is missing"),
    "key_invalid": (400, "The Idempotency-Key header is not 1 to 64 visible ASCII characters"),
    "malformed": (400, "The body is not JSON in UTF-8"),
    "key_reused": (422, "This key was used for another order"),
    "unknown_sku": (422, "The campaign does not sell this SKU"),
    "invalid": (422, "A field of the request is not as it must be"),
    "signature_invalid": (401, "The signature is missing, too old, or not made with a key of ours"),
    "unauthorized": (401, "The Authorization header is missing or its key is not known"),
    "ticket_needed": (403, "The campaign wants an admission ticket"),
    "ticket_wrong": (403, "The admission ticket is not for this request"),
    "proof_needed": (403, "Joining the line wants a proof of work or a captcha's answer"),
    "proof_wrong": (403, "The proof of work or the captcha's answer is wrong or too old"),
    "channel_not_allowed": (403, "The campaign is not for this channel"),
    "campaign_not_allowed": (403, "The channel may not sell this campaign"),
    "blocked": (403, "This buyer or this address may not order"),
    "unknown_channel": (404, "No such channel"),
    "operators_only": (403, "This call is for operators"),
    "unknown_campaign": (404, "No such campaign"),
    "unknown_order": (404, "No such order"),
    "unknown_refund": (404, "The order has no such refund"),
    "not_found": (404, "No such resource"),
    "method_not_allowed": (405, "The resource does not know this method"),
    "too_large": (413, "The body is too large"),
    "head_too_large": (431, "The request line and headers are too large, or too many"),
    "bad_http": (400, "This is no HTTP/1.1 request"),
    "too_slow": (408, "The request did not come in time"),
    "too_many_connections": (503, "More connections are open than may be: close some, or come again"),
    "rate_limited": (429, "Too many requests: send the same request with the same key again, not before Retry-After"),
    "internal": (500, "An error of ours"),
    "on_its_way": (503, "The order is accepted and on its way to the ledger: send the same request again"),
    "overloaded": (503, "More requests wait than can be served: send the same request with the same key again"),
    "store_unavailable": (503, "The store cannot be used now: send the same request with the same key again"),
    "store_not_as_promised": (503, "The store is not set as this deployment promises"),
    "captcha_unavailable": (503, "The captcha cannot be verified now: send the same request again"),
    "ledger_unavailable": (503, "The ledger cannot be used now: send the same request again"),
    "recovering": (
        503, "The campaign is out of service until it is rebuilt: send the same request with the same key again",
    ),
    "campaign_lost": (503, "The store does not hold the campaign: send the same request with the same key again"),
}  # fmt: skip

OF_OUTCOME: dict[ReserveCode, str] = {
    ReserveCode.SOLD_OUT: "sold_out",
    ReserveCode.OVER_LIMIT: "over_limit",
    ReserveCode.NOT_OPEN: "not_open",
    ReserveCode.CLOSED: "closed",
    ReserveCode.PAUSED: "paused",
    ReserveCode.KEY_REUSED: "key_reused",
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer of 400 and above."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    field: str = ""  # where in the body, e.g. items[0].quantity
    sku: str = ""  # of sold_out
    limit: str = ""  # of over_limit: buyer, buyer_sku, ip, device or channel_share; of rate_limited: whose rate
    retry_after: int = 0  # of rate_limited: seconds, as the header says; for lines of a batch
    allowed: list[str] | msgspec.UnsetType = msgspec.UNSET  # of not_allowed: the actions that are, perhaps none


def problem(code: str, detail: str = "", field: str = "", sku: str = "", limit: str = "") -> Problem:
    """The problem of a code of the table."""
    status, title = CODES[code]
    return Problem(f"/problems/{code}", title, status, code, detail, field, sku, limit=limit)


@lru_cache(maxsize=4_096)
def refusal(code: ReserveCode, detail: str) -> Problem:
    """The problem that says why an order was refused; the same object for the same refusal."""
    name = OF_OUTCOME[code]
    if code is ReserveCode.SOLD_OUT:
        return problem(name, sku=detail)
    if code is ReserveCode.OVER_LIMIT:
        return problem(name, limit=detail)
    return problem(name)


@lru_cache(maxsize=4_096)
def refusal_body(code: ReserveCode, detail: str) -> tuple[int, bytes]:
    """Status and body of `refusal`, encoded once."""
    found = refusal(code, detail)
    return found.status, msgspec.json.encode(found)


def refusal_of(outcome: Outcome) -> tuple[int, bytes]:
    """Status and body for an outcome that is no order."""
    return refusal_body(outcome.code, outcome.detail)


def fault(exc: Fault) -> Problem:
    """The problem that an error of ours answers with."""
    if isinstance(exc, RateLimited):
        limited = problem(exc.code, exc.detail, limit=exc.limit)
        return msgspec.structs.replace(limited, retry_after=exc.retry_after_s)
    code = exc.code if exc.code in CODES else "internal"
    found = problem(code, exc.detail, exc.field if isinstance(exc, Invalid) else "")
    return msgspec.structs.replace(found, allowed=exc.allowed) if isinstance(exc, NotAllowed) else found
