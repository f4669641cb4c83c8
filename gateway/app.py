"""The ASGI application: one look at the path sends orders down the hot path, the rest goes to Starlette's router."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.flood import SampledLog
from gateway.admin import problem_response
from gateway.batch import BatchEndpoint
from gateway.metrics import GatewayMetrics
from gateway.orders import OrderEndpoint
from gateway.problems import problem
from gateway.replies import send_problem
from gateway.short import ShortWay

logger = logging.getLogger("rushgate.gateway")
failed = SampledLog(logger, logging.ERROR, "request failed", with_exception=True)

PREFIX = "/v1/campaigns/"
ORDERS = "/orders"
BATCH = "/orders:batch"
LINE = "/line"
# Beyond these a path has a campaign between its two ends; one may be called `orders`.
ORDERS_BARE, BATCH_BARE = len(PREFIX + ORDERS), len(PREFIX + BATCH)
LINE_BARE = len(PREFIX + LINE)

Endpoint = Callable[[Scope, Receive, Send, str], Awaitable[None]]
CLOSE = [(b"connection", b"close")]
ALLOW = [(b"allow", b"POST")]
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


class Application:
    """What uvicorn calls."""

    def __init__(
        self,
        orders: OrderEndpoint,
        batch: BatchEndpoint,
        rest: ASGIApp,
        full: Callable[[], bool] = lambda: False,
        short_way: ShortWay | None = None,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        """`full`: whether new orders would be refused because too many wait. Like the short way it is for the server's
        protocol. `metrics`: what counts all answers to orders."""
        self.full = full
        self.short_way = short_way
        self.metrics = metrics
        if metrics is not None:
            orders.answers, batch.tally = metrics.tally.long, metrics.tally
            if short_way is not None:
                short_way.answers = metrics.tally.short
        self.line: Endpoint | None = None  # of waiting rooms
        self._orders = orders
        self._batch = batch
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._serve(scope, receive, send)
        except asyncio.CancelledError:
            # Nobody else cancels a request: this process stops, and its grace is over. What had an answer has it.
            with contextlib.suppress(Exception):
                await send_problem(send, problem("store_unavailable", "the gateway stops"), b"1", CLOSE)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(PREFIX):
                if path.endswith(ORDERS) and len(path) > ORDERS_BARE:
                    return await self._hot(self._orders, path[14:-7], scope, receive, send)
                if path.endswith(BATCH) and len(path) > BATCH_BARE:
                    return await self._hot(self._batch, path[14:-13], scope, receive, send)
                if path.endswith(LINE) and len(path) > LINE_BARE and self.line is not None:
                    return await self._guarded(self.line, path[14:-5], scope, receive, send)
        return await self._rest(scope, receive, send)

    async def _hot(self, endpoint: Endpoint, campaign: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await send_problem(send, problem("method_not_allowed"), b"1", ALLOW)
        return await self._guarded(endpoint, campaign, scope, receive, send)

    async def _guarded(self, endpoint: Endpoint, campaign: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            return await endpoint(scope, receive, send, campaign)
        except Exception:
            failed()
            return await send_problem(send, problem("internal"), b"1")


def rest(routes: list[Route], retry_after_s: int) -> Starlette:
    """Everything but the hot path, its errors as problem+json."""

    async def on_http(request: Request, exc: Exception) -> Response:
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        found = problem_response(problem(_STATUS_CODES.get(status, "internal")), retry_after_s)
        if isinstance(exc, HTTPException) and exc.headers:
            found.headers.update(exc.headers)
        return found

    async def on_error(request: Request, exc: Exception) -> Response:
        return problem_response(problem("internal"), retry_after_s)

    found = Starlette(routes=routes, exception_handlers={HTTPException: on_http, Exception: on_error})
    found.router.redirect_slashes = False  # a path that is not served is 404, not a link made from the Host header
    return found
