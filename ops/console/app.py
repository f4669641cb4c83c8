"""The console's web application: who gets in, what is served, and where."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from core.settings import Settings
from gateway.admin import json_response
from gateway.body import decode
from ops.console.access import AccessLists
from ops.console.campaigns import Campaigns
from ops.console.gathered import Gathered
from ops.console.guard import Guard, Headers, Refusal, answer_of, body_of, same_origin
from ops.console.live import PAGES_MAX, Live, TooManyPages
from ops.console.orders import Orders
from ops.console.outbox import Outbox
from ops.console.search import Search
from ops.console.sessions import Session
from ops.console.static_files import Files
from ops.console.workers import Workers

BASE = "/console"
API = BASE + "/api"


class Login(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a login."""

    token: Annotated[str, Meta(max_length=512)]


decode_login = msgspec.json.Decoder(Login).decode


class Console:
    """The calls that are about the session and the live feed; the others' are added."""

    def __init__(self, settings: Settings, guard: Guard, live: Live, gathered: Gathered, files: Files) -> None:
        self._settings = settings
        self._guard = guard
        self._live = live
        self._gathered = gathered
        self._files = files

    def routes(self) -> list[BaseRoute]:
        """All but what is asked of campaigns, orders, messages and workers."""
        return [
            Route("/", _to_page),
            Route(BASE, _to_page),
            Route(BASE + "/", self._files.index),
            Route(BASE + "/static/{mark}/{name}", self._files.static),
            Route("/livez", _living),
            Route("/readyz", self.ready),
            Route("/metrics", self.metrics),
            Route(API + "/login", self.login, methods=["POST"]),
            self._guard.post(API + "/logout", self.logout),
            Route(API + "/session", self.session),
            Route(API + "/live", self.feed),
        ]

    async def login(self, request: Request) -> Response:
        """The admin token for a session."""
        return await self._guard.answered(request, lambda: self._login(request))

    async def _login(self, request: Request) -> Response:
        guard, address = self._guard, request.client.host if request.client else ""
        if not same_origin(request):
            raise Refusal(403, "other_origin", "A login is taken from the console's own page only")
        if wait_s := guard.guesses.wait_s(address):
            refused = answer_of(Refusal(429, "rate_limited", "Too many wrong tokens: wait a minute"))
            refused.headers["retry-after"] = str(int(wait_s) + 1)
            return refused
        given = decode(decode_login, await body_of(request))
        if not guard.sessions.is_token(given.token):
            guard.guesses.wrong(address)
            raise Refusal(401, "unauthorized", "That is not the admin token")
        session, cookie = guard.sessions.open()
        answer = json_response(self._session(session))
        answer.set_cookie(
            guard.sessions.cookie, cookie, max_age=guard.sessions.lasts_s, path=BASE, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    async def logout(self, request: Request, session: Session) -> Response:
        """The session is over, in this browser and wherever its cookie may be."""
        self._guard.sessions.end(session)
        answer = Response(status_code=204)
        answer.delete_cookie(self._guard.sessions.cookie, path=BASE, httponly=True, samesite="strict")
        return answer

    async def session(self, request: Request) -> Response:
        """What a page needs before its first action; 204: nobody is logged in, which is no fault."""
        session = self._guard.session(request)
        return Response(status_code=204) if session is None else json_response(self._session(session))

    def _session(self, session: Session) -> dict[str, Any]:
        return {
            "csrf": self._guard.sessions.csrf(session), "expires_s": session.expires_s,
            "shards": self._settings.shards, "durability": self._settings.durability,
        }  # fmt: skip

    async def feed(self, request: Request) -> Response:
        """Server-sent events until the session is over."""
        session = self._guard.session(request)
        if session is None:
            return answer_of(Refusal(401, "unauthorized", "Log in: there is no session, or it is over"))
        until_s = asyncio.get_running_loop().time() + session.expires_s - time.time()
        events = self._live.feed(until_s)
        try:
            first = await anext(events)
        except TooManyPages:
            refused = answer_of(Refusal(503, "overloaded", f"{PAGES_MAX} pages are open: close some"))
            refused.headers["retry-after"] = "5"
            return refused
        except StopAsyncIteration:
            return Response(status_code=204)  # it stops: an EventSource does not come again

        async def all_of_them() -> AsyncIterator[bytes]:
            try:
                yield first
                async for event in events:
                    yield event
            finally:
                await events.aclose()

        return StreamingResponse(all_of_them(), media_type="text/event-stream")

    async def ready(self, request: Request) -> Response:
        """Whether a page can be shown: always, as what is away is told on it."""
        return PlainTextResponse("ready\n")

    async def metrics(self, request: Request) -> Response:
        """The metrics of all processes in one: for a scraper on this machine, elsewhere with the admin token."""
        if not self._may_scrape(request):
            refused = answer_of(
                Refusal(401, "unauthorized", "Beyond this machine: Authorization: Bearer <admin token>")
            )
            refused.headers["www-authenticate"] = 'Bearer realm="rushgate"'
            return refused
        return await self._gathered.response()

    def _may_scrape(self, request: Request) -> bool:
        address = request.client.host if request.client else ""
        forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip"))
        if address in ("127.0.0.1", "::1") and not forwarded:
            return True
        if self._guard.guesses.wait_s(address):
            return False
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and self._guard.sessions.is_token(token)
        if not right and token:
            self._guard.guesses.wrong(address)
        return right


def application(
    console: Console, campaigns: Campaigns, outbox: Outbox, search: Search, orders: Orders, workers: Workers,
    access: AccessLists,
) -> ASGIApp:  # fmt: skip
    """The whole application."""
    routes = console.routes()
    for part in (campaigns, outbox, search, orders, workers, access):
        routes += part.routes(API)
    found = Starlette(routes=routes)
    found.router.redirect_slashes = False
    return Headers(found)


async def _to_page(request: Request) -> Response:
    return RedirectResponse(BASE + "/", 307)


async def _living(request: Request) -> Response:
    return PlainTextResponse("alive\n")
