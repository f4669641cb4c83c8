"""Moves of single orders along their flow: by people, by payments. The ledger decides; the relay tells the others.

Of two moves out of one state the first to commit wins, and the other one looks again: what it wanted may still be
allowed from where the order is now (a payment after an expiry is), or is refused with the list of what is.
"""

from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec import Struct

from core.errors import Conflicting, LedgerUnavailable, NotAllowed, OrderUnknown
from core.flows import FLOWS
from core.flows.table import Actor, Flow, Step
from core.ids import shard_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import CampaignSpec, Payment
from lua.keys import home_shards

TRIES = 5  # a move that loses so many races in a row is given back as a fault
MAX_TYPES = 10_000  # campaigns whose order type is remembered


class Moved(Struct, frozen=True):
    """An order after a call: its state and version, and whether this very call moved it."""

    state: str
    version: int
    moved: bool


class TraceStep(Struct, frozen=True, omit_defaults=True):
    """One step of an order: a move along its flow, or the delivery of a message. Durations in ms."""

    at: datetime
    kind: str  # move or delivery
    what: str  # the action, or the topic
    actor: str
    reason: str
    waited_ms: int  # a move: since the one before; a delivery: since its message came to be
    version: int
    from_state: str | None = None
    to_state: str | None = None
    worked_ms: int = 0
    attempts: int = 1


class OrderDesk:
    """One per process; the pool is the caller's."""

    def __init__(self, ledger: Pool, shards: int) -> None:
        self._ledger = ledger
        self._shards = shards
        self._types: dict[str, str] = {}  # campaign -> order type; it never changes once there are orders

    async def act(self, order_id: bytes, action: str, actor: Actor, who: str, channel: str | None = None) -> Moved:
        """The order has made the step of `action`, by `who` (recorded as the actor, e.g. `channel:app`).

        `channel`: only an order of this channel is known. Raises: OrderUnknown, NotAllowed (with what is allowed),
        LedgerUnavailable.
        """
        for _ in range(TRIES):
            moved = await ask(partial(self._try, order_id, action, actor, who, channel))
            if moved is not None:
                return moved
        raise LedgerUnavailable(f"the order changed {TRIES} times while it was looked at")

    async def _try(self, order_id: bytes, action: str, actor: Actor, who: str, channel: str | None) -> Moved | None:
        async with self._ledger.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(query("order_state"), shard_of(order_id), UUID(order_id))
            if row is None or channel not in (None, row["channel"]):
                raise OrderUnknown("no such order")
            flow = await self._flow(connection, row["campaign"])
            step = flow.step(row["state"], action)
            if step is None or actor not in step.actors:
                raise NotAllowed(row["state"], action, flow.allowed(row["state"], actor))
            return await _make(connection, order_id, step, who)

    async def pay(self, payment: Payment, order_id: bytes) -> Moved:
        """The payment is on record once per its serial number, and the order has made its step, once.

        Paid in time: `pay`. After an expiry or a cancel: also `pay`, which leads to the refund. An order that is paid
        already keeps its state; the second payment is on record and is paid back.

        Raises: OrderUnknown; Conflicting if the number was used otherwise, or amount or currency are not the order's;
        LedgerUnavailable.
        """
        for _ in range(TRIES):
            moved = await ask(partial(self._try_pay, payment, order_id))
            if moved is not None:
                return moved
        raise LedgerUnavailable(f"the order changed {TRIES} times while it was paid")

    async def _try_pay(self, payment: Payment, order_id: bytes) -> Moved | None:
        shard, uuid = shard_of(order_id), UUID(order_id)
        async with self._ledger.acquire() as connection, connection.transaction():
            order = await connection.fetchrow(query("order_state"), shard, uuid)
            if order is None:
                raise OrderUnknown("no such order")
            if (payment.amount, payment.currency) != (order["amount"], order["currency"]):
                wanted = f"{order['amount']} {order['currency']}"
                raise Conflicting(f"{payment.amount} {payment.currency} was paid, the order is of {wanted}", "amount")
            found = await connection.fetchrow(
                query("put_payment"), shard, payment.payment_no, uuid,
                payment.status, payment.amount, payment.currency, payment.paid_at,
            )  # fmt: skip
            if found is None:
                return None  # recorded by somebody whose transaction we cannot see yet: look again
            said = (found["order_id"].bytes, found["status"], found["amount"], found["currency"])
            if said != (order_id, payment.status, payment.amount, payment.currency):
                raise Conflicting(f"payment {payment.payment_no} was reported otherwise before", "payment_no")
            here = Moved(order["state"], order["version"], False)
            if not found["fresh"]:
                return here
            flow = await self._flow(connection, order["campaign"])
            step = _payment_step(flow, order["state"], payment.status)
            if step is None:
                return here  # a failed payment of an order that waits for none
            moved = await _make(connection, order_id, step, f"payment:{payment.payment_no}")
            if moved is None:
                raise asyncpg.SerializationError("the order moved meanwhile")  # undoes the record; `ask` tries again
            return moved

    async def trace(self, order_id: bytes, channel: str | None = None) -> list[TraceStep]:
        """Every step of an order, the oldest first. Raises: OrderUnknown, LedgerUnavailable."""
        shard, uuid = shard_of(order_id), UUID(order_id)
        row = await ask(lambda: self._ledger.fetchrow(query("order_state"), shard, uuid))
        if row is None or channel not in (None, row["channel"]):
            raise OrderUnknown("no such order")
        rows = await ask(lambda: self._ledger.fetch(query("trace_order"), shard, uuid))
        return [TraceStep(**dict(r)) for r in rows]

    async def _flow(self, connection: Any, campaign: str) -> Flow:
        known = self._types.get(campaign)
        if known is None:
            first = home_shards(campaign, 1, self._shards)[0]
            row = await connection.fetchrow(query("get_campaign"), first, campaign)
            known = msgspec.json.decode(row["spec"], type=CampaignSpec).order_type
            if len(self._types) >= MAX_TYPES:
                self._types.clear()
            self._types[campaign] = known
        return FLOWS[known]


def _payment_step(flow: Flow, state: str, status: str) -> Step | None:
    """What a payment does to an order; one that is paid already keeps its state, and the second money goes back."""
    if status == "failed":
        return flow.step(state, "pay_failed")
    return flow.step(state, "pay") or flow.step(state, "pay_again")


async def _make(connection: Any, order_id: bytes, step: Step, who: str) -> Moved | None:
    """The step is made; None if the order is in another state by now."""
    rows = await connection.fetch(
        query("move_orders"), shard_of(order_id), [UUID(order_id)],
        step.state, step.to, step.action, who, step.reason, list(step.messages),
    )  # fmt: skip
    return Moved(step.to, rows[0]["version"], True) if rows else None
