"""The admin calls: campaigns and the audit. Not on the hot path; behind the admin token."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.desk.audit import Auditor
from core.desk.campaigns import Campaign, CampaignDesk
from core.errors import Fault, Invalid
from core.model import CampaignName, CampaignSpec, Restock, explain
from gateway.access import Access
from gateway.body import Gone, decode, read_body
from gateway.catalogue import Catalogue
from gateway.problems import Problem, fault, problem
from gateway.replies import encode_json

ADMIN_BODY = 1_048_576  # bytes

decode_spec = msgspec.json.Decoder(CampaignSpec).decode
decode_restock = msgspec.json.Decoder(Restock).decode

Action = Callable[[Request, str], Awaitable[Any]]


def json_response(value: Any, status: int = 200) -> Response:
    """A value as JSON, its times as everywhere."""
    return Response(encode_json(value), status, media_type="application/json")


def problem_response(found: Problem, retry_after: int) -> Response:
    """A problem as problem+json; a 503 says when to come again."""
    headers = {}
    if found.status == 503:
        headers["retry-after"] = str(retry_after)
    elif found.status == 401:
        headers["www-authenticate"] = 'Bearer realm="rushgate"'
    return Response(msgspec.json.encode(found), found.status, headers, media_type="application/problem+json")


def checked_name(text: str) -> str:
    """The campaign name of a path. Raises Invalid."""
    try:
        return msgspec.convert(text, CampaignName)
    except msgspec.ValidationError as exc:
        raise Invalid(explain(exc)[1], "campaign") from exc


class Admin:
    """The routes under /v1/admin."""

    def __init__(
        self, access: Access, desk: CampaignDesk, auditor: Auditor, catalogue: Catalogue, retry_after_s: int
    ) -> None:
        self._access = access
        self._desk = desk
        self._auditor = auditor
        self._catalogue = catalogue
        self._retry_after_s = retry_after_s

    def routes(self) -> list[Route]:
        """All of them, each behind the token."""
        base = "/v1/admin/campaigns/{campaign}"
        return [
            self._route(base, PUT=self.put, GET=self.show),
            self._route(base + "/open", POST=self.open),
            self._route(base + "/pause", POST=self.pause),
            self._route(base + "/close", POST=self.close),
            self._route(base + "/restock", POST=self.restock),
            self._route(base + "/audit", GET=self.audit),
        ]

    def _route(self, path: str, **actions: Action) -> Route:
        """All methods of a path in one route, so that a 405 names them all."""

        async def endpoint(request: Request) -> Response:
            authorization = request.headers.get("authorization", "").encode("latin-1")
            if not self._access.is_admin(authorization):
                known = self._access.caller(authorization) is not None
                return problem_response(problem("operators_only" if known else "unauthorized"), self._retry_after_s)
            action = actions.get(request.method) or actions["GET"]  # the router lets HEAD through where there is a GET
            try:
                return json_response(await action(request, checked_name(request.path_params["campaign"])))
            except Fault as exc:
                return problem_response(fault(exc), self._retry_after_s)
            except Gone:
                return Response()  # to nobody

        return Route(path, endpoint, methods=list(actions))

    async def put(self, request: Request, campaign: str) -> Campaign:
        body = await read_body(request.receive, ADMIN_BODY)
        return self._told(await self._desk.put(campaign, decode(decode_spec, body)))

    async def show(self, request: Request, campaign: str) -> Campaign:
        return await self._desk.show(campaign)

    async def open(self, request: Request, campaign: str) -> Campaign:
        return self._told(await self._desk.open(campaign))

    async def pause(self, request: Request, campaign: str) -> Campaign:
        return self._told(await self._desk.pause(campaign))

    async def close(self, request: Request, campaign: str) -> Campaign:
        return self._told(await self._desk.close(campaign))

    async def restock(self, request: Request, campaign: str) -> Any:
        body = await read_body(request.receive, ADMIN_BODY)
        return await self._desk.restock(campaign, decode(decode_restock, body))

    async def audit(self, request: Request, campaign: str) -> Any:
        return await self._auditor.audit(campaign)

    def _told(self, campaign: Campaign) -> Campaign:
        self._catalogue.forget(campaign.campaign)
        return campaign
