"""The calls about orders after their 202, as the OpenAPI document has them."""

from typing import Annotated

import msgspec

from core.desk.listing import MAX_PAGE
from core.desk.moves import Event, Moved
from core.desk.orders import OWN_CALLS, TraceStep
from core.flows import FLOWS
from core.model import (
    AddressChange,
    OrderPage,
    OrderView,
    PartnerReport,
    Payment,
    Refund,
    RefundRequest,
)  # fmt: skip
from gateway.lifecycle_reads import ENDS, PAGE, STATES, WAIT_S
from gateway.openapi_callbacks import callback_paths
from gateway.openapi_parts import ADMIN, ASKING, BODY, BUYER, Json, operation, path, problems, query, ref


class Trace(msgspec.Struct):
    """The story of an order, the oldest step first."""

    order_id: str
    trace_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", description="as W3C Trace Context has it")]
    steps: list[TraceStep]


class Refunds(msgspec.Struct):
    """The refunds of an order, the oldest first."""

    refunds: list[Refund]


BODIES = [
    OrderView, OrderPage, Moved, Trace, Event, Payment, PartnerReport, AddressChange, RefundRequest, Refund, Refunds,
]  # fmt: skip

ORDER = path("order_id", "as a 202 gave it")
ACTIONS = sorted({s.action for f in FLOWS.values() for s in f.steps if "operator" in s.actors} - set(OWN_CALLS))
REFUND = path("refund_no", "as a request for a refund gave it")
EITHER = BUYER + ADMIN
LAST_EVENT: Json = {
    "name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"},
    "description": "the `id` of the last event that is known: the stream goes on after it",
}  # fmt: skip
KNOWN = ("unauthorized", "unknown_order", "on_its_way")


def _step(summary: str, result: str = "OrderView", security: list[Json] = EITHER, body: str | None = None,
          more: tuple[str, ...] = (), parameters: list[Json] | None = None) -> Json:  # fmt: skip
    mine = ("operators_only",) if security == ADMIN else ()
    codes = (*KNOWN, *mine, "not_allowed", *(BODY if body else ()), *more, *ASKING)
    return operation(summary, "200", result, security, problems(*codes), parameters or [ORDER], body)


def _page() -> Json:
    found = operation(
        "Orders that fit", "200", "OrderPage", EITHER, problems("unauthorized", "invalid", *ASKING),
        [
            query("buyer_id", "of this buyer", maxLength=64),
            query("channel", "of this channel; a channel sees its own orders only", maxLength=64),
            query("campaign", "of this campaign; with it a page is found fastest", maxLength=64),
            query("state", "in this state", enum=sorted(STATES)),
            query("after", "what `next` of the page before said"),
            query("limit", "most orders of the page", "integer", minimum=1, maximum=MAX_PAGE, default=PAGE),
        ],
    )  # fmt: skip
    found["description"] = (
        "By shard and id, without `ship_to`. A page may hold fewer orders than `limit`, even none, and have a `next`: "
        "go on with it until it is null."
    )
    return found


def _one() -> Json:
    found = operation(
        "Order as it stands", "200", "OrderView", EITHER, problems("unauthorized", "unknown_order", "invalid", *ASKING),
        [
            ORDER,
            query("wait", "seconds to wait for a change", "number", minimum=0, maximum=WAIT_S, default=0),
            query("version", "with `wait`: the version that is known; a later one is answered at once", "integer"),
        ],
    )  # fmt: skip
    found["description"] = (
        "With `wait` the answer comes once the order has changed, or as it is when the time is over; at once if the "
        f"order is at an end ({', '.join(sorted(ENDS))}): stop polling there. What may still move it comes unasked, "
        "such as money that is late; the webhook tells when it has gone back. `ship_to` is there once the order is in "
        "the ledger, a moment after its 202, and left out if it has none."
    )
    return found


def _events() -> Json:
    found = operation(
        "Moves of an order as they come", "200", None, EITHER,
        problems("unauthorized", "unknown_order", "invalid", *ASKING), [ORDER, LAST_EVENT],
    )  # fmt: skip
    found["description"] = (
        "Server-sent events: `id` is the order's version, `event` the action, `data` an Event. Comments are signs of "
        "life. It ends when the order is at an end; whoever comes again with its last `id` gets a 204, after which an "
        "EventSource stops. An end that still moves (money that is late) is told to whoever asks after that."
    )
    found["responses"]["204"] = {"description": "The order is at an end and has no event after `Last-Event-ID`"}
    found["responses"]["200"]["content"] = {
        "text/event-stream": {"schema": {"type": "string"}, "x-event-data": ref("Event")}
    }
    return found


def _operate() -> Json:
    found = _step(
        "Make a step of an operator", security=ADMIN, more=("conflict", "not_found"),
        parameters=[ORDER, path("action", "a step that the order's flow gives an operator", ACTIONS)],
    )  # fmt: skip
    found["description"] = (
        "What is allowed from where the order is depends on its order type: `allowed` of a `not_allowed` names it. "
        "Steps that say more than their name have calls of their own: refund, refunded, reject_refund, change."
    )
    return found


def _refund() -> Json:
    found = _step("Ask money back", "Refund", EITHER, "RefundRequest", ("contradicts", "conflict"))
    found["description"] = (
        "With a channel's key it is a request, to be reviewed. With the admin token it is approved and asked of the "
        "payment centre at once; the same one again, until the centre has paid it back, is that one."
    )
    return found


def order_paths() -> Json:
    """The paths under /v1/orders, and the callbacks."""
    order = "/v1/orders/{order_id}"
    review = ("unknown_refund",)
    trace = operation("Every step of an order", "200", "Trace", EITHER, problems(*KNOWN, *ASKING), [ORDER])
    refunds = operation("Refunds of an order", "200", "Refunds", EITHER, problems(*KNOWN, *ASKING), [ORDER])
    return {
        "/v1/orders": {"get": _page()},
        order: {
            "get": _one(),
            "patch": _step("Change the address of an order", body="AddressChange"),
        },
        order + "/events": {"get": _events()},
        order + "/trace": {"get": trace},
        order + "/cancel": {"post": _step("Cancel an order")},
        order + "/confirm-receipt": {"post": _step("Confirm that the goods have come")},
        order + "/returns": {"post": _step("Send the goods back")},
        order + "/urge": {"post": _step("Urge the merchant, once a minute at most")},
        order + "/suspend": {"post": _step("Suspend an order", security=ADMIN)},
        order + "/resume": {"post": _step("Resume an order", security=ADMIN)},
        order + "/actions/{action}": {"post": _operate()},
        order + "/refunds": {"get": refunds, "post": _refund()},
        order + "/refunds/{refund_no}/approve": {
            "post": _step("Approve a refund", "Refund", ADMIN, None, ("contradicts", *review), [ORDER, REFUND])
        },
        order + "/refunds/{refund_no}/reject": {
            "post": _step("Reject a refund", "Refund", ADMIN, None, review, [ORDER, REFUND])
        },
        order + "/refunds/{refund_no}/confirm": {
            "post": _step(
                "Take a refund as paid back that the payment centre never reported",
                "Refund", ADMIN, None, review, [ORDER, REFUND],
            )
        },
        **callback_paths(),
    }  # fmt: skip
