"""The outbox and the dead letters on the page: what waits, what nobody could deliver, and what becomes of it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.routing import BaseRoute

from core.errors import Invalid
from core.flows.table import TOPICS
from core.ids import parse, shard_of
from core.ledger.pool import ask
from core.ledger.queries import query
from gateway.body import decode
from ops.console.guard import Guard, body_of
from ops.console.live import Live
from ops.console.sessions import Session
from ops.desk import Desk
from ops.order_display import how_it_waits
from ops.outbox_commands import ORDERS, Which, drop_order, replay_order

ROWS = 100  # a page shows at most
AT_ONCE = 1_000  # dead orders in one call


class Chosen(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of an action: of one order, of one topic, or all there are."""

    order: Annotated[str, Meta(max_length=36)] = ""
    topic: Annotated[str, Meta(max_length=32)] = ""
    all: bool = False


decode_chosen = msgspec.json.Decoder(Chosen).decode


class Done(Struct, frozen=True):
    """What an action has done: messages and orders, and those that stay, with the reason."""

    messages: int
    orders: int = 0
    due: int = 0
    taken: int = 0
    stays: list[str] = []


class Outbox:
    """The calls under `outbox` and `dead`."""

    def __init__(self, guard: Guard, desk: Desk, live: Live) -> None:
        self._guard = guard
        self._desk = desk
        self._live = live

    def routes(self, base: str) -> list[BaseRoute]:
        """All of them."""
        return [
            self._guard.get(base + "/outbox", self.outbox),
            self._guard.post(base + "/outbox/replay", self.hasten),
            self._guard.get(base + "/dead", self.dead),
            self._guard.post(base + "/dead/replay", self.replay),
            self._guard.post(base + "/dead/drop", self.drop),
        ]

    async def outbox(self, request: Request, session: Session) -> dict[str, Any]:
        """Messages that wait, the oldest first."""
        which, now = _asked(request), datetime.now(UTC)
        rows = await ask(lambda: self._desk.ledger.fetch(query("list_outbox"), *which, ROWS + 1))
        found = [_message(dict(row)) for row in rows[:ROWS]]
        for one in found:
            one["stands"] = how_it_waits(one["due_at"], one["attempts"], one["error"], now)
        return {"rows": found, "more": len(rows) > ROWS, "topics": list(TOPICS)}

    async def dead(self, request: Request, session: Session) -> dict[str, Any]:
        """Dead messages and orders, the oldest first."""
        which = _asked(request)
        rows: list[dict[str, Any]] = []
        if which.topic != ORDERS:
            text = query("list_dead_messages")
            rows = [_message(dict(r)) for r in await ask(lambda: self._desk.ledger.fetch(text, *which, ROWS + 1))]
        if which.topic in (None, ORDERS):
            letters = await self._letters(which, ROWS + 1)
            rows += [
                {"order_id": str(r["order_id"] or ""), "topic": ORDERS, "campaign": r["campaign"], "at": r["at"],
                 "reason": r["reason"], "entry": f"{r['entry_id']} of shard {r['shard']}"}
                for r in letters
            ]  # fmt: skip
        return {"rows": rows[:ROWS], "more": len(rows) > ROWS, "topics": [*TOPICS, ORDERS]}

    async def hasten(self, request: Request, session: Session) -> Done:
        """What waits for its next attempt is due now; the rest needs no help, or cannot have any."""
        which = await _chosen(request)
        before = await ask(lambda: self._desk.ledger.fetchrow(query("count_outbox"), *which))
        changed = await ask(lambda: self._desk.ledger.fetch(query("hasten_outbox"), *which))
        await self._live.refresh()
        assert before is not None  # noqa: S101 - a SELECT of counts has one row
        return Done(len(changed), due=before["due"], taken=before["taken"])

    async def replay(self, request: Request, session: Session) -> Done:
        """Dead messages are in the outbox again, dead orders in the intake."""
        return await self._end(await _chosen(request), "replay")

    async def drop(self, request: Request, session: Session) -> Done:
        """They are given up for good."""
        return await self._end(await _chosen(request), "drop")

    async def _end(self, which: Which, how: Literal["replay", "drop"]) -> Done:
        messages = orders = 0
        stays: list[str] = []
        if which.topic != ORDERS:
            text = query("replay_messages") if how == "replay" else query("drop_messages")
            messages = len(await ask(lambda: self._desk.ledger.fetch(text, *which)))
        if which.topic in (None, ORDERS):
            for letter in await self._letters(which, AT_ONCE):
                why = await (replay_order if how == "replay" else drop_order)(self._desk, letter)
                orders += not why
                stays += [f"entry {letter['entry_id']} of shard {letter['shard']} stays: {why}"] if why else []
        await self._live.refresh()
        return Done(messages, orders, stays=stays[:ROWS])

    async def _letters(self, which: Which, most: int) -> list[Any]:
        text = query("list_dead_letters")
        return list(await ask(lambda: self._desk.ledger.fetch(text, which.shard, which.order_id, most)))


def _message(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "order_id": str(row["order_id"])}


def _asked(request: Request) -> Which:
    return _which(request.query_params.get("order", ""), request.query_params.get("topic", ""))


async def _chosen(request: Request) -> Which:
    chosen = decode(decode_chosen, await body_of(request))
    if not (chosen.order or chosen.topic or chosen.all):
        raise Invalid("one of them is needed: an order, a topic, or all there are", "order")
    return _which(chosen.order, chosen.topic)


def _which(order: str, topic: str) -> Which:
    if topic and topic not in (*TOPICS, ORDERS):
        raise Invalid("there is no such topic", "topic")
    if not order:
        return Which(None, None, topic or None)
    order_id = parse(order)
    if order_id is None:
        raise Invalid("is no order id: 36 characters, as a 202 gave it", "order")
    return Which(shard_of(order_id), UUID(order_id), topic or None)
