"""The calls beside the hot path: a campaign as channels see it, health, problems, the API."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import Fault, Recovering, StoreUnavailable
from core.metrics import CONTENT_TYPE
from core.model import Discount, Limits
from gateway.access import Access
from gateway.admin import json_response, problem_response
from gateway.body import Gone
from gateway.callers import caller_of
from gateway.catalogue import Catalogue
from gateway.problems import CODES, fault, problem
from lua.connection import SharedConnection
from lua.durability import Level, judge, questions
from lua.keys import intake_key
from lua.life import look
from lua.scripts import Scripts


class SkuView(msgspec.Struct, frozen=True):
    """A SKU as channels see it; price in minor units."""

    sku: str
    name: str
    price: int


class CampaignView(msgspec.Struct, frozen=True):
    """A campaign as channels see it. `now` is the store's clock, which judges the window."""

    campaign: str
    state: str
    now: datetime
    opens_at: datetime
    closes_at: datetime
    currency: str
    pay_within_s: int
    limits: Limits
    discounts: list[Discount]  # of those that an order reaches, the one that takes most off counts
    skus: list[SkuView]


class Views:
    """The routes that are neither the hot path nor admin's."""

    def __init__(
        self, access: Access, catalogue: Catalogue, store: SharedConnection,
        level: Level, retry_after_s: int, openapi: bytes, exposition: Callable[[], bytes] | None = None,
    ) -> None:  # fmt: skip
        """`exposition`: of this process's metrics; None: it has none."""
        self._access = access
        self._catalogue = catalogue
        self._store = store
        self._scripts = Scripts(store)
        self._level = level
        self._retry_after_s = retry_after_s
        self.stopping = False
        self._openapi = openapi
        self._exposition = exposition

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/campaigns/{campaign}", self.campaign, methods=["GET"]),
            Route("/livez", self.livez, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/problems/{code}", self.problem, methods=["GET"]),
        ]

    def _problem(self, code: str, detail: str = "") -> Response:
        return problem_response(problem(code, detail), self._retry_after_s)

    async def campaign(self, request: Request) -> Response:
        """What a shop needs to know: when it opens, what is sold, what it costs."""
        try:
            await caller_of(self._access, request)
            sale = await self._catalogue.get(request.path_params["campaign"])
            [reading] = await self._scripts.audit(sale.keys[:1])
            # Another process has changed it, or the store lost it: then this says why.
            if (reading.meta.get("epoch"), reading.meta.get("version")) != (str(sale.epoch), str(sale.version)):
                sale = await self._catalogue.reload(sale.campaign)
                [reading] = await self._scripts.audit(sale.keys[:1])
        except Fault as exc:
            return problem_response(fault(exc), self._retry_after_s)
        except Gone:
            return Response()  # to nobody
        if "opens_ms" not in reading.meta:
            return self._problem("campaign_lost")
        spec = sale.spec
        return json_response(
            CampaignView(
                campaign=sale.campaign,
                state=reading.meta["state"],
                now=datetime.fromtimestamp(reading.now_ms / 1000, UTC),
                opens_at=datetime.fromtimestamp(int(reading.meta["opens_ms"]) / 1000, UTC),
                closes_at=datetime.fromtimestamp(int(reading.meta["closes_ms"]) / 1000, UTC),
                currency=spec.currency,
                pay_within_s=int(reading.meta["pay_within_ms"]) // 1000,
                limits=spec.limits,
                discounts=spec.discounts,
                skus=[SkuView(s.sku, s.name, s.price) for s in spec.skus],
            )
        )

    async def livez(self, request: Request) -> Response:
        """The process answers."""
        return json_response({"live": True, "now": datetime.fromtimestamp(time.time(), UTC)})

    async def readyz(self, request: Request) -> Response:
        """Orders are taken: not stopping, and the store is there and set as promised."""
        if self.stopping:
            return json_response({"ready": False, "why": "the gateway stops"}, 503)
        try:
            await self._ask_store()
        except StoreUnavailable as exc:
            return json_response({"ready": False, "code": exc.code, "why": exc.detail}, 503)
        return json_response({"ready": True, "durability": self._level.durability})

    async def _ask_store(self) -> None:
        """The store is a primary that serves, set as promised. Raises StoreUnavailable, StoreNotAsPromised."""
        # An open connection was judged when it was made. PING fails while a store loads, CONFIG and ROLE do not.
        found, role, alive = await self._store.exchange([*questions(self._level), ("PING",)])
        if isinstance(alive, RedisError):
            raise StoreUnavailable(f"the store answers {type(alive).__name__}: {alive}")
        problem = judge(self._level, found, role)
        if problem is not None:
            raise problem
        await self._store.confirm(intake_key(0))  # a replica that stands still is connected for a long while
        if not (await look(self._store)).admitted:
            raise Recovering("the store was started anew, and is judged before orders are taken on it")

    async def metrics(self, request: Request) -> Response:
        """The metrics of this very process, for operators."""
        authorization = request.headers.get("authorization", "").encode("latin-1")
        if not self._access.is_admin(authorization):
            known = self._access.caller(authorization) is not None
            return self._problem("operators_only" if known else "unauthorized")
        if self._exposition is None:
            return self._problem("not_found", "this process has no metrics: RUSHGATE_METRICS_LISTEN is empty")
        return Response(self._exposition(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """The description of all that is served."""
        return Response(self._openapi, media_type="application/json")

    async def problem(self, request: Request) -> Response:
        """What a code means."""
        code = request.path_params["code"]
        if code not in CODES:
            return self._problem("not_found")
        status, title = CODES[code]
        return json_response({"code": code, "status": status, "title": title})
