"""Collects what the history checker judges a run by: the facts of ledger and store, once nothing moves any more."""

import asyncio
from collections import Counter
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from redis.exceptions import RedisError

from core.desk.campaigns import Campaign
from core.errors import Refused, StoreUnavailable
from core.flows import FLOWS
from core.ids import text_of
from core.ledger.pool import ask
from core.ledger.queries import query
from loadtest.history_final import (
    CampaignFacts,
    DeadLetter,
    Delivery,
    Final,
    FlowFacts,
    FlowMove,
    LimitsOf,
    Message,
    Move,
    OrderEvent,
    OrderFacts,
    PaymentFacts,
    Rebuilt,
    RefundFacts,
    Repair,
    ShardReading,
)
from lua.keys import home_shards, sale_keys
from lua.scripts import Reading, Scripts
from ops.desk import Desk

TRIES = 50  # readings, until two in a row are alike
PAUSE_S = 0.2
HOLDS_MAX = 100_000  # whose ids are read, with one command a shard
VERSION_OPENED = 3  # of a campaign put once, opening, open: what its limits were before nobody wrote down


class Standing(NamedTuple):
    """How far a campaign is; equal twice = nothing has moved. Of `readings` the store's clock is taken out."""

    readings: list[Reading]
    ledger: dict[str, int]

    @property
    def intake(self) -> int:
        """Entries in the streams of the campaign's shards."""
        return sum(r.intake for r in self.readings)


class Collector:
    """Reads one campaign; the desk's connections are the caller's."""

    def __init__(self, desk: Desk, campaign: str, shards: int) -> None:
        self._desk = desk
        self._campaign = campaign
        self._scripts = Scripts(desk.store)
        self._shards = shards

    async def standing(self) -> Standing:
        """How far the campaign is, now. Raises: CampaignUnknown, StoreUnavailable, LedgerUnavailable."""
        known = await self._desk.campaigns.show(self._campaign)
        home = self._home(known)
        readings = await self._scripts.audit([sale_keys(s, self._campaign) for s in home])
        [row] = await self._fetch("check_standing", home)
        return Standing([r._replace(now_ms=0) for r in readings], dict(row))

    async def collect(self) -> Final:
        """The facts, of one state of ledger and store: before and after reading them nothing had moved.

        Raises: Refused if the campaign does not stand still; CampaignUnknown, StoreUnavailable, LedgerUnavailable.
        """
        known = await self._desk.campaigns.show(self._campaign)
        before = await self.standing()
        for _ in range(TRIES):
            found = await self._read(known, before)
            after = await self.standing()
            if after == before:
                return found
            before = after
            await asyncio.sleep(PAUSE_S)
        raise Refused(f"{self._campaign} does not stand still: check it when its orders have come to their end")

    def _home(self, known: Campaign) -> list[int]:
        return home_shards(self._campaign, known.spec.spread, self._shards)

    async def _fetch(self, name: str, home: list[int]) -> list[asyncpg.Record]:
        text = QUERIES[name]
        return list(await ask(lambda: self._desk.ledger.fetch(text, home, self._campaign)))

    async def _read(self, known: Campaign, standing: Standing) -> Final:
        home, spec = self._home(known), known.spec
        flow = FLOWS[spec.order_type]
        moving = await self._moving(home, standing.readings)
        hold_ids = await self._hold_ids(home, standing.readings)
        events: dict[Any, list[OrderEvent]] = {}
        for e in await self._fetch("check_events", home):
            told = OrderEvent(
                e["version"], ns(e["at"]), e["action"], e["from_state"], e["to_state"], e["actor"], e["reason"]
            )
            events.setdefault(e["order_id"], []).append(told)
        orders = [_order(row, events.get(row["order_id"], [])) for row in await self._fetch("check_orders", home)]
        letters = [
            DeadLetter(r["shard"], r["reason"], _id(r["order_id"]), r["seq"], r["epoch"] or known.epoch)
            for r in await self._fetch("check_dead_letters", home)
        ]
        money = await self._fetch("check_money", home)
        messages = await self._fetch("check_messages", home)
        moves = [_move(r) for r in await self._fetch("check_moves", home)]
        limits = known.loosest
        lease_ms = max((int(r.meta.get("lease_ms", "0")) for r in standing.readings), default=0)
        return Final(
            campaign=CampaignFacts(
                self._campaign,
                {s.sku: s.stock for s in spec.skus},
                moves,
                LimitsOf(limits.buyer, limits.buyer_sku, limits.ip, limits.device),
                spec.order_type,
                spec.spread,
                lease_ms,
                known.version <= VERSION_OPENED and spec.limits == limits.limits and not spec.channel_shares,
            ),
            flow=FlowFacts(flow.first, flow.ends, [FlowMove(s.state, s.action, s.to, s.messages) for s in flow.steps]),
            orders=orders,
            readings=[_reading(s, r, moving[s], hold_ids) for s, r in zip(home, standing.readings, strict=True)],
            dead_letters=letters,
            payments=[PaymentFacts(str(r["order_id"]), *r[2:5]) for r in money if r["kind"] == "payment"],
            refunds=[
                RefundFacts(str(r["order_id"]), r["number"], r["amount"], r["state"])
                for r in money
                if r["kind"] == "refund"
            ],
            outbox=[_message(r) for r in messages if r["place"] == "outbox"],
            dead_messages=[_message(r) for r in messages if r["place"] == "dead"],
            deliveries=[
                Delivery(str(r["order_id"]), r["version"], r["topic"], ns(r["at"]), r["outcome"], r["attempts"])
                for r in messages
                if r["place"] == "deliveries"
            ],
            repairs=[Repair(str(r["order_id"]), r["what"]) for r in await self._fetch("check_repairs", home)],
            rebuilds=[_rebuilt(r) for r in await self._fetch("check_rebuilds", home)],
            intake=standing.intake,
        )

    async def _hold_ids(self, home: list[int], readings: list[Reading]) -> dict[int, list[str]]:
        """The orders that have a hold, by shard; nothing if reading so many would stop the store for others."""
        if sum(r.holds for r in readings) > HOLDS_MAX:
            return {}
        replies = await self._desk.store.exchange([("HKEYS", sale_keys(s, self._campaign).holds) for s in home])
        found: dict[int, list[str]] = {}
        for shard, reply in zip(home, replies, strict=True):
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {reply}")
            found[shard] = sorted(text_of(field) for field in reply)
        return found

    async def _moving(self, home: list[int], readings: list[Reading]) -> dict[int, Counter[str]]:
        """Units that left a shard and have not arrived at another, by the shard that they left."""
        noted = [(s, i, *move) for s, r in zip(home, readings, strict=True) for i, move in r.moves.items()]
        found: dict[int, Counter[str]] = {shard: Counter() for shard in home}
        if noted:
            asked = [("HEXISTS", sale_keys(to, self._campaign).deltas, i) for _, i, to, _, _ in noted]
            replies = await self._desk.store.exchange(asked)
            for reply, (shard, _, _, sku, units) in zip(replies, noted, strict=True):
                if isinstance(reply, RedisError):
                    raise StoreUnavailable(f"the store answers {reply}")
                found[shard][sku] += 0 if reply else units
        return found


