"""Repairs of holds, and of lost messages: journalled before they are made, or with it, and made by the idempotent
scripts, set-at-a-time.

Made twice, by two workers or after a crash, a repair is one repair: the scripts end a hold once, and the journal takes
it once.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from asyncpg.pgproto.pgproto import UUID
from redis.exceptions import RedisError

from core.desk.campaigns import Campaign
from core.errors import CampaignLost, LedgerUnavailable, StoreUnavailable
from core.flows import FLOWS
from core.ids import text_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.trace_context import trace_id_of
from core.wire import HoldInvalid, has_units, read_hold
from lua.connection import Command, Reply, SharedConnection
from lua.keys import SaleKeys
from lua.scripts import MAX_ENDED, ReleaseCode, Scripts

logger = logging.getLogger("rushgate.reconcile")

MOST = 1_000  # repairs of a sort, on one shard in one round
IDS = 10_000  # in one statement
AGAIN_S = 3_600.0  # the same repair of the same order within so long is that repair, broken off or made by two

ENDINGS = {"settle": "settled", "release": "released"}  # topic that ends a hold -> what the journal calls it

LOSABLE = ("allocate", "restock")  # topics of the store that end no hold: no hold shows that such a message was lost


def ending_moves(order_type: str) -> tuple[list[str], list[str], list[str]]:
    """The moves of a flow that end a hold, as parallel lists: state before, action, topic."""
    return FLOWS[order_type].ending_moves()


def losable_moves(order_type: str) -> tuple[list[str], list[str], list[str]]:
    """The moves of a flow that write a message of LOSABLE, as parallel lists: state before, action, topic."""
    return FLOWS[order_type].moves_with(LOSABLE)


@dataclass
class Mended:
    """What became of a campaign's holds in one round."""

    holds: int = 0  # that stood
    done: int = 0  # repairs
    wrong: list[str] = field(default_factory=list)  # what could not be mended, in words


class Part(NamedTuple):
    """A campaign on one of its shards."""

    known: Campaign
    shard: int
    keys: SaleKeys


class Ended(NamedTuple):
    """An order that needs its hold no more: the message that should have ended it, and since which version."""

    order_id: bytes
    topic: str
    version: int

    @property
    def why(self) -> str:
        return f"its hold stands, and no {self.topic} of version {self.version} is in the outbox"


class Lost(NamedTuple):
    """A message that nobody will deliver: of LOSABLE, of this version of the order."""

    order_id: bytes
    topic: str
    version: int

    @property
    def why(self) -> str:
        return f"{self.topic} of version {self.version} is neither in the outbox nor delivered"


