"""What all calls about one order share: who is calling, which order, and how what goes wrong is answered."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import Fault, OrderUnknown
from core.flows.table import Actor
from core.ids import parse
from gateway.access import Access
from gateway.admin import json_response, problem_response
from gateway.body import Gone
from gateway.lookup import Lookup
from gateway.problems import fault, problem

ORDER = "/v1/orders/{order_id}"


class OnItsWay(Fault):
    """The store has the order, the ledger not yet: the same call will do in a moment."""

    status = 503
    code = "on_its_way"
    retryable = True


class Caller(NamedTuple):
    """Who acts, as whom the event names them, and the channel whose orders they know (None: all)."""

    actor: Actor
    who: str
    channel: str | None


Action = Callable[[Request, bytes, Caller], Awaitable[Any]]


class Calls:
    """Makes routes out of actions: authorised, with the order's id, every fault as its problem."""

    def __init__(self, access: Access, lookup: Lookup, retry_after_s: int) -> None:
        self._access = access
        self._lookup = lookup
        self._retry_after_s = retry_after_s

    def caller(self, request: Request) -> Caller | None:
        """An operator by the admin token, or the buyer through a channel; None = neither."""
        authorization = request.headers.get("authorization", "").encode("latin-1")
        if self._access.is_admin(authorization):
            return Caller("operator", "operator", None)
        channel = self._access.channel(authorization)
        return Caller("buyer", f"channel:{channel}", channel) if channel is not None else None

    def route(self, path: str, *, operator: bool = False, **actions: Action) -> Route:
        """All methods of a path under an order. `operator`: the admin token alone opens it."""

        async def endpoint(request: Request) -> Response:
            caller = self.caller(request)
            if caller is None:
                return self.refused("unauthorized")
            if operator and caller.actor != "operator":
                return self.refused("operators_only")
            action = actions.get(request.method) or actions["GET"]  # the router lets HEAD through where there is a GET
            order_id = parse(request.path_params["order_id"])
            if order_id is None:
                return self.refused("unknown_order")
            try:
                answer = await action(request, order_id, caller)
            except OrderUnknown as exc:
                return self.failed(await self.unknown(order_id, caller.channel, exc))
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

    async def unknown(self, order_id: bytes, channel: str | None, exc: Fault) -> Fault:
        """Why the ledger does not know the order: it is on its way there, or nobody has it."""
        try:
            view = await self._lookup.find(order_id)
        except Fault as other:
            return other
        if view is not None and channel in (None, view.channel):
            return OnItsWay("the order is not in the ledger yet")
        return exc
