"""What happens to an order after its 202: who may move it over HTTP. The ledger decides: these calls need it."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import Route

from core.desk.listing import Listing
from core.desk.orders import Moved, OrderDesk
from core.desk.refunds import RefundDesk
from core.model import AddressChange, RefundRequest
from core.signing import Signer
from gateway.access import Access
from gateway.body import decode, read_body
from gateway.lifecycle_callbacks import BODY_BYTES, Callbacks
from gateway.lifecycle_calls import ORDER, Acting, Action, Calls
from gateway.lifecycle_reads import Reads
from gateway.lifecycle_watch import Watcher
from gateway.lookup import Lookup

decode_change = msgspec.json.Decoder(AddressChange).decode
decode_refund = msgspec.json.Decoder(RefundRequest).decode
_is_action = re.compile(r"[a-z_]{1,32}\Z").match


class Lifecycle:
    """The routes that move orders, and those that show them."""

    def __init__(
        self, access: Access, orders: OrderDesk, refunds: RefundDesk, listing: Listing, lookup: Lookup,
        watcher: Watcher, payment: Signer | None, partner: Signer | None, retry_after_s: int,
    ) -> None:  # fmt: skip
        """`payment`, `partner`: know the secrets of those who call back; None = their callbacks are refused."""
        self._orders = orders
        self._refunds = refunds
        self._lookup = lookup
        self._calls = Calls(access, lookup, retry_after_s)
        self._reads = Reads(self._calls, orders, listing, lookup, watcher)
        self._callbacks = Callbacks(self._calls, orders, payment, partner)

    def routes(self) -> list[Route]:
        """All of them."""
        route, refund = self._calls.route, ORDER + "/refunds/{refund_no}"
        return [
            *self._reads.routes(self.change),
            *self._callbacks.routes(),
            route(ORDER + "/cancel", POST=self._act("cancel")),
            route(ORDER + "/confirm-receipt", POST=self._act("receive")),
            route(ORDER + "/returns", POST=self._act("return")),
            route(ORDER + "/suspend", operator=True, POST=self._act("suspend")),
            route(ORDER + "/resume", operator=True, POST=self._act("resume")),
            route(ORDER + "/urge", POST=self.urge),
            route(ORDER + "/actions/{action}", operator=True, POST=self.operate),
            route(ORDER + "/refunds", POST=self.refund, GET=self.refunds),
            route(refund + "/approve", operator=True, POST=self.approve),
            route(refund + "/reject", operator=True, POST=self.reject),
            route(refund + "/confirm", operator=True, POST=self.confirm),
        ]

    def _act(self, action: str) -> Action:
        """A step without a body; the answer is the order. Made again it is refused, and changes nothing."""

        async def act(request: Request, order_id: bytes, acting: Acting) -> Any:
            return await self._moved(
                order_id, lambda: self._orders.act(order_id, action, acting.actor, acting.who, acting.owner)
            )

        return act

    async def _moved(self, order_id: bytes, move: Callable[[], Awaitable[Moved]]) -> Any:
        await move()
        return await self._lookup.find(order_id)

    async def operate(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        """Any step that the order's flow gives an operator and that has no body."""
        action = request.path_params["action"]
        if not _is_action(action):
            return self._calls.refused("not_found")
        return await self._moved(order_id, lambda: self._orders.operate(order_id, action, acting.who))

    async def urge(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        return await self._moved(order_id, lambda: self._orders.urge(order_id, acting.actor, acting.who, acting.owner))

    async def change(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        new = decode(decode_change, await read_body(request.receive, BODY_BYTES)).ship_to
        return await self._moved(
            order_id, lambda: self._orders.change(order_id, new, acting.actor, acting.who, acting.owner)
        )

    async def refund(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        """Asked for by a buyer and to be reviewed; by an operator it is approved as it is."""
        wanted = decode(decode_refund, await read_body(request.receive, BODY_BYTES))
        if acting.actor == "operator":
            return await self._refunds.grant(order_id, wanted, acting.who)
        return await self._refunds.request(order_id, wanted, acting.actor, acting.who, acting.owner)

    async def refunds(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        return {"refunds": await self._refunds.list(order_id, acting.owner)}

    async def approve(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        return await self._refunds.approve(order_id, request.path_params["refund_no"], acting.who)

    async def reject(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        return await self._refunds.reject(order_id, request.path_params["refund_no"], acting.who)

    async def confirm(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        return await self._refunds.confirm(order_id, request.path_params["refund_no"], acting.who)
