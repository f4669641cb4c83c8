"""One order on the page: its whole story, drawn over its flow, and an operator's moves."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from core.desk.orders import OWN_CALLS, OrderDesk
from core.desk.refunds import RefundDesk
from core.errors import OrderUnknown
from core.ids import parse
from core.model import RefundRequest
from gateway.body import decode
from ops.console.drawing import drawing
from ops.console.guard import Guard, body_of
from ops.console.sessions import Session
from ops.desk import Desk
from ops.order_display import how_it_waits
from ops.order_story import Story, explain_unknown, read_story

WHO = "operator"  # the actor of the event, as of the commands

decode_refund = msgspec.json.Decoder(RefundRequest).decode


class Orders:
    """The calls under `orders`."""

    def __init__(self, guard: Guard, desk: Desk, shards: int) -> None:
        self._guard = guard
        self._desk = desk
        self._shards = shards
        self._orders = OrderDesk(desk.ledger, shards)
        self._refunds = RefundDesk(desk.ledger, shards)

    def routes(self, base: str) -> list[BaseRoute]:
        """All of them."""
        one = base + "/orders/{order_id}"
        decide = one + "/refunds/{refund_no}/{decision}"
        return [
            self._guard.get(one, self.show),
            self._guard.post(one + "/actions/{step}", self.act),
            self._guard.post(one + "/refunds", self.refund),
            self._guard.post(decide, self.decide),
        ]

    async def show(self, request: Request, session: Session) -> dict[str, Any]:
        """All there is of it."""
        story = await read_story(self._desk, self._shards, _order_id(request))
        found: dict[str, Any] = msgspec.structs.asdict(story)
        found["drawing"] = drawing(story.order_type, story.order.state, story.steps)
        found["buttons"] = _buttons(story)
        found["stands"] = {
            f"{w.topic} {w.version}": how_it_waits(w.due_at, w.attempts, w.error, datetime.now(UTC))
            for w in story.waiting
        }
        return found

    async def act(self, request: Request, session: Session) -> Any:
        """A step that the flow gives an operator and that says no more than its name."""
        order_id = _order_id(request)
        await body_of(request)
        try:
            return await self._orders.operate(order_id, request.path_params["step"], WHO)
        except OrderUnknown as exc:
            raise await explain_unknown(self._desk, self._shards, order_id) from exc

    async def refund(self, request: Request, session: Session) -> Any:
        """Money goes back: approved and asked of the payment centre."""
        order_id = _order_id(request)
        wanted = decode(decode_refund, await body_of(request))
        try:
            return await self._refunds.grant(order_id, wanted, WHO)
        except OrderUnknown as exc:
            raise await explain_unknown(self._desk, self._shards, order_id) from exc

    async def decide(self, request: Request, session: Session) -> Any:
        """A refund under review is approved or rejected; or the centre has paid back and never said so."""
        await body_of(request)
        decisions = {
            "approve": self._refunds.approve, "reject": self._refunds.reject, "confirm": self._refunds.confirm
        }  # fmt: skip
        decide = decisions.get(request.path_params["decision"])
        if decide is None:
            raise OrderUnknown(f"there is no decision {request.path_params['decision'][:32]!r}")
        return await decide(_order_id(request), request.path_params["refund_no"], WHO)


def _buttons(story: Story) -> list[str]:
    """What an operator may do by a step's name alone, and `refund` where money may go back."""
    allowed = story.allowed.get("operator", [])
    return [step for step in allowed if step not in OWN_CALLS or step == "refund"]


def _order_id(request: Request) -> bytes:
    order_id = parse(request.path_params["order_id"])
    if order_id is None:
        raise OrderUnknown("that is no order id: 36 characters, as a 202 gave it")
    return order_id
