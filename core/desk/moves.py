"""One step of one order, under the lock of its row: checked against its flow, made, and its money booked with it.

A transaction that moves, pays or pays back an order holds the order's row from its first statement. So sums of payments
and refunds are exact while it works, and whoever waited for the row decides by what the order is then.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec import Struct

from core.errors import NotAllowed, OrderUnknown
from core.flows import FLOWS
from core.flows.table import Actor, Flow, Step
from core.ids import shard_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import CampaignSpec
from lua.keys import home_shards

MAX_SPECS = 1_000  # campaigns whose definition is remembered

T = TypeVar("T")


class Owner(NamedTuple):
    """Whose orders a caller knows: a channel's, or of those one buyer's in one campaign."""

    channel: str
    buyer_id: str | None = None  # None = all buyers
    campaign: str | None = None  # None = all campaigns

    def has(self, channel: str, buyer_id: str, campaign: str) -> bool:
        """Whether an order is theirs."""
        return channel == self.channel and self.buyer_id in (None, buyer_id) and self.campaign in (None, campaign)

    def has_row(self, row: Any) -> bool:
        """As `has`, of the ledger's row of an order."""
        return self.has(row["channel"], row["buyer_id"], row["campaign"])


class Moved(Struct, frozen=True):
    """An order after a call: its state and version, and whether this very call moved it."""

    state: str
    version: int
    moved: bool


class Order(NamedTuple):
    """An order whose row this transaction has locked."""

    shard: int
    uuid: UUID
    state: str
    version: int
    campaign: str
    channel: str
    buyer_id: str
    amount: int
    currency: str
    flow: Flow
    spec: CampaignSpec  # of its campaign, of which only what never changes once there are orders is true

    def here(self, moved: bool = False) -> Moved:
        """The answer of a call that leaves the order here."""
        return Moved(self.state, self.version, moved)

    def step(self, action: str, actor: Actor) -> Step:
        """The step of `action` from here. Raises NotAllowed with what `actor` may do."""
        step = self.flow.step(self.state, action)
        if step is None or actor not in step.actors:
            raise NotAllowed(self.state, action, self.flow.allowed(self.state, actor))
        return step


class Totals(NamedTuple):
    """The money of an order in minor units, and its requests."""

    paid: int
    booked: int  # refunds approved or done
    due: int  # refunds approved and not done
    asked: int  # requests to be reviewed

    @property
    def left(self) -> int:
        """What was paid and is not on its way back."""
        return self.paid - self.booked


class Moves:
    """Locks orders and makes steps; one per desk. It knows the flow of each campaign."""

    def __init__(self, ledger: Pool, shards: int) -> None:
        self._ledger = ledger
        self._shards = shards
        # Campaign -> its definition, of which only what never changes once there are orders is used.
        self._specs: dict[str, CampaignSpec] = {}

    async def run(self, order_id: bytes, owner: Owner | None, work: Callable[[Any, Order], Awaitable[T]]) -> T:
        """What `work(connection, order)` gives, in one transaction that holds the order.

        `owner`: only an order of theirs is known (None: all). Raises: OrderUnknown, LedgerUnavailable.
        """
        return await ask(partial(self._run, order_id, owner, work))

    async def _run(self, order_id: bytes, owner: Owner | None, work: Callable[[Any, Order], Awaitable[T]]) -> T:
        async with self._ledger.acquire() as connection, connection.transaction():
            shard, uuid = shard_of(order_id), UUID(order_id)
            row = await connection.fetchrow(query("lock_order"), shard, uuid)
            if row is None or not (owner is None or owner.has_row(row)):
                raise OrderUnknown("no such order")
            spec = await self._spec(connection, row["campaign"])
            return await work(connection, Order(shard, uuid, flow=FLOWS[spec.order_type], spec=spec, **dict(row)))

    async def _spec(self, connection: Any, campaign: str) -> CampaignSpec:
        known = self._specs.get(campaign)
        if known is None:
            first = home_shards(campaign, 1, self._shards)[0]
            row = await connection.fetchrow(query("get_campaign"), first, campaign)
            known = msgspec.json.decode(row["spec"], type=CampaignSpec)
            if len(self._specs) >= MAX_SPECS:
                self._specs.clear()
            self._specs[campaign] = known
        return known


async def totals(connection: Any, order: Order) -> Totals:
    """The money of a locked order."""
    return Totals(**dict(await connection.fetchrow(query("order_totals"), order.shard, order.uuid)))


async def make(connection: Any, order: Order, step: Step, who: str, pay_back: int | None = None) -> Order:
    """The step is made with its event and messages, and what its message `refund` asks back is on record.

    `pay_back`: so much goes back; None: all that was paid and is not on its way back yet. Where nothing is left to pay
    back there is no such message, and an order that only waits for it is refunded at once.
    """
    messages = list(step.messages)
    if "refund" in messages:
        if pay_back is None:
            pay_back = (await totals(connection, order)).left
        if pay_back <= 0:
            messages.remove("refund")
    moved = await advance(connection, order, step, who, messages)
    if "refund" in messages:
        await connection.execute(
            query("put_refund"), order.shard, order.uuid, f"ref_{moved.version}", pay_back, order.currency, "approved",
            step.reason, None, None,
        )  # fmt: skip
    if step.to == "refund_pending" != step.state:
        lapsed = "rejected", "covered_by_full_refund"
        await connection.execute(query("lapse_refunds"), order.shard, order.uuid, *lapsed)
        moved = await settle_refunds(connection, moved, "payment:none")
    return moved


async def advance(connection: Any, order: Order, step: Step, who: str, messages: list[str]) -> Order:
    """The step is made, with these messages; money is the caller's affair."""
    rows = await connection.fetch(
        query("move_orders"), order.shard, [order.uuid],
        step.state, step.to, step.action, who, step.reason, messages, _timer_s(order, step), None,
    )  # fmt: skip
    if not rows:
        raise asyncpg.SerializationError("the order moved in spite of its lock")  # undone, and tried again
    return order._replace(state=step.to, version=rows[0]["version"])


def _timer_s(order: Order, step: Step) -> int | None:
    """How long after this step time moves the order on; None: it does not, or its timer runs on."""
    if step.to == step.state:
        return None
    guards = {s.guard for s in order.flow.steps if s.state == step.to}
    if "delivery_over" in guards:
        return order.spec.delivery_within_s
    return order.spec.after_sales_s if "after_sales_over" in guards else None


async def settle_refunds(connection: Any, order: Order, who: str) -> Order:
    """An order that waits for its money is refunded when none is due any more."""
    step = order.flow.step(order.state, "refunded")
    if step is None or (await totals(connection, order)).due:
        return order
    return await make(connection, order, step, who)


class Event(Struct, frozen=True, omit_defaults=True):
    """One move of an order."""

    version: int
    at: datetime
    action: str
    to_state: str
    actor: str
    reason: str = ""
    from_state: str | None = None
