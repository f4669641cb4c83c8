"""/v1/campaigns/{campaign}/line: joining a waiting room, and asking how a place stands. Bare ASGI, told from memory.

A crowd asks here, so nothing is done for it that is not needed: a place is signed, the room is in memory, and the store
hears of those who join only, in batches.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from core.desk.room import RoomDesk
from core.errors import Fault, Invalid, Overloaded, RateLimited, Refused
from core.model import BuyerId, DeviceId, Visible
from core.settings import Settings
from core.tickets import Ticket, Tickets
from gateway.access import Access, Caller, Unauthorized
from gateway.admission import TicketWrong, forwarded_of
from gateway.body import Gone, decode, read_body
from gateway.catalogue import Catalogue, Sale
from gateway.line_captcha import Captcha
from gateway.line_places import Place, Places, digest
from gateway.line_proof import MAX_CHALLENGE, MAX_SOLUTION, Proofs, guest_name
from gateway.line_room import LiveRoom
from gateway.line_view import LineView, place_of, show, state_of
from gateway.peer import Peers
from gateway.prepare import ChannelNotAllowed
from gateway.problems import fault, problem
from gateway.rates import Limiter
from gateway.replies import JSON, send_problem, time_text, unread
from lua.connection import SharedConnection
from lua.room import Joining, Phase

BODY_BYTES = 8_192
MAX_WAIT_S = 25.0
ASKED_PER_S = 500.0  # questions that a process wants to answer: a tenth or so of its time; the rest is for orders
CROWD_MOST = 10.0
# When more come, each waits a little first: who asks again and again on one connection asks less often, at no cost.
HELD_S, HELD_MOST_S = 0.2, 1.0  # for each time that there are too many; and at most
MAX_WAITING = 20_000  # questions of this process that wait for a change; beyond it they are answered at once
SIGNATURES = (b"rushgate-key", b"rushgate-signature")
ALLOW = [(b"allow", b"GET, POST")]
NO_STORE = (b"cache-control", b"no-store")

GuestKey = Annotated[str, Meta(min_length=16, max_length=64, pattern=Visible)]


class Closed(Refused):
    """The campaign takes no orders any more."""

    code = "closed"


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST …/line`. A channel names its buyer; a guest sends a key, which their browser drew and keeps, and
    the proofs that the campaign wants."""

    buyer_id: BuyerId | None = None
    device_id: DeviceId | None = None
    guest_key: GuestKey | None = None
    challenge: Annotated[str, Meta(max_length=MAX_CHALLENGE, pattern=Visible)] = ""
    solution: Annotated[str, Meta(max_length=MAX_SOLUTION, pattern=Visible)] = ""
    captcha: Annotated[str, Meta(max_length=4_096, pattern=Visible)] = ""


decode_join = msgspec.json.Decoder(JoinRequest).decode
encode = msgspec.json.Encoder().encode


