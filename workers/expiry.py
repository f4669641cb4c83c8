"""The expiry worker: what time alone brings about, to the second and in bounded batches. Orders whose time to pay has
passed are expired; shipped ones whose receipt nobody confirms are taken as received; received ones whose after-sales
window is over are completed.

Any number of them share the work: rows that one works on are passed over by the others.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial

from core.desk.orders import OrderDesk
from core.errors import LedgerUnavailable, NotAllowed
from core.flows import FLOWS
from core.flows.table import Step
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.tracing import Tracer
from workers.idle import Idle
from workers.pulse import Pulse
from workers.traces import moved

logger = logging.getLogger("rushgate.expiry")

BATCH = 500  # orders in one transaction
LOOK_S = 0.2  # between two looks when nothing is due
AWAY_S = 1.0  # between two looks while the ledger is away


def expiry_step() -> Step:
    """The step that ends an order which is not paid in time. Raises ValueError if the flows differ in it."""
    return _only("pay_by_passed", "accepted")


def completion_step() -> Step:
    """The step that ends an after-sales window. Raises ValueError if the flows that have one differ in it."""
    return _only("after_sales_over", "received")


def receipt_step() -> Step:
    """The step that takes a shipped order as received. Raises ValueError if the flows that have one differ in it."""
    return _only("delivery_over", "shipped")


def _only(guard: str, state: str) -> Step:
    """The step of this guard, out of the state that the worker's statement and its index name."""
    steps = {step for flow in FLOWS.values() for step in flow.steps if step.guard == guard}
    if len(steps) != 1 or {(s.state, s.actors) for s in steps} != {(state, ("system",))}:
        raise ValueError(f"the flows differ in the step {guard}, or it is not one of the system out of {state}")
    return steps.pop()


class ExpiryWorker:
    """Expires, receives and completes orders of all shards of a deployment."""

    def __init__(self, ledger: Pool, shards: Sequence[int], tracer: Tracer | None = None) -> None:
        self._ledger = ledger
        self._shards = list(shards)
        self._expiry = expiry_step()
        self._receipt = receipt_step()
        self._completion = completion_step()
        self._desk = OrderDesk(ledger, len(self._shards))
        self._stopping = asyncio.Event()
        self.idle = Idle()
        self.pulse = Pulse()
        self._tracer = tracer
        self.expired = 0  # orders, by this worker
        self.received = 0  # orders, by this worker
        self.completed = 0  # orders, by this worker
        self.late_s = 0.0  # behind the deadline, of the latest order expired or completed

    def stop(self) -> None:
        """The run ends after the batch in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until `stop`, through every absence of the ledger."""
        while not self._stopping.is_set():
            try:
                moved = await self.step()
                self.pulse.beat()
                pause_s = 0.0 if moved else LOOK_S
            except LedgerUnavailable as exc:
                logger.warning("expiry waits", extra={"why": exc.detail})
                pause_s = AWAY_S
            if pause_s:
                with self.idle.waiting(), contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def step(self) -> int:
        """One round over the shards that have something due, a batch each. Returns the orders moved by it.

        Raises: LedgerUnavailable; what was moved stays so.
        """
        before = self.expired + self.received + self.completed
        rows = await ask(lambda: self._ledger.fetch(query("due_shards"), self._shards))
        for row in rows:
            if self._stopping.is_set():
                break
            # Expiry first: units wait for it.
            if row["expire"]:
                self.expired += await self._move(query("expire_orders"), row["shard"], self._expiry)
            if row["receive"]:
                self.received += await self._receive(row["shard"])
            if row["complete"]:
                self.completed += await self._move(query("complete_orders"), row["shard"], self._completion)
        return self.expired + self.received + self.completed - before

    async def _receive(self, shard: int) -> int:
        """One by one: what comes next for an order, and when, is its campaign's affair. They are few a second."""
        rows = await ask(lambda: self._ledger.fetch(query("due_receipts"), shard, BATCH))
        done = 0
        for row in rows:
            if self._stopping.is_set():
                break
            try:
                await self._desk.act(row["order_id"].bytes, self._receipt.action, "system", "system")
                done += 1
            except NotAllowed:
                continue  # somebody said so meanwhile
        return done

    async def _move(self, statement: str, shard: int, step: Step) -> int:
        began_ns, tracer = time.time_ns(), self._tracer
        values = shard, BATCH, step.to, step.action, "system", step.reason, list(step.messages)
        row = await ask(partial(self._ledger.fetchrow, statement, *values))
        assert row is not None  # noqa: S101 - an aggregate has a row
        self.late_s = max(self.late_s, row["late_s"])
        if tracer is not None and row["traced"]:
            traced = [(order_id.bytes, text) for order_id, text in zip(row["traced"], row["traces"], strict=True)]
            moved(tracer, step.action, began_ns, row["moved"], traced)
        return int(row["moved"])
