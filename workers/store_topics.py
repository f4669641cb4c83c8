"""The store's topics: holds that end, get their units, or come back sold. Set-at-a-time, and idempotent by order id."""

import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from functools import partial
from itertools import groupby

from asyncpg.pgproto.pgproto import UUID

from core.desk.orders import OrderDesk
from core.errors import NotAllowed, StoreUnavailable
from core.flood import SampledLog
from core.flows import FLOWS
from core.ids import text_of
from core.ledger.pool import ask
from core.ledger.queries import query
from lua.keys import SaleKeys, sale_keys
from lua.scripts import MAX_ENDED, AllocateCode, GivebackCode, Scripts, Sold
from workers.outbox import Message, Outbox, backoff_s

logger = logging.getLogger("rushgate.relay")
put_off = SampledLog(logger, logging.WARNING, "messages put off", burst=5)

TOPICS = ("settle", "release", "restock", "allocate")  # what is given back can be taken in the same round
BATCH = 500  # messages in one claim
LEASE_S = 30.0  # after so long another relay takes over
ACTOR = "system"  # on record, of the steps that this worker makes


class StoreTopics:
    """Carries what the outbox has for the store."""

    def __init__(self, outbox: Outbox, scripts: Scripts, orders: OrderDesk) -> None:
        self._outbox = outbox
        self._scripts = scripts
        self._orders = orders
        self.delivered = 0

    async def serve(self, shard: int, topic: str) -> int:
        """A batch of one shard and topic: claimed, carried to the store, finished or put off. Returns the claimed.

        Raises: LedgerUnavailable; what was claimed comes back when its lease has passed.
        """
        claimed = await self._outbox.claim(shard, topic, BATCH, LEASE_S)
        # The longest waiting first: of two orders that want the last unit it goes to the one that was paid first.
        messages = sorted(claimed, key=lambda m: (m.campaign, m.epoch, -m.waited_ms))
        for (campaign, epoch), group in groupby(messages, key=lambda m: (m.campaign, m.epoch)):
            alike = list(group)
            for n in range(0, len(alike), MAX_ENDED):
                await self._carry(shard, topic, campaign, epoch, alike[n : n + MAX_ENDED])
        return len(messages)

    async def _carry(self, shard: int, topic: str, campaign: str, epoch: int, messages: list[Message]) -> None:
        began_s = time.monotonic()
        keys, ids = sale_keys(shard, campaign), [m.order_id.bytes for m in messages]
        codes: Sequence[IntEnum] | None
        try:
            if topic == "settle":
                codes = await self._scripts.settle(keys, epoch, ids)
            elif topic == "release":
                codes = await self._scripts.release(keys, epoch, ids)
            elif topic == "allocate":
                codes = await self._allocate(shard, keys, epoch, messages)
            else:
                codes = await self._give_back(shard, campaign, epoch, messages)
        except StoreUnavailable as exc:
            return await self._put_off(shard, topic, messages, exc.detail)
        if codes is None:
            return await self._put_off(shard, topic, messages, f"the store does not hold {campaign}, epoch {epoch}")
        worked_ms = int((time.monotonic() - began_s) * 1000)
        done = [(m, c.name.lower()) for m, c in zip(messages, codes, strict=True) if c is not GivebackCode.UNKNOWN]
        if done:
            delivered, outcomes = zip(*done, strict=True)
            await self._outbox.finish(shard, topic, delivered, [worked_ms] * len(done), outcomes)
            self.delivered += len(done)
        if odd := [m for m, c in zip(messages, codes, strict=True) if c is GivebackCode.UNKNOWN]:
            why = f"the store does not hold all SKUs of {campaign}, or never took their units"
            await self._put_off(shard, topic, odd, why)
        return None

    async def _allocate(
        self, shard: int, keys: SaleKeys, epoch: int, messages: list[Message]
    ) -> list[AllocateCode] | None:
        """Units are taken, then the orders make their steps. The ledger decides: an order that has moved on stays.

        Of two relays with one message, one may find no units and the other some that came back in between. The step
        that is made first counts; if it is `too_late`, its `release` gives back what the other one took.
        """
        codes = await self._scripts.allocate(keys, epoch, [m.order_id.bytes for m in messages])
        if codes is None:
            return None
        by_code: dict[AllocateCode, list[Message]] = {code: [] for code in AllocateCode}
        for message, code in zip(messages, codes, strict=True):
            by_code[code].append(message)
        if allocated := by_code[AllocateCode.ALLOCATED]:
            await self._move_on(shard, [m.order_id for m in allocated], epoch)
        # Rebuilt meanwhile: what the script took is gone, and it is asked again under the new epoch.
        if (await self._current(shard, messages[0].campaign) or epoch) > epoch:
            return None
        # An order without a hold has moved on, unless the store lost its hold: then the money goes back as well.
        for message in by_code[AllocateCode.TOO_LATE] + by_code[AllocateCode.NOTHING]:
            with suppress(NotAllowed):
                await self._orders.act(message.order_id.bytes, "too_late", "system", ACTOR)
        return codes

    async def _current(self, shard: int, campaign: str) -> int | None:
        """The epoch that the newest rebuild gave the campaign; None: it was never rebuilt."""
        [row] = await ask(lambda: self._outbox.ledger.fetch(query("current_epoch"), shard, campaign))
        epoch: int | None = row["epoch"]
        return epoch

    async def _move_on(self, shard: int, ids: list[UUID], epoch: int) -> None:
        """Orders that have their units make the step, in one statement."""
        step = FLOWS["reserve_at_payment"].step("allocating", "allocated")
        assert step is not None  # noqa: S101 - the table has it
        values = (step.state, step.to, step.action, ACTOR, step.reason, list(step.messages), None, epoch)
        await ask(lambda: self._outbox.ledger.fetch(query("move_orders"), shard, ids, *values))

    async def _give_back(
        self, shard: int, campaign: str, epoch: int, messages: list[Message]
    ) -> list[GivebackCode] | None:
        """Journalled first, then done, then marked as done: broken off anywhere, it is taken up again by its ids."""
        ledger = self._outbox.ledger
        wanted = [m.order_id for m in messages]
        rows = await ask(lambda: ledger.fetch(query("sold_orders"), shard, wanted))
        orders: dict[UUID, Sold] = {}
        for row in rows:
            who = (row["order_id"].bytes, row["channel"], row["buyer_id"], row["client_ip"], row["device_id"])
            orders.setdefault(row["order_id"], Sold(*who, {})).units[row["sku"]] = row["units"]
        moves = [
            (m.order_id, f"return.{text_of(m.order_id.bytes)}.{m.version}.{sku}", sku, units)
            for m in messages
            for sku, units in orders[m.order_id].units.items()
        ]
        _, ids, skus, units = (list(column) for column in zip(*moves, strict=True))
        journal = (query("put_move"), [shard] * len(ids), campaign, ids, skus, "return", units)
        await ask(partial(ledger.execute, *journal))
        codes = await self._scripts.giveback(sale_keys(shard, campaign), epoch, [orders[i] for i in wanted])
        if codes is not None:
            made = {m.order_id for m, code in zip(messages, codes, strict=True) if code is not GivebackCode.UNKNOWN}
            ended = [i for i, (order_id, _, _, _) in zip(ids, moves, strict=True) if order_id in made]
            await ask(lambda: ledger.execute(query("end_moves"), shard, campaign, ended, epoch))
            if (await self._current(shard, campaign) or epoch) > epoch:
                return None  # rebuilt meanwhile: done again under the new epoch
        return codes

    async def _put_off(self, shard: int, topic: str, messages: list[Message], why: str) -> None:
        put_off(topic, topic=topic, shard=shard, count=len(messages), why=why)
        waits_s = [backoff_s(m.attempts, random.random()) for m in messages]  # noqa: S311 - spreads, hides nothing
        await self._outbox.put_off(shard, topic, messages, waits_s, [why] * len(messages))