class Line:
    """All waiting rooms of a gateway process."""

    def __init__(
        self, settings: Settings, access: Access, catalogue: Catalogue, desk: RoomDesk, store: SharedConnection,
        limiter: Limiter, pressed: Callable[[], bool], stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`store`: a connection of the rooms' own. `pressed`: whether more waits behind this gateway than should;
        `stopping`: whether it stops; then nobody is kept waiting."""
        self.proofs = Proofs(settings.ticket_secrets)
        self._access = access
        self._catalogue = catalogue
        self._desk = desk
        self._store = store
        self._limiter = limiter
        self._pressed = pressed
        self._stopping = stopping
        self._ttl_s = settings.ticket_ttl_s
        self._tickets = Tickets(settings.ticket_secrets)
        self._places = Places(settings.ticket_secrets)
        self._captcha = Captcha(settings.captcha_url, settings.captcha_secret, settings.captcha_timeout_s)
        self._peers = Peers(settings.trusted_proxies)
        self._retry_after = b"%d" % settings.retry_after_s
        self.rooms: dict[str, LiveRoom] = {}  # by campaign
        self._asked, self._asked_since_s, self._crowd = 0, time.monotonic(), 1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send, campaign: str) -> None:
        """One answer is sent, unless the client has gone."""
        try:
            if self._crowd > 1.0:
                await asyncio.sleep(min(HELD_MOST_S, HELD_S * (self._crowd - 1.0)))
            if scope["method"] == "POST":
                view = await self._join(scope, receive, campaign)
            elif scope["method"] in ("GET", "HEAD"):
                view = await self._ask(scope, campaign)
            else:
                return await send_problem(send, problem("method_not_allowed"), self._retry_after, ALLOW)
        except Overloaded as exc:
            retry_after = b"%d" % exc.retry_after_s if exc.retry_after_s else self._retry_after
            return await send_problem(send, fault(exc), retry_after, unread(scope))
        except RateLimited as exc:
            retry_after = b"%d" % exc.retry_after_s
            return await send_problem(send, fault(exc), retry_after, [*unread(scope), *exc.headers])
        except Fault as exc:
            return await send_problem(send, fault(exc), self._retry_after, unread(scope))
        except Gone:
            return None
        body = encode(view)
        headers = [JSON, NO_STORE, (b"content-length", b"%d" % len(body))]
        if view.poll_after_ms is not None:
            headers.append((b"retry-after", b"%d" % -(-view.poll_after_ms // 1000)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        return await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def stop(self) -> None:
        """No task of any room runs."""
        for room in self.rooms.values():
            await room.stop()

    async def _join(self, scope: Scope, receive: Receive, campaign: str) -> LineView:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        authorization = next((value for name, value in headers if name == b"authorization"), b"")
        known = bool(authorization) or any(name in SIGNATURES for name, _ in headers)
        who = self._access.identify(authorization, scope) if known else None
        body = await read_body(receive, BODY_BYTES)
        if who is not None and not isinstance(who, Caller):
            who = who.proved(body)
        if who is not None and who.ticket is not None:
            raise TicketWrong("a buyer with a ticket is admitted already")
        sale = await self.sale(campaign)
        asked = decode(decode_join, body)
        if who is None:
            buyer_id, channel = await self._guest(scope, sale, asked)
        else:
            if asked.buyer_id is None:
                raise Invalid("a channel says whom it joins for", "buyer_id")
            if asked.guest_key is not None:
                raise Invalid("is for guests, who have no channel's key", "guest_key")
            buyer_id, channel = asked.buyer_id, who.channel
            self.allow(sale, who, buyer_id, None)
            await self._limiter.join(sale, channel, buyer_id, "", asked.device_id or "")
        room = self._room(sale)
        if (await room.ready()).phase is Phase.CLOSED:
            raise Closed(f"campaign {campaign} is closed")
        number = await room.join(Joining(digest(buyer_id)))
        if state_of(await room.ready(), room.stock, number) == "lapsed":
            number = await room.join(Joining(digest(buyer_id), number))
        assert room.kept is not None  # noqa: S101 - it has given a number
        place = Place(campaign, room.kept.room_id, channel, buyer_id, asked.device_id or "", number)
        view = self._view(room, place)
        return msgspec.structs.replace(view, line=self._places.issue(place), buyer_id=buyer_id)

    async def _ask(self, scope: Scope, campaign: str) -> LineView:
        wait_s = wait_of(scope["query_string"])
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        place = self._places.read(authorization)
        if place is None or place.campaign != campaign:
            raise Unauthorized("send the signed place of this campaign's line")
        room = self._room(await self.sale(campaign))
        now = await room.ready()
        if room.kept is not None and room.kept.room_id != place.room_id:
            raise Unauthorized("the place is of a room that is no more: join the line again")
        state = state_of(now, room.stock, place.number)
        if wait_s and state in ("before", "waiting") and sum(r.waiting for r in self.rooms.values()) < MAX_WAITING:
            until_s = time.monotonic() + wait_s
            while not self._stopping() and (rest_s := until_s - time.monotonic()) > 0:
                await room.change(place.number, rest_s)
                if state_of(room.standing or now, room.stock, place.number) != state:
                    break
        return self._view(room, place)

    async def sale(self, campaign: str) -> Sale:
        """A campaign that has a waiting room. Raises: as Catalogue.get; Refused."""
        sale = self._catalogue.sales.get(campaign) or await self._catalogue.get(campaign)
        if sale.gate != "room":
            raise Refused(f'campaign {campaign} has no waiting room: its admission is "{sale.spec.admission}"')
        if not self._tickets:
            raise Refused("this deployment has no waiting rooms: RUSHGATE_TICKET_SECRETS is not set")
        return sale

    def allow(self, sale: Sale, caller: Caller, buyer_id: str, client_ip: str | None) -> None:
        """The caller may bring this buyer to the campaign. Raises: as Access.check; ChannelNotAllowed."""
        if self._access.guards:
            self._access.check(caller, sale.campaign, buyer_id, client_ip)
        if sale.channels is not None and caller.channel not in sale.channels:
            raise ChannelNotAllowed(f"campaign {sale.campaign} is not for channel {caller.channel}")

    async def _guest(self, scope: Scope, sale: Sale, asked: JoinRequest) -> tuple[str, str]:
        """Name and channel of a guest who has brought the proofs that the campaign wants."""
        spec = sale.spec.room
        if spec.channel is None:
            raise Unauthorized("buyers join this line through their channel")
        if asked.guest_key is None or asked.buyer_id is not None:
            raise Invalid("a guest sends guest_key, and no buyer_id", "guest_key")
        buyer_id = guest_name(asked.guest_key)
        peer = scope["client"][0] if scope.get("client") else ""
        address = self._peers.of(peer, forwarded_of(scope["headers"]))
        self.allow(sale, Caller(spec.channel), buyer_id, address)
        await self._limiter.join(sale, spec.channel, buyer_id, address, asked.device_id or "")
        if spec.pow_bits:
            self.proofs.judge(sale.campaign, buyer_id, asked.challenge, asked.solution, int(time.time() * 1000))
        if spec.captcha:
            await self._captcha.judge(asked.captcha, address)
        return buyer_id, spec.channel

    def _room(self, sale: Sale) -> LiveRoom:
        room = self.rooms.get(sale.campaign)
        if room is None:
            for name in [name for name, one in self.rooms.items() if one.idle]:
                del self.rooms[name]  # its task has ended, or ends with its next look
            room = self.rooms[sale.campaign] = LiveRoom(
                sale, self._store, self._desk, self._ttl_s, self._pressed, self._stopping
            )
        room.sale = sale
        if room.standing is not None:
            self._catalogue.note_version(sale, room.standing.version)
        return room

    def _crowding(self) -> float:
        """How many times too many questions come a second; 1.0 = not too many. Those who ask are told to ask later."""
        now_s = time.monotonic()
        self._asked += 1
        passed_s = now_s - self._asked_since_s
        if passed_s >= 1.0:
            times = max(1.0, self._asked / passed_s / ASKED_PER_S)
            self._crowd = min(CROWD_MOST, max(times, (self._crowd + times) / 2 if self._crowd > 1.1 else 1.0))
            self._asked, self._asked_since_s = 0, now_s
        return self._crowd

    def _view(self, room: LiveRoom, place: Place) -> LineView:
        """How the place stands; with its ticket if it is admitted."""
        now = room.standing
        assert now is not None  # noqa: S101 - ready before
        view = show(now, room.stock, room.pace, place.number, self._crowding())
        if view.state != "admitted":
            return view
        # In our clock, which judges tickets; the store's has said when it ends.
        expires_ms = int(time.time() * 1000) + now.until_ms(place_of(now, place.number) or 0) - now.now_ms
        ticket = Ticket(place.channel, place.campaign, place.buyer_id, place.device_id, expires_ms, True)
        return msgspec.structs.replace(
            view, ticket=self._tickets.issue(ticket), ticket_expires_at=time_text(expires_ms), buyer_id=place.buyer_id
        )


def wait_of(query: bytes) -> float:
    """How long a question may wait for a change, seconds. Raises Invalid."""
    if not query:
        return 0.0
    text = parse_qs(query.decode("latin-1")).get("wait", ["0"])[0]
    try:
        wait_s = float(text)
    except ValueError:
        raise Invalid("must be a number of seconds", "wait") from None
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise Invalid(f"must be 0 to {MAX_WAIT_S:g} seconds", "wait")
    return wait_s