class Repairs:
    """One per process; the store connection and the pool are the caller's.

    Every method raises CampaignLost, StoreUnavailable or LedgerUnavailable; what was done by then stays so.
    """

    def __init__(self, store: SharedConnection, ledger: Pool) -> None:
        self.store = store
        self.scripts = Scripts(store)
        self.ledger = ledger
        self.made: Counter[str] = Counter()  # what was done -> how often

    async def repeat(self, part: Part, topic: str, orders: Sequence[Ended], found: Mended) -> None:
        """For holds that still stand, the message that ends them is in the outbox again, in one transaction with its
        journal: the relay ends the hold, and what the audit knows of it stays true."""
        for n in range(0, len(orders), MAX_ENDED):
            some = orders[n : n + MAX_ENDED]
            holds = await self.standing(part, [o.order_id for o in some], found)
            standing = {o.order_id: o for o in some if o.order_id in holds}
            if not standing:
                continue
            bare = [order_id for order_id, hold in holds.items() if not has_units(hold)]
            if bare and topic == "settle":
                # As an old copy of the store has it: from before the units were taken.
                await self.scripts.allocate(part.keys, part.known.epoch, bare)
            for order_id in await self._put_back(part, topic, ENDINGS[topic], list(standing.values())):
                await self.note(part, order_id, ENDINGS[topic], standing.pop(order_id).why, found)
            # Another worker has done it meanwhile; or it was done before, in vain.
            for order in await self.ended(part, list(standing)):
                [hold] = await self.holds(part, [order.order_id])
                if hold is not None:
                    found.wrong.append(f"hold of {text_of(order.order_id)} still stands, {ENDINGS[topic]} in vain")

    async def repeat_lost(self, part: Part, found: Mended) -> None:
        """Messages of LOSABLE that nobody would deliver are in the outbox again, MOST of them, in one transaction with
        their journal. They may be repeated: the store takes units, and gives them back, once per order.

        No guess either: a message leaves the outbox in the statement that writes its delivery.
        """
        lost = await self._lost_messages(part)
        for topic in LOSABLE:
            wanted = [m for m in lost if m.topic == topic]
            for n in range(0, len(wanted), MAX_ENDED):
                some = wanted[n : n + MAX_ENDED]
                back = await self._put_back(part, topic, "repeated", some)
                for message in some:
                    if message.order_id in back:
                        await self.note(part, message.order_id, "repeated", message.why, found)
                if len(back) < len(some):  # done by another worker meanwhile; or done before, in vain
                    still = set(await self._lost_messages(part)) & {m for m in some if m.order_id not in back}
                    found.wrong += [f"{topic} of {text_of(m.order_id)} is lost again, repeated in vain" for m in still]

    async def _lost_messages(self, part: Part) -> list[Lost]:
        moves = losable_moves(part.known.spec.order_type)
        values = (part.shard, part.known.campaign, part.known.epoch, *moves, MOST)
        rows = await ask(lambda: self.ledger.fetch(query("lost_messages"), *values))
        return [Lost(r["order_id"].bytes, r["topic"], r["version"]) for r in rows]

    async def _put_back(self, part: Part, topic: str, what: str, messages: Sequence[Ended | Lost]) -> set[bytes]:
        """The orders whose message is back in the outbox by this call; at most MAX_ENDED."""
        columns = [UUID(m.order_id) for m in messages], [m.version for m in messages], [m.why for m in messages]
        values = (part.shard, topic, what, part.known.campaign, AGAIN_S, *columns)
        rows = await ask(lambda: self.ledger.fetch(query("repeat_messages"), *values))
        return {row["order_id"].bytes for row in rows}

    async def release(self, part: Part, ids: Sequence[bytes], why: str, found: Mended) -> None:
        """Holds without an order in the ledger are gone, their units and limits back, once per order."""
        for n in range(0, len(ids), MAX_ENDED):
            some = ids[n : n + MAX_ENDED]
            await ask(partial(self._journal, part, some, why))
            codes = await self.scripts.release(part.keys, part.known.epoch, some)
            if codes is None:
                raise self._lost(part)
            for order_id, code in zip(some, codes, strict=True):
                if code is ReleaseCode.RELEASED:
                    await self.note(part, order_id, "released", why, found)

    async def _journal(self, part: Part, ids: Sequence[bytes], why: str) -> None:
        """The releases are on record, once each; of two workers' transactions one is tried again."""
        uuids = [UUID(i) for i in ids]
        async with self.ledger.acquire() as connection, connection.transaction(isolation="serializable"):
            rows = await connection.fetch(query("recent_repairs"), part.shard, uuids, "released", AGAIN_S)
            there = {row["order_id"] for row in rows}
            fresh = [u for u in uuids if u not in there]
            if fresh:
                values = (part.shard, "released", part.known.campaign, fresh, [why] * len(fresh))
                await connection.execute(query("put_repairs"), *values)

    async def ended(self, part: Part, ids: Sequence[bytes]) -> list[Ended]:
        """Of at most IDS orders, those whose end of hold is on record and whose message has left the outbox."""
        moves, uuids = ending_moves(part.known.spec.order_type), [UUID(i) for i in ids]
        if not uuids:
            return []
        rows = await ask(lambda: self.ledger.fetch(query("ended_holds"), part.shard, uuids, *moves))
        return [Ended(r["order_id"].bytes, r["topic"], r["version"]) for r in rows]

    async def unknown(self, shard: int, ids: Sequence[bytes]) -> list[bytes]:
        """Those that the ledger has neither as orders nor as dead letters."""
        found: list[bytes] = []
        for n in range(0, len(ids), IDS):
            some = ids[n : n + IDS]
            uuids = [UUID(i) for i in some]
            rows = await ask(partial(self.ledger.fetch, query("audit_known"), shard, uuids))
            there = {row["order_id"].bytes for row in rows}
            found += [i for i in some if i not in there]
        return found

    async def dropped(self, shard: int, ids: Sequence[bytes]) -> list[bytes]:
        """Of at most IDS orders, those that were set aside and given up, and are not in the ledger."""
        if not ids:
            return []
        rows = await ask(lambda: self.ledger.fetch(query("dropped_orders"), shard, [UUID(i) for i in ids]))
        return [row["order_id"].bytes for row in rows]

    async def standing(self, part: Part, ids: Sequence[bytes], found: Mended) -> dict[bytes, bytes]:
        """The holds that are there now, by order. One that cannot be read is `wrong`: no script could end it."""
        standing: dict[bytes, bytes] = {}
        for order_id, hold in zip(ids, await self.holds(part, ids), strict=True):
            if hold is None:
                continue
            try:
                read_hold(hold)
            except HoldInvalid as exc:
                found.wrong.append(f"hold of {text_of(order_id)} cannot be read: {exc}")
                continue
            standing[order_id] = hold
        return standing

    async def holds(self, part: Part, ids: Sequence[bytes]) -> list[Any]:
        """The holds as they are now, None where there is none. Raises CampaignLost if they are another epoch's."""
        if not ids:
            return []
        epoch, holds = await self.tell(("HGET", part.keys.meta, "epoch"), ("HMGET", part.keys.holds, *ids))
        if epoch != b"%d" % part.known.epoch:
            raise self._lost(part)
        return list(holds)

    async def tell(self, *commands: Command) -> list[Reply]:
        replies = await self.store.exchange(commands)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {reply}")
        return replies

    def _lost(self, part: Part) -> CampaignLost:
        return CampaignLost(f"{part.keys.meta.decode()}: epoch {part.known.epoch} is not there")

    async def note(self, part: Part, order_id: bytes, what: str, why: str, found: Mended) -> None:
        found.done += 1
        self.made[what] += 1
        try:
            values = part.shard, UUID(order_id)
            trace = await ask(partial(self.ledger.fetchval, query("order_trace"), *values))
        except LedgerUnavailable:
            trace = None
        facts = {"order_id": text_of(order_id), "trace_id": trace_id_of(order_id, trace)}
        logger.warning("order mended", extra=facts | {"campaign": part.known.campaign, "what": what, "why": why})
