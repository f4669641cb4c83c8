"""How orders are shown: one as it stands or once it changes, its trace, its events as they come, pages of many."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from core.desk.listing import MAX_PAGE, Filter, Listing
from core.desk.orders import OrderDesk
from core.errors import Fault, Invalid, LedgerUnavailable, OrderUnknown
from core.flows import FLOWS
from core.ids import parse, text_of
from core.model import OrderPage, OrderView
from gateway.access import Unauthorized
from gateway.admin import json_response
from gateway.body import Gone
from gateway.lifecycle_calls import ORDER, Acting, Action, Calls, owns
from gateway.lifecycle_watch import AWAY_S, Watcher
from gateway.lookup import Lookup
from gateway.replies import encode_json

WAIT_S = 30.0  # longest long-poll
BEAT_S = 10.0  # between two signs of life on a stream of events
STREAM_S = 3_600.0  # longest stream; the client comes again with its Last-Event-ID
PAGE = 50
MAX_VERSION = 2**31 - 1  # of the ledger's column
FILTERS = ("buyer_id", "channel", "campaign", "state")
STATES = {state for flow in FLOWS.values() for state in flow.states}
ENDS = {end for flow in FLOWS.values() for end in flow.ends}


def number(request: Request, name: str, low: float, high: float, default: float) -> float:
    """A number of the query. Raises Invalid."""
    text = request.query_params.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise Invalid(f"must be a number, {low:g} to {high:g}", name)
    return value


def whole(text: str, name: str) -> int:
    """A version of an order. Raises Invalid."""
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) <= MAX_VERSION):
        raise Invalid("must be the version of an order", name)
    return int(text)


def only(request: Request, *names: str) -> None:
    """Raises Invalid for a parameter that is unknown or given twice: a filter that is ignored shows too much."""
    for name in request.query_params:
        if name not in names or len(request.query_params.getlist(name)) > 1:
            raise Invalid(f"unknown or given twice; there are {', '.join(names)}", name)


class Reads:
    """The routes that show orders."""

    def __init__(self, calls: Calls, orders: OrderDesk, listing: Listing, lookup: Lookup, watcher: Watcher) -> None:
        self._calls = calls
        self._orders = orders
        self._listing = listing
        self._lookup = lookup
        self._watcher = watcher

    def routes(self, change: Action) -> list[Route]:
        """All of them; `change`: PATCH of the order itself."""
        return [
            Route("/v1/orders", self.page, methods=["GET"]),
            self._calls.route(ORDER, GET=self.order, PATCH=change),
            self._calls.route(ORDER + "/trace", GET=self.trace),
            self._calls.route(ORDER + "/events", GET=self.events),
        ]

    async def _find(self, order_id: bytes, acting: Acting) -> OrderView:
        view = await self._lookup.find(order_id)
        if view is None or not owns(acting.owner, view):
            raise OrderUnknown("no such order")
        return view

    async def order(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        """An order as it stands; with `wait`, once it is beyond `version` (left out: beyond where it is now).

        One that is at an end is answered at once: only what comes unasked may move it yet, and nobody waits for that.
        """
        only(request, "wait", "version")
        wait_s = number(request, "wait", 0, WAIT_S, 0)
        version = request.query_params.get("version")
        known = None if version is None else whole(version, "version")
        view = await self._find(order_id, acting)
        if wait_s and view.state not in ENDS and (known is None or view.version <= known):
            known = view.version if known is None else known
            if await self._watcher.newer(order_id, known, wait_s) > known:
                if not self._calls.stands(acting):
                    raise Unauthorized("")
                view = await self._find(order_id, acting)
        return view

    async def trace(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        """Every step of an order, the oldest first."""
        steps = await self._orders.trace(order_id, acting.owner)
        context = await self._orders.context(order_id)
        return {"order_id": request.path_params["order_id"], "trace_id": context.trace_id.hex(), "steps": steps}

    async def events(self, request: Request, order_id: bytes, acting: Acting) -> Any:
        """The moves of an order as they come, after the one that `Last-Event-ID` names; over when the order is.

        204 if it is over and has nothing new: any other answer brings a browser back each second, for ever.
        """
        after = whole(request.headers.get("last-event-id", "0"), "Last-Event-ID")
        view = await self._find(order_id, acting)
        if view.state in ENDS and view.version <= after:
            return Response(status_code=204, headers={"cache-control": "no-store"})
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return StreamingResponse(self._stream(order_id, view, after, acting), 200, headers, "text/event-stream")

    async def _stream(self, order_id: bytes, view: OrderView, after: int, acting: Acting) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        until_s, state = loop.time() + STREAM_S, view.state
        yield b"retry: 1000\n\n"
        while loop.time() < until_s and not self._watcher.stopping():
            try:
                if not self._calls.stands(acting):
                    return  # a key that was revoked meanwhile, a ticket that is over
                for event in await self._orders.events(order_id, after):
                    after, state = event.version, event.to_state
                    yield b"id: %d\nevent: %b\ndata: %b\n\n" % (
                        after, event.action.encode(), encode_json(event),
                    )  # fmt: skip
                if state in ENDS:
                    return
                if await self._watcher.newer(order_id, after, BEAT_S) == after:
                    yield b": still here\n\n"
            except LedgerUnavailable:
                yield b": the ledger is away\n\n"
                await asyncio.sleep(AWAY_S)
            except Fault:
                return  # too many: the client comes again

    async def page(self, request: Request) -> Response:
        """A page of the orders that fit; a channel sees its own only, a buyer with a ticket those of the ticket."""
        try:
            acting, request = await self._calls.acting(request)
            only(request, *FILTERS, "after", "limit")
            asked = {name: request.query_params.get(name) for name in FILTERS}
            for name, value in asked.items():
                if value is not None and not (0 < len(value) <= 64 and value.isascii() and value.isprintable()):
                    raise Invalid("must be 1 to 64 ASCII characters", name)
            if asked["state"] not in (None, *STATES):
                raise Invalid("is no state of any flow", "state")
            for name, own in (acting.owner._asdict() if acting.owner is not None else {}).items():
                if own is not None and asked[name] not in (None, own):
                    whose = "a channel" if name == "channel" else "a buyer"
                    raise Invalid(f"{whose} sees its own orders only", name)
                asked[name] = own or asked[name]
            text = request.query_params.get("after")
            after = parse(text) if text is not None else None
            if text is not None and after is None:
                raise Invalid("must be what `next` said", "after")
            limit = number(request, "limit", 1, MAX_PAGE, PAGE)
            if limit % 1:
                raise Invalid("must be a whole number", "limit")
            ids, more = await self._listing.page(Filter(**asked), after, int(limit))
            views = await asyncio.gather(*(self._lookup.find(i) for i in ids))  # one query, by the look-up's doing
            listed = [replace(v, ship_to=None) for v in views if v]
            return json_response(OrderPage(listed, None if more is None else text_of(more)))
        except Fault as exc:
            return self._calls.failed(exc)
        except Gone:
            return Response()  # to nobody
