"""Campaigns on the page: what they are, their stock shard by shard, and an operator's buttons."""

import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from core.desk.campaigns import Campaign
from core.desk.room import RoomDesk, RoomView
from core.errors import Fault, Invalid, LedgerUnavailable, Refused, StoreUnavailable
from core.model import CampaignSpec, Restock
from gateway.admin import checked_name
from gateway.body import decode
from gateway.line_calls import decode_change
from ops.console.books import Books, Listed
from ops.console.guard import Guard, body_of
from ops.console.live import Live
from ops.console.picture import campaign, shards, text_of_time
from ops.console.sessions import Session
from ops.desk import Desk

decode_spec = msgspec.json.Decoder(CampaignSpec).decode
decode_restock = msgspec.json.Decoder(Restock).decode
VERSION = re.compile(r"[0-9]{1,9}").fullmatch
AUDITS_MAX = 2  # at once: an audit reads all that waits in the intake


class Campaigns:
    """The calls under `campaigns`."""

    def __init__(self, guard: Guard, desk: Desk, books: Books, live: Live, rooms: RoomDesk) -> None:
        self._guard = guard
        self._desk = desk
        self._books = books
        self._live = live
        self._rooms = rooms
        self._audits = 0

    def routes(self, base: str) -> list[BaseRoute]:
        """All of them."""
        one = base + "/campaigns/{campaign}"
        turns = {"open": self._desk.campaigns.open, "pause": self._pause, "close": self._close}
        return [
            self._guard.get(one, self.show),
            self._guard.post(one, self.put),
            self._guard.get(one + "/audit", self.audit),
            self._guard.post(one + "/restock", self.restock),
            self._guard.post(one + "/room", self.admit),
            *(self._guard.post(f"{one}/{name}", self._turned(turn)) for name, turn in turns.items()),
        ]

    async def show(self, request: Request, session: Session) -> dict[str, Any]:
        """All of one campaign; while the store is away its units are those that were seen last, if any were."""
        one = await self._listed(_name(request))
        found: dict[str, Any] = {}
        try:
            readings = await self._books.readings(one) if one.state != "draft" else []
        except StoreUnavailable as exc:
            seen = self._live.stock
            readings = seen.value.readings.get(one.campaign, [])
            found |= {"store_why": exc.detail, "units_at": seen.at_ms if readings else 0}
        waiting = self._live.stock.value.by_shard
        found |= campaign(one, readings, len(one.spec.skus) if one.spec else 0)
        return found | {
            "shards": shards(one, readings, waiting),
            "definition": one.spec,
            "room": await self._room(one),
            "read_at": time.time_ns() // 1_000_000,
        }

    async def put(self, request: Request, session: Session) -> dict[str, Any]:
        """Defined, or changed as far as its state allows."""
        spec = decode(decode_spec, await body_of(request))
        version = request.query_params.get("version")
        if version is not None and not VERSION(version):
            raise Invalid("must be the number of a version", "version")
        changed = None if version is None else int(version)
        return await self._told(await self._desk.campaigns.put(_name(request), spec, changed))

    async def restock(self, request: Request, session: Session) -> Any:
        """Units added or withdrawn, once per id."""
        name, change = _name(request), decode(decode_restock, await body_of(request))
        await self._refuse_draft(name)
        done = await self._desk.campaigns.restock(name, change)
        await self._live.refresh()
        return done

    async def admit(self, request: Request, session: Session) -> RoomView:
        """The waiting room of the campaign admits so many a second."""
        wanted = decode(decode_change, await body_of(request))
        rate = None if wanted.rate is None else float(wanted.rate)
        return await self._rooms.set_rate(_name(request), wanted.mode, rate)

    async def _room(self, one: Listed) -> RoomView | None:
        """The waiting room, if there is one and it can be seen now."""
        if one.spec is None or one.spec.admission != "room" or one.state in ("draft", "opening"):
            return None
        with contextlib.suppress(Fault):
            return await self._rooms.show(one.campaign)
        return None

    async def audit(self, request: Request, session: Session) -> Any:
        """The balance, judged now."""
        if self._audits >= AUDITS_MAX:
            raise Refused("audits are under way already: again in a moment")
        self._audits += 1
        try:
            return await self._desk.auditor.audit(_name(request))
        finally:
            self._audits -= 1

    def _turned(
        self, turn: Callable[[str], Awaitable[Campaign]]
    ) -> Callable[[Request, Session], Awaitable[dict[str, Any]]]:
        async def endpoint(request: Request, session: Session) -> dict[str, Any]:
            return await self._told(await turn(_name(request)))

        return endpoint

    async def _pause(self, name: str) -> Campaign:
        await self._refuse_draft(name)
        return await self._desk.campaigns.pause(name)

    async def _close(self, name: str) -> Campaign:
        await self._refuse_draft(name)
        return await self._desk.campaigns.close(name)

    async def _refuse_draft(self, name: str) -> None:
        if (await self._desk.campaigns.show(name)).state == "draft":
            raise Refused(f"campaign {name} is a draft: open it first")

    async def _listed(self, name: str) -> Listed:
        """Fresh from the ledger; while it is away, as the sampler had it last."""
        try:
            known = await self._desk.campaigns.show(name)
        except LedgerUnavailable:
            for one in self._live.ledger.value.campaigns:
                if one.campaign == name:
                    return one
            raise
        return Listed(name, known.state, known.version, known.epoch, known.spec, "", None)

    async def _told(self, known: Campaign) -> dict[str, Any]:
        await self._live.refresh()
        spec = known.spec
        return {
            "campaign": known.campaign, "state": known.state, "version": known.version,
            "opens_at": text_of_time(spec.opens_at), "closes_at": text_of_time(spec.closes_at),
        }  # fmt: skip


def _name(request: Request) -> str:
    return checked_name(request.path_params["campaign"])
