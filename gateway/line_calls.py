"""The calls beside the line: tickets by a channel's server, challenges for guests, the room for operators."""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.desk.room import RoomDesk
from core.errors import Fault, Invalid, Refused
from core.model import BuyerId, DeviceId
from core.settings import Settings
from core.tickets import Ticket, Tickets
from gateway.access import Access
from gateway.admin import checked_name, json_response, problem_response
from gateway.admission import TicketWrong
from gateway.body import Gone, decode, read_body
from gateway.callers import caller_of
from gateway.catalogue import Catalogue
from gateway.line import BODY_BYTES, GuestKey, Line
from gateway.line_proof import guest_name
from gateway.line_view import When
from gateway.problems import fault, problem
from gateway.replies import time_text


class TicketRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `…/tickets`: whom the ticket is for. With a device it is for orders from that device only."""

    buyer_id: BuyerId
    device_id: DeviceId | None = None


class TicketView(msgspec.Struct, frozen=True):
    """An admission ticket, for `Authorization: Bearer …`."""

    ticket: str
    expires_at: When


class ChallengeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `…/line/challenge`: the key that the guest's browser drew, and will join with."""

    guest_key: GuestKey


class ChallengeView(msgspec.Struct, frozen=True):
    """What a guest must bring. Solved by a text whose SHA-256 behind `challenge.` begins with `bits` zeros."""

    buyer_id: str  # the guest's name
    challenge: str  # "" = no proof of work is wanted
    bits: int
    captcha: bool  # a captcha's answer is wanted too
    expires_at: When


class RoomChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `PUT …/room`: `fixed` admits `rate` buyers a second, 0 = nobody; `auto` finds its rate by itself."""

    mode: Literal["auto", "fixed"]
    rate: Annotated[int, Meta(ge=0, le=100_000)] | None = None

    def __post_init__(self) -> None:
        if (self.mode == "fixed") != (self.rate is not None):
            raise ValueError("rate goes with fixed, and with nothing else")


decode_ticket = msgspec.json.Decoder(TicketRequest).decode
decode_challenge = msgspec.json.Decoder(ChallengeRequest).decode
decode_change = msgspec.json.Decoder(RoomChange).decode

Action = Callable[[Request, str], Awaitable[Any]]


class LineCalls:
    """The routes of admission that are not the line itself."""

    def __init__(self, settings: Settings, access: Access, catalogue: Catalogue, line: Line, desk: RoomDesk) -> None:
        self._access = access
        self._catalogue = catalogue
        self._line = line
        self._desk = desk
        self._tickets = Tickets(settings.ticket_secrets)
        self._ttl_ms = settings.ticket_ttl_s * 1000
        self._retry_after_s = settings.retry_after_s

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            self._route("/v1/campaigns/{campaign}/tickets", POST=self.ticket),
            self._route("/v1/campaigns/{campaign}/line/challenge", POST=self.challenge),
            self._route("/v1/admin/campaigns/{campaign}/room", operator=True, GET=self.show, PUT=self.change),
        ]

    def _route(self, path: str, *, operator: bool = False, **actions: Action) -> Route:
        async def endpoint(request: Request) -> Response:
            authorization = request.headers.get("authorization", "").encode("latin-1")
            if operator and not self._access.is_admin(authorization):
                known = self._access.caller(authorization) is not None
                return problem_response(problem("operators_only" if known else "unauthorized"), self._retry_after_s)
            action = actions.get(request.method) or actions["GET"]  # the router lets HEAD through where there is a GET
            try:
                answer = json_response(await action(request, checked_name(request.path_params["campaign"])))
            except Fault as exc:
                return problem_response(fault(exc), self._retry_after_s)
            except Gone:
                return Response()  # to nobody
            answer.headers["cache-control"] = "no-store"
            return answer

        return Route(path, endpoint, methods=list(actions))

    async def ticket(self, request: Request, campaign: str) -> TicketView:
        """A ticket for a buyer that the channel knows."""
        caller, request = await caller_of(self._access, request)
        if caller.ticket is not None:
            raise TicketWrong("tickets are issued to channels")
        asked = decode(decode_ticket, await read_body(request.receive, BODY_BYTES))
        self._access.still(caller)
        sale = await self._catalogue.get(campaign)
        if not self._tickets:
            raise Refused("this deployment issues no tickets: RUSHGATE_TICKET_SECRETS is not set")
        if sale.gate == "room" and caller.channel not in sale.trusted:
            raise Refused(f"campaign {campaign} has a waiting room, which issues its tickets: join its line")
        self._line.allow(sale, caller, asked.buyer_id, None)
        expires_ms = int(time.time() * 1000) + self._ttl_ms
        # Of a trusted channel it is worth one of the waiting room.
        room = caller.channel in sale.trusted
        made = Ticket(caller.channel, campaign, asked.buyer_id, asked.device_id or "", expires_ms, room)
        return TicketView(self._tickets.issue(made), time_text(expires_ms))

    async def challenge(self, request: Request, campaign: str) -> ChallengeView:
        """What a guest must bring to join."""
        asked = decode(decode_challenge, await read_body(request.receive, BODY_BYTES))
        sale = await self._line.sale(campaign)
        spec = sale.spec.room
        if spec.channel is None:
            raise Invalid("guests cannot join this line: buyers join through their channel", "guest_key")
        name = guest_name(asked.guest_key)
        text, expires_ms = self._line.proofs.challenge(campaign, name, spec.pow_bits, int(time.time() * 1000))
        return ChallengeView(name, text if spec.pow_bits else "", spec.pow_bits, spec.captcha, time_text(expires_ms))

    async def show(self, request: Request, campaign: str) -> Any:
        return await self._desk.show(campaign)

    async def change(self, request: Request, campaign: str) -> Any:
        wanted = decode(decode_change, await read_body(request.receive, BODY_BYTES))
        return await self._desk.set_rate(campaign, wanted.mode, None if wanted.rate is None else float(wanted.rate))
