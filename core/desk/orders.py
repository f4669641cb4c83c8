"""Moves of single orders along their flow: by people, partners and payments. The ledger decides; the relay tells.

Of two moves out of one state the first to commit wins, and the other one finds the order where it is then: what it
wanted may still be allowed from there (a payment after an expiry is), or is refused with the list of what is.
"""

from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec import Struct

from core.desk.moves import Event, Moved, Moves, Order, Owner, make, totals
from core.desk.refunds import repaid
from core.errors import Conflicting, NotAllowed, OrderUnknown, Refused
from core.flows.table import Actor, Flow, Step
from core.ids import shard_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import Payment, ShipTo, minor
from core.trace_context import TraceContext, context_of

__all__ = ["PARTNERS", "Event", "Moved", "OrderDesk", "Owner", "TraceStep"]

# Steps of an operator that say more than their name, and the call that says it.
OWN_CALLS = {
    "change": "change needs the new address: PATCH /v1/orders/{order_id}",
    "refund": "refund needs an amount or lines: POST /v1/orders/{order_id}/refunds, or `rushgate order refund`",
    "refunded": "refunded needs the refund's number: POST /v1/orders/{order_id}/refunds/{refund_no}/confirm, or "
    "`rushgate order confirm-refund`",
    "reject_refund": "reject_refund needs the refund's number: POST /v1/orders/{order_id}/refunds/{refund_no}/reject",
}
URGE_EVERY_S = 60.0  # between two urges that the merchant hears of

