"""What stands before every call of the console: session, origin, CSRF token, bounded bodies; and its headers."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import Fault
from gateway.admin import json_response, problem_response
from gateway.body import Gone, read_body
from gateway.problems import Problem, fault
from ops.console.sessions import Guesses, Session, Sessions

logger = logging.getLogger("rushgate.console")

BODY_BYTES = 262_144
RETRY_AFTER_S = 1
CSRF_HEADER = "x-rushgate-csrf"
HEADERS = {
    # Nothing but what this very process serves; no script within a page, and no style but an empty one (the hash is
    # that of nothing): plotly makes it, and fills it with rules by script, which needs no leave.
    "content-security-policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; img-src 'self' data: blob:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

Endpoint = Callable[[Request, Session], Awaitable[Any]]


class Refusal(Fault):
    """A call that is refused before anybody looks at what it asks for."""

    def __init__(self, status: int, code: str, why: str) -> None:
        super().__init__(why)
        self.problem = Problem(f"/problems/{code}", why, status, code)


class Headers:
    """Puts HEADERS on every answer; what says nothing of caching is not kept by anybody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def answer_of(exc: Fault) -> Response:
    """The problem that a fault answers with."""
    return problem_response(exc.problem if isinstance(exc, Refusal) else fault(exc), RETRY_AFTER_S)


def same_origin(request: Request) -> bool:
    """Whether the page that sends this is ours, as far as the browser says: other pages cannot forge these headers."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host", "")


class Guard:
    """Makes routes out of endpoints: only for who is logged in, and actions only from our own page."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.guesses = Guesses()

    def session(self, request: Request) -> Session | None:
        """The session of a request, if it has one."""
        return self.sessions.read(request.cookies.get(self.sessions.cookie, ""))

    def get(self, path: str, endpoint: Endpoint) -> Route:
        """A question."""
        return Route(path, self._guarded(endpoint, action=False), methods=["GET"])

    def post(self, path: str, endpoint: Endpoint) -> Route:
        """An action."""
        return Route(path, self._guarded(endpoint, action=True), methods=["POST"])

    def _guarded(self, endpoint: Endpoint, action: bool) -> Callable[[Request], Awaitable[Response]]:
        async def call(request: Request) -> Response:
            return await self.answered(request, lambda: self._work(request, endpoint, action))

        return call

    async def _work(self, request: Request, endpoint: Endpoint, action: bool) -> Any:
        session = self.session(request)
        if session is None:
            raise Refusal(401, "unauthorized", "Log in: there is no session, or it is over")
        if action:
            if not same_origin(request):
                raise Refusal(403, "other_origin", "Actions are taken from the console's own page only")
            if not self.sessions.is_csrf(session, request.headers.get(CSRF_HEADER, "")):
                raise Refusal(403, "csrf", "The page's token is missing or of another session: load the page again")
        return await endpoint(request, session)

    async def answered(self, request: Request, work: Callable[[], Awaitable[Any]]) -> Response:
        """What the work gives, as JSON; what goes wrong, as its problem."""
        try:
            value = await work()
        except Fault as exc:
            return answer_of(exc)
        except Gone:
            return Response()  # to nobody
        except Exception:
            logger.exception("a call of the console failed", extra={"path": request.url.path})
            return answer_of(Refusal(500, "internal", "An error of ours; the console's log has it"))
        return value if isinstance(value, Response) else json_response(value)


async def body_of(request: Request) -> bytes:
    """The body of a call; JSON by its name, which no form of another page can send unasked. Raises Refusal, Fault."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal(415, "not_json", "The body must be application/json")
    return await read_body(request.receive, BODY_BYTES)
