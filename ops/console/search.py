"""Finding orders by what an operator has: order id, buyer, request key, payment number. Every look is bounded.

A buyer has an index, a payment number and a request key are looked up place by place through their unique keys, and the
store's record of requests knows a key before the ledger does.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from msgspec import Struct
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.routing import BaseRoute

from core.desk.listing import Filter, Listing
from core.errors import Fault, Invalid, LedgerUnavailable, StoreUnavailable
from core.ids import parse, text_of
from core.ledger.pool import ask
from core.ledger.queries import query
from core.model import OrderView
from core.wire import request_field
from gateway.lookup import Lookup
from lua.keys import sale_keys
from ops.console.books import Books, Listed
from ops.console.guard import Guard
from ops.console.live import Live
from ops.console.sessions import Session
from ops.desk import Desk

FOUND_MAX = 50  # orders of one kind of search
LOOKS_MAX = 20_000  # places and channels that one request key is looked for at
CHANNELS_MAX = 64
TEXT_MAX = 64  # characters of what is searched for
ID_BYTES = 16  # of what the store keeps of a request, its first


class Hits(Struct, frozen=True):
    """What one kind of search found; `why` = why it could not look, or not everywhere."""

    by: str  # order id, buyer, request key, payment number
    orders: list[OrderView]
    more: bool = False
    why: str = ""


class Search:
    """The call `search`."""

    def __init__(
        self, guard: Guard, desk: Desk, books: Books, live: Live, lookup: Lookup, listing: Listing, shards: int,
        channels: list[str],
    ) -> None:  # fmt: skip
        self._guard = guard
        self._desk = desk
        self._books = books
        self._live = live
        self._lookup = lookup
        self._listing = listing
        self._shards = shards
        self._channels = channels

    def routes(self, base: str) -> list[BaseRoute]:
        """Its one."""
        return [self._guard.get(base + "/search", self.search)]

    async def search(self, request: Request, session: Session) -> dict[str, Any]:
        """All that fits, by each way to look."""
        text = request.query_params.get("q", "").strip()
        campaign = request.query_params.get("campaign", "").strip()
        if not 1 <= len(text) <= TEXT_MAX or not text.isprintable():
            raise Invalid(f"must be 1 to {TEXT_MAX} characters", "q")
        order_id = parse(text.lower())
        looks: list[Awaitable[Hits]] = [
            self._by_buyer(text, campaign), self._by_request(text, campaign), self._by_payment(text, campaign)
        ]  # fmt: skip
        if order_id is not None:
            looks = [self._by_id(order_id)]
        return {"q": text, "hits": await asyncio.gather(*looks)}

    async def _by_id(self, order_id: bytes) -> Hits:
        try:
            return await self._told("order id", [order_id], "", False)
        except Fault as exc:
            return Hits("order id", [], why=exc.detail)

    async def _by_buyer(self, buyer: str, campaign: str) -> Hits:
        try:
            ids, more = await self._listing.page(Filter(buyer_id=buyer, campaign=campaign or None), None, FOUND_MAX)
            return await self._told("buyer", ids, "", more is not None)
        except Fault as exc:
            return Hits("buyer", [], why=exc.detail)

    async def _by_payment(self, number: str, campaign: str) -> Hits:
        shards = list(range(self._shards))
        try:
            rows = await ask(
                lambda: self._desk.ledger.fetch(query("find_payment"), shards, number, FOUND_MAX + 1)
            )  # fmt: skip
            ids = [row["order_id"].bytes for row in rows]
            return await self._told("payment number", ids[:FOUND_MAX], campaign, len(ids) > FOUND_MAX)
        except Fault as exc:
            return Hits("payment number", [], why=exc.detail)

    async def _by_request(self, key: str, campaign: str) -> Hits:
        """In the store first, where a key stands from its 202 on; then in the ledger."""
        channels = (await self._known_channels())[:CHANNELS_MAX]
        places, cut = self._places(campaign, len(channels))
        why = "looked in the newest campaigns only: name one to look elsewhere" if cut else ""
        found: list[bytes] = []
        try:
            found = await self._keys_in_store(key, places, channels)
        except StoreUnavailable as exc:
            why = exc.detail
        try:
            shards, names = [shard for shard, _ in places], [name for _, name in places]
            rows = await ask(
                lambda: self._desk.ledger.fetch(query("find_request"), shards, names, channels, key, FOUND_MAX)
            )  # fmt: skip
            found += [row["order_id"].bytes for row in rows]
            return await self._told("request key", list(dict.fromkeys(found)), "", False, why)
        except LedgerUnavailable as exc:
            if not found:
                return Hits("request key", [], why=exc.detail)
            return await self._told("request key", found, "", False, why)
        except Fault as exc:
            return Hits("request key", [], why=exc.detail)

    def _places(self, campaign: str, channels: int) -> tuple[list[tuple[int, str]], bool]:
        """Shards and campaigns to look at; and whether there are more."""
        known: list[Listed] = [c for c in self._live.ledger.value.campaigns if campaign in ("", c.campaign)]
        places: list[tuple[int, str]] = []
        for one in known:
            home = self._books.home(one)
            if (len(places) + len(home)) * max(1, channels) > LOOKS_MAX:
                return places, True
            places += [(shard, one.campaign) for shard in home]
        return places, False

    async def _known_channels(self) -> list[str]:
        """Those of the settings, and those that were added; the ledger may be away."""
        with contextlib.suppress(LedgerUnavailable):
            rows = await ask(lambda: self._desk.ledger.fetch(query("list_channels")))
            return sorted({*self._channels, *(row["channel"] for row in rows)})
        return self._channels

    async def _keys_in_store(self, key: str, places: list[tuple[int, str]], channels: list[str]) -> list[bytes]:
        asks = [
            ("HGET", sale_keys(shard, name).requests, request_field(channel, key))
            for shard, name in places
            for channel in channels
        ]
        found = []
        for reply in await self._desk.store.exchange(asks) if asks else []:
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {reply}")
            if reply:
                found.append(bytes(reply[:ID_BYTES]))
        return found

    async def _told(self, by: str, ids: list[bytes], campaign: str, more: bool, why: str = "") -> Hits:
        views = await asyncio.gather(*(self._lookup.find(i) for i in ids))
        kept = [v for v in views if v is not None and campaign in ("", v.campaign)]
        gone = [text_of(i) for i, view in zip(ids, views, strict=True) if view is None and by == "request key"]
        if gone:
            why = "; ".join(filter(None, (why, f"accepted and in neither ledger nor holds: {', '.join(gone[:3])}")))
        return Hits(by, kept, more, why)
