"""Where an order stands: from its 202 on, ledger or not. Many pollers of one tick are answered by one query."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from redis.exceptions import RedisError

from core.errors import Fault, LedgerUnavailable, Overloaded, StoreUnavailable
from core.ids import campaign_tag, shard_of, tag_of, text_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import FIRST_STATE, OrderLine, OrderView, ShipTo
from core.wire import read_hold
from gateway.catalogue import Catalogue
from lua.connection import SharedConnection
from lua.keys import sale_keys

MAX_WAITING = 20_000
MAX_ASKED = 1_000  # order ids in one query
LEDGER_WAIT_S = 2.0  # an order of now is in the store too: nobody waits longer for the ledger
AWAY_S = 1.0  # how long the ledger is not asked again after it did not answer
NAMES_S = 1.0  # how long the list of campaigns is believed
SCAN = 1_000

decode_address = msgspec.json.Decoder(ShipTo).decode

Answer = OrderView | None


class Lookup:
    """Finds orders by id; one question under way at a time, the next one takes all who wait by then."""

    def __init__(self, catalogue: Catalogue, store: SharedConnection, ledger: Pool) -> None:
        self._catalogue = catalogue
        self._store = store
        self._ledger = ledger
        self._waiting: dict[bytes, asyncio.Future[Answer]] = {}
        self._task: asyncio.Task[None] | None = None
        self._names: list[str] = []
        self._names_asked_s = float("-inf")
        self._away_until_s = 0.0
        self._names_of_shard: dict[int, tuple[float, list[str]]] = {}

    async def find(self, order_id: bytes) -> Answer:
        """The order, or None if neither store nor ledger has it.

        Raises:
            LedgerUnavailable: the store does not have it, and the ledger cannot be asked.
            StoreUnavailable: the ledger does not have it, and the store cannot be asked.
            Overloaded: too many wait already.
        """
        answer = self._waiting.get(order_id)
        if answer is None:
            if len(self._waiting) >= MAX_WAITING:
                raise Overloaded("too many status requests wait")
            answer = self._waiting[order_id] = asyncio.get_running_loop().create_future()
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._serve())
        return await asyncio.shield(answer)

    async def stop(self) -> None:
        """No task of it runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self) -> None:
        while self._waiting:
            taken = dict(list(self._waiting.items())[:MAX_ASKED])
            for order_id in taken:
                del self._waiting[order_id]
            results: dict[bytes, Answer | Fault] = {}
            try:
                results = await self._find_all(list(taken))
            finally:
                for order_id, answer in taken.items():
                    if answer.done():
                        continue
                    result = results.get(order_id, StoreUnavailable("the look-up was broken off"))
                    if isinstance(result, Fault):
                        answer.set_exception(result)
                        answer.exception()  # a caller that has gone leaves no "never retrieved" behind
                    else:
                        answer.set_result(result)

    async def _find_all(self, order_ids: list[bytes]) -> dict[bytes, Answer | Fault]:
        found: dict[bytes, Answer | Fault] = {}
        away: Fault | None = None
        try:
            found.update(await self._ask_ledger(order_ids))
        except LedgerUnavailable as exc:
            away = exc
        missing = [i for i in order_ids if i not in found]
        if not missing:
            return found
        try:
            found.update(await self._from_store(missing))
        except Fault as exc:
            away = away or exc
        missing = [i for i in missing if i not in found]
        if missing and away is None:
            # Written and ended between the two questions, perhaps: the ledger has the last word.
            try:
                found.update(await self._ask_ledger(missing))
            except LedgerUnavailable as exc:
                away = exc
        for order_id in missing:
            found.setdefault(order_id, away)
        return found

    async def _ask_ledger(self, order_ids: Sequence[bytes]) -> dict[bytes, OrderView]:
        """As `_from_ledger`, within LEDGER_WAIT_S; for a moment after it failed nobody waits for it again."""
        loop = asyncio.get_running_loop()
        if self._away_until_s > loop.time():
            raise LedgerUnavailable("the ledger did not answer a moment ago")
        try:
            return await ask(lambda: self._from_ledger(order_ids), timeout_s=LEDGER_WAIT_S)
        except LedgerUnavailable:
            self._away_until_s = loop.time() + AWAY_S
            raise

    async def _from_ledger(self, order_ids: Sequence[bytes]) -> dict[bytes, OrderView]:
        rows = await self._ledger.fetch(
            query("find_orders"), [shard_of(i) for i in order_ids], [UUID(i) for i in order_ids]
        )
        lines: dict[bytes, list[OrderLine]] = {}
        heads: dict[bytes, asyncpg.Record] = {}
        for row in rows:
            order_id = row["order_id"].bytes
            heads[order_id] = row
            lines.setdefault(order_id, []).append(OrderLine(row["sku"], row["quantity"], row["price"]))
        return {
            order_id: OrderView(
                order_id=text_of(order_id),
                campaign=row["campaign"],
                channel=row["channel"],
                buyer_id=row["buyer_id"],
                state=row["state"],
                items=lines[order_id],
                amount=row["amount"],
                currency=row["currency"],
                accepted_at=row["accepted_at"],
                pay_by=row["pay_by"],
                version=row["version"],
                discount=_discount(lines[order_id], row["amount"]),
                ship_to=decode_address(row["ship_to"]) if row["ship_to"] is not None else None,
            )
            for order_id, row in heads.items()
        }

    async def _from_store(self, order_ids: list[bytes]) -> dict[bytes, OrderView]:
        began_s = asyncio.get_running_loop().time()
        questions = [(i, campaign) for i in order_ids for campaign in await self._candidates(i, began_s)]
        if not questions:
            return {}
        replies = await self._store.exchange(
            [("HGET", sale_keys(shard_of(i), campaign).holds, i) for i, campaign in questions]
        )
        found: dict[bytes, OrderView] = {}
        for (order_id, campaign), reply in zip(questions, replies, strict=True):
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
            if reply is not None:
                found[order_id] = _view_of_hold(order_id, campaign, reply)
        return found

    async def _candidates(self, order_id: bytes, began_s: float) -> list[str]:
        """The campaigns that an id can belong to by its tag: one as a rule.

        If no known one fits, the list is asked for again unless it is of after `began_s`: a campaign may be newer.
        """
        tag = tag_of(order_id)
        known = [s.campaign for s in self._catalogue.sales.values() if s.tag == tag]
        if known:
            return known
        try:
            names = await self._all_names(began_s - NAMES_S)
            if all(campaign_tag(name) != tag for name in names):
                names = await self._all_names(began_s)
        except LedgerUnavailable:
            # The 202 may be another process's: this one has not met the campaign yet.
            names = await self._names_in_store(shard_of(order_id))
        return [name for name in names if campaign_tag(name) == tag]

    async def _all_names(self, since_s: float) -> list[str]:
        asked_s = asyncio.get_running_loop().time()
        if self._names_asked_s < since_s:
            rows = await ask(lambda: self._ledger.fetch(query("list_campaigns")))
            self._names = [row["campaign"] for row in rows]
            self._names_asked_s = asked_s
        return self._names

    async def _names_in_store(self, shard: int) -> list[str]:
        """The campaigns of a shard by their keys: a walk over all keys, so only for want of the ledger."""
        loop = asyncio.get_running_loop()
        until_s, names = self._names_of_shard.get(shard, (0.0, []))
        if until_s < loop.time() and shard < self._catalogue.shards:
            before, _, after = sale_keys(shard, "*").meta.partition(b"*")
            names, cursor = [], b"0"
            while True:
                [reply] = await self._store.exchange([("SCAN", cursor, "MATCH", before + b"*" + after, "COUNT", SCAN)])
                if isinstance(reply, RedisError):
                    raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
                cursor, found = reply
                names += [key[len(before) : -len(after)].decode() for key in found]
                if cursor == b"0":
                    break
            self._names_of_shard[shard] = (loop.time() + NAMES_S, names)
        return names


def _view_of_hold(order_id: bytes, campaign: str, hold: bytes) -> OrderView:
    held, accepted_ms, pay_by_ms = read_hold(hold)
    lines = [OrderLine(*item) for item in held.items]
    return OrderView(
        order_id=text_of(order_id),
        campaign=campaign,
        channel=held.channel,
        buyer_id=held.buyer_id,
        state=FIRST_STATE,
        items=lines,
        amount=held.amount,
        currency=held.currency,
        accepted_at=datetime.fromtimestamp(accepted_ms / 1000, UTC),
        pay_by=datetime.fromtimestamp(pay_by_ms / 1000, UTC),
        version=1,
        discount=_discount(lines, held.amount),
    )


def _discount(lines: list[OrderLine], amount: int) -> int:
    return sum(line.quantity * line.price for line in lines) - amount
