"""What a flow machine works on: one sale, and those who carry its orders on, in the event loop of the machine."""

import asyncio
from collections import Counter
from typing import Any

from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import OrderDesk
from core.desk.refunds import RefundDesk
from core.flows.table import Flow, Step
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection, StoreConnection
from lua.scripts import Scripts
from tests.ledger.support import Sale, drain, make_worker
from tests.support import LEASE_MS, SHARDS, tell
from workers.relay import RelayWorker

AT_ONCE = 50  # orders that are made together
STORY = """
    WITH told AS (
        SELECT version, topic, false AS carried FROM outbox WHERE shard = $1 AND order_id = $2
        UNION ALL SELECT version, topic, true FROM deliveries WHERE shard = $1 AND order_id = $2
    ), events AS (SELECT * FROM order_events WHERE shard = $1 AND order_id = $2 ORDER BY version
    ), money AS (SELECT * FROM refunds WHERE shard = $1 AND order_id = $2)
    SELECT o.state, o.version, o.buyer_id,
        (SELECT array_agg(version) FROM events) AS versions,
        (SELECT array_agg(action) FROM events) AS actions,
        (SELECT array_agg(to_state) FROM events) AS states,
        (SELECT array_agg(topic) FROM told) AS topics,
        (SELECT array_agg(topic) FROM told WHERE carried) AS carried,
        (SELECT array_agg(version) FROM told WHERE topic = 'refund') AS asked,
        (SELECT coalesce(sum(amount), 0) FROM payments p
         WHERE p.shard = $1 AND p.order_id = $2 AND status = 'paid') AS paid,
        (SELECT coalesce(sum(amount), 0) FROM money WHERE state IN ('approved', 'done')) AS booked,
        (SELECT array_agg(refund_no) FROM money WHERE state IN ('approved', 'done')) AS numbers,
        (SELECT count(*) FROM money WHERE state = 'approved') AS due,
        (SELECT count(*) FROM money WHERE state = 'requested') AS under_review
    FROM orders o WHERE o.shard = $1 AND o.order_id = $2"""


class World:
    """Its calls are made while nothing runs in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ledger: Pool, settings: Settings, sale: Sale) -> None:
        self.loop, self.ledger, self.settings, self.sale = loop, ledger, settings, sale
        self.part = sale.parts[0]
        self.store = SharedConnection(settings.store_url, "fsync", 10.0, "machine")
        self.scripts = Scripts(self.store)
        self.relay = RelayWorker(ledger, StoreConnection(settings.store_url, "fsync", 10.0, "relay"), [self.part.shard])
        self.orders, self.refunds = OrderDesk(ledger, SHARDS), RefundDesk(ledger, SHARDS)
        self.auditor = Auditor(CampaignDesk(self.store, ledger, SHARDS, LEASE_MS), self.store, ledger, SHARDS)
        self._ready: list[bytes] = []
        self._seen: set[bytes] = set()

    @classmethod
    async def make(cls, ledger: Pool, settings: Settings, sale: Sale) -> "World":
        """One in the running loop."""
        return cls(asyncio.get_running_loop(), ledger, settings, sale)

    def do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def order(self) -> bytes:
        """A fresh one, accepted by the store and written by the ledger worker."""
        if not self._ready:
            await self.sale.accept(self.store, AT_ONCE, ("red", 1))
            await drain(self.store, make_worker(self.settings, self.ledger))
            rows = await self.ledger.fetch("SELECT order_id FROM orders WHERE shard = $1", self.part.shard)
            self._ready = sorted({r["order_id"].bytes for r in rows} - self._seen)
        self._seen.add(self._ready[-1])
        return self._ready.pop()

    async def story(self, order: bytes) -> dict[str, Any]:
        """All that the ledger has of an order."""
        row = await self.ledger.fetchrow(STORY, self.part.shard, UUID(order))
        assert row is not None
        return dict(row)

    async def units(self) -> Counter[str]:
        """Of red: allocation, left, held, sold."""
        [r] = await self.scripts.audit([self.part.keys])
        return Counter(allocation=r.allocation["red"], left=r.left["red"], held=r.held["red"], sold=r.sold["red"])

    async def used(self, buyer: str) -> int:
        """What the buyer has used of the limit."""
        return int(await tell(self.store, "HGET", self.part.keys.used, f"b:{buyer}") or 0)

    async def carry(self) -> None:
        """Every message for the store that is due is carried there."""
        while await self.relay.step():
            pass

    async def close(self) -> None:
        await self.relay.run_down()
        await self.store.close()


def way_to(flow: Flow, goal: Step) -> list[str]:
    """Actions from the first state to the state of a step; with a request for a refund, if it is about one."""
    todo: list[tuple[str, list[Step]]] = [(flow.first, [])]
    seen = {flow.first}
    for state, trail in todo:
        if state == goal.state:
            words = [s.action for s in trail]
            if goal.action == "reject_refund":
                states = [s.state for s in trail] + [state]
                asked = next(n for n, s in enumerate(states) if flow.step(s, "request_refund"))
                words.insert(asked, "ask")
            return words
        for step in flow.steps:
            if step.state == state and step.to not in seen:
                seen.add(step.to)
                todo.append((step.to, [*trail, step]))
    raise AssertionError(f"no way to {goal}")
