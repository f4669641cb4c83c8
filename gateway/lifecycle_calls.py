"""What all calls about one order share: who is calling, which order, and how what goes wrong is answered."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.desk.moves import Owner
from core.errors import Fault, OrderUnknown
from core.flows.table import Actor
from core.ids import parse
from core.model import OrderView
from gateway.access import Access, Caller
from gateway.admin import json_response, problem_response
from gateway.body import Gone
from gateway.callers import caller_of
from gateway.lookup import Lookup
from gateway.problems import fault, problem

ORDER = "/v1/orders/{order_id}"


class OnItsWay(Fault):
    """The store has the order, the ledger not yet: the same call will do in a moment."""

    status = 503
    code = "on_its_way"
    retryable = True


class Acting(NamedTuple):
    """Who acts, as whom the event names them, and whose orders they know (None: all)."""

    actor: Actor
    who: str
    owner: Owner | None
    caller: Caller | None = None  # None: an operator


OPERATOR = Acting("operator", "operator", None)

Action = Callable[[Request, bytes, Acting], Awaitable[Any]]


def owns(owner: Owner | None, view: OrderView) -> bool:
    """Whether the order is one that they know."""
    return owner is None or owner.has(view.channel, view.buyer_id, view.campaign)


class Calls:
    """Makes routes out of actions: authorised, with the order's id, every fault as its problem."""

    def __init__(self, access: Access, lookup: Lookup, retry_after_s: int) -> None:
        self._access = access
        self._lookup = lookup
        self._retry_after_s = retry_after_s

    async def acting(self, request: Request) -> tuple[Acting, Request]:
        """An operator by the admin token, the buyer through a channel, or the buyer by a ticket, who knows the orders
        of that campaign alone; and the request to go on with. Raises: as `caller_of`."""
        if self._access.is_admin(request.headers.get("authorization", "").encode("latin-1")):
            return OPERATOR, request
        caller, request = await caller_of(self._access, request)
        ticket = caller.ticket
        if ticket is None:
            return Acting("buyer", f"channel:{caller.channel}", Owner(caller.channel), caller), request
        owner = Owner(caller.channel, ticket.buyer_id, ticket.campaign)
        return Acting("buyer", f"ticket:{caller.channel}", owner, caller), request

    def stands(self, acting: Acting) -> bool:
        """Whether who was let in would still be: for answers that take long."""
        return acting.caller is None or self._access.stands(acting.caller)

    def route(self, path: str, *, operator: bool = False, **actions: Action) -> Route:
        """All methods of a path under an order. `operator`: the admin token alone opens it."""

        async def endpoint(request: Request) -> Response:
            try:
                acting, request = await self.acting(request)
            except Fault as exc:
                return self.failed(exc)
            except Gone:
                return Response()  # to nobody
            if operator and acting.actor != "operator":
                return self.refused("operators_only")
            action = actions.get(request.method) or actions["GET"]  # the router lets HEAD through where there is a GET
            order_id = parse(request.path_params["order_id"])
            if order_id is None:
                return self.refused("unknown_order")
            try:
                answer = await action(request, order_id, acting)
            except OrderUnknown as exc:
                return self.failed(await self.unknown(order_id, acting.owner, exc))
            except Fault as exc:
                return self.failed(exc)
            except Gone:
                return Response()  # to nobody
            return answer if isinstance(answer, Response) else json_response(answer)

        return Route(path, endpoint, methods=list(actions))

    def refused(self, code: str) -> Response:
        """The problem of a code."""
        return problem_response(problem(code), self._retry_after_s)

    def failed(self, exc: Fault) -> Response:
        """The problem of a fault."""
        return problem_response(fault(exc), self._retry_after_s)

    async def unknown(self, order_id: bytes, owner: Owner | None, exc: Fault) -> Fault:
        """Why the ledger does not know the order: it is on its way there, or nobody has it."""
        try:
            view = await self._lookup.find(order_id)
        except Fault as other:
            return other
        if view is not None and owns(owner, view):
            return OnItsWay("the order is not in the ledger yet")
        return exc