# Partner -> what it calls its deeds, beside the flow's own words for them.
PARTNERS: dict[Actor, dict[str, str]] = {
    "warehouse": {},
    "provisioning": {"provision": "provisioned", "unprovision": "unprovisioned"},
    "billing": {"bill": "billed", "unbill": "unbilled"},
}


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
        self._moves = Moves(ledger, shards)

    async def act(self, order_id: bytes, action: str, actor: Actor, who: str, owner: Owner | None = None) -> Moved:
        """The order has made the step of `action`, by `who` (recorded as the actor, e.g. `channel:app`).

        `owner`: only an order of theirs is known. Raises: OrderUnknown, NotAllowed (with what is allowed),
        Refused if a review is open that the step must wait for, LedgerUnavailable.
        """

        async def work(connection: Any, order: Order) -> Moved:
            return await _act(connection, order, action, actor, who)

        return await self._moves.run(order_id, owner, work)

    async def operate(self, order_id: bytes, action: str, who: str) -> Moved:
        """The order has made the step of `action`, by an operator. Raises: as `act`; NotAllowed with the call to use
        instead for a step that says more than its name."""

        async def work(connection: Any, order: Order) -> Moved:
            order.step(action, "operator")
            if action in OWN_CALLS:
                allowed = order.flow.allowed(order.state, "operator")
                raise NotAllowed(order.state, action, allowed, OWN_CALLS[action])
            return await _act(connection, order, action, "operator", who)

        return await self._moves.run(order_id, None, work)

    async def report(self, order_id: bytes, partner: Actor, action: str) -> Moved:
        """The order has made the step that a partner reports; a report that comes again changes nothing.

        Raises: OrderUnknown, NotAllowed, LedgerUnavailable.
        """
        action = PARTNERS[partner].get(action, action)

        async def work(connection: Any, order: Order) -> Moved:
            try:
                step = order.step(action, partner)
            except NotAllowed:
                # Only of the partner's own deeds: `cancel` by a warehouse is refused, whoever cancelled before.
                own = any(s.action == action and partner in s.actors for s in order.flow.steps)
                if own and await connection.fetchrow(query("last_event"), order.shard, order.uuid, action):
                    return order.here()
                raise
            return (await make(connection, order, step, partner)).here(True)

        return await self._moves.run(order_id, None, work)

    async def urge(self, order_id: bytes, actor: Actor, who: str, owner: Owner | None) -> Moved:
        """The merchant hears that the buyer waits, at most once a minute. Raises: as `act`."""

        async def work(connection: Any, order: Order) -> Moved:
            step = order.step("urge", actor)
            last = await connection.fetchrow(query("last_event"), order.shard, order.uuid, "urge")
            if last is not None and last["age_s"] < URGE_EVERY_S:
                return order.here()
            return (await make(connection, order, step, who)).here(True)

        return await self._moves.run(order_id, owner, work)

    async def change(self, order_id: bytes, ship_to: ShipTo, actor: Actor, who: str, owner: Owner | None) -> Moved:
        """The order goes to this address; the same one again changes nothing. Raises: as `act`."""

        async def work(connection: Any, order: Order) -> Moved:
            step = order.step("change", actor)
            new = msgspec.json.encode(ship_to).decode()
            if not await connection.fetchrow(query("change_ship_to"), order.shard, order.uuid, new):
                return order.here()
            return (await make(connection, order, step, who)).here(True)

        return await self._moves.run(order_id, owner, work)

    async def pay(self, payment: Payment, order_id: bytes) -> Moved:
        """The payment is on record once per its serial number, and the order has made its step, once.

        Paid in time: `pay`. After an expiry or a cancel: also `pay`, which leads to the refund. An order that is paid
        already keeps its state; the second payment is on record and is paid back. `refunded`: see `repaid`.

        Raises: OrderUnknown; Conflicting if the number was used otherwise, or amount or currency are not the order's;
        LedgerUnavailable.
        """

        async def work(connection: Any, order: Order) -> Moved:
            if payment.status == "refunded":
                return await repaid(connection, order, payment)
            if (payment.amount, payment.currency) != (order.amount, order.currency):
                told, wanted = minor(payment.amount, payment.currency), minor(order.amount, order.currency)
                field = "amount" if payment.amount != order.amount else "currency"
                raise Conflicting(f"{told} was paid, the order is of {wanted}", field)
            found = await connection.fetchrow(
                query("put_payment"), order.shard, payment.payment_no, order.uuid,
                payment.status, payment.amount, payment.currency, payment.paid_at,
            )  # fmt: skip
            if found is None:  # recorded for another order by somebody whose transaction this statement cannot see
                raise asyncpg.SerializationError("the payment was recorded meanwhile")  # undone, and tried again
            said = (found["order_id"].bytes, found["status"], found["amount"], found["currency"])
            if said != (order_id, payment.status, payment.amount, payment.currency):
                raise Conflicting(f"payment {payment.payment_no} was reported otherwise before", "payment_no")
            step = _payment_step(order.flow, order.state, payment.status)
            if not found["fresh"] or step is None:
                return order.here()  # known already, or a failed payment of an order that waits for none
            who = f"payment:{payment.payment_no}"
            return (await make(connection, order, step, who, payment.amount)).here(True)

        return await self._moves.run(order_id, None, work)

    async def trace(self, order_id: bytes, owner: Owner | None = None) -> list[TraceStep]:
        """Every step of an order, the oldest first. Raises: OrderUnknown, LedgerUnavailable."""
        shard, uuid = shard_of(order_id), UUID(order_id)
        row = await ask(lambda: self._ledger.fetchrow(query("order_state"), shard, uuid))
        if row is None or not (owner is None or owner.has_row(row)):
            raise OrderUnknown("no such order")
        rows = await ask(lambda: self._ledger.fetch(query("trace_order"), shard, uuid))
        return [TraceStep(**dict(r)) for r in rows]

    async def context(self, order_id: bytes) -> TraceContext:
        """The trace that an order belongs to; its own id, if nothing else is on record. Raises: LedgerUnavailable."""
        text = await ask(partial(self._ledger.fetchval, query("order_trace"), shard_of(order_id), UUID(order_id)))
        return context_of(order_id, text)

    async def events(self, order_id: bytes, after: int) -> list[Event]:
        """The moves of an order after a version, the oldest first. Raises: LedgerUnavailable."""
        rows = await ask(partial(self._ledger.fetch, query("events_after"), shard_of(order_id), UUID(order_id), after))
        return [Event(**dict(r)) for r in rows]


async def _act(connection: Any, order: Order, action: str, actor: Actor, who: str) -> Moved:
    step = order.step(action, actor)
    # `after_sales_over` is this and a time, which who acts as the system has looked at.
    reviewed = step.guard in ("no_open_review", "after_sales_over")
    if reviewed and (await totals(connection, order)).asked:
        raise Refused("a refund of this order is under review")
    return (await make(connection, order, step, who)).here(True)


def _payment_step(flow: Flow, state: str, status: str) -> Step | None:
    """What a payment does to an order; one that is paid already keeps its state, and the second money goes back."""
    if status == "failed":
        return flow.step(state, "pay_failed")
    return flow.step(state, "pay") or flow.step(state, "pay_again")