QUERIES = {
    "check_standing": query("check_standing"),
    "check_orders": query("check_orders"),
    "check_events": query("check_events"),
    "check_dead_letters": query("check_dead_letters"),
    "check_money": query("check_money"),
    "check_messages": query("check_messages"),
    "check_moves": query("check_moves"),
    "check_repairs": query("check_repairs"),
    "check_rebuilds": query("check_rebuilds"),
}


def ns(at: datetime) -> int:
    """Wall clock nanoseconds; a float of seconds would lose microseconds."""
    return int(at.timestamp()) * 1_000_000_000 + at.microsecond * 1_000


def _id(order_id: Any) -> str | None:
    return None if order_id is None else text_of(order_id.bytes)


def _order(row: asyncpg.Record, events: list[OrderEvent]) -> OrderFacts:
    items = tuple((s, q) for s, q in zip(row["skus"], row["quantities"], strict=True) if s is not None)
    return OrderFacts(
        str(row["order_id"]), row["shard"], row["seq"], row["channel"], row["request_key"], row["buyer_id"], items,
        row["amount"], row["state"], row["version"], ns(row["accepted_at"]) // 1_000_000,
        ns(row["pay_by"]) // 1_000_000, events, row["client_ip"], row["device_id"], row["epoch"],
    )  # fmt: skip


def _move(row: asyncpg.Record) -> Move:
    """Of a restock with the id that its caller gave it."""
    move_id = row["move_id"].removeprefix("restock.") if row["kind"] == "restock" else row["move_id"]
    return Move(move_id, row["sku"], row["kind"], row["units"], ns(row["at"]), row["state"])


def _rebuilt(row: asyncpg.Record) -> Rebuilt:
    done_at = row["done_at"]
    done_ns = None if done_at is None else ns(done_at)
    return Rebuilt(row["shard"], row["epoch"], ns(row["at"]), done_ns, row["base"], row["gap"] or 0, row["why"])


def _message(row: asyncpg.Record) -> Message:
    return Message(str(row["order_id"]), row["version"], row["topic"])


def _reading(shard: int, r: Reading, moving: Counter[str], hold_ids: dict[int, list[str]]) -> ShardReading:
    epoch = int(r.meta.get("epoch", "0"))
    units = dict(r.left), dict(r.allocation), dict(r.held), dict(r.sold)
    return ShardReading(shard, *units, r.seq, r.requests, r.holds, dict(moving), epoch, hold_ids.get(shard))
