"""The whole story of one order, from ledger and store, as an operator wants it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec import Struct
from redis.exceptions import RedisError

from core.desk.moves import Moved
from core.desk.orders import TraceStep
from core.desk.refunds import as_refund
from core.errors import Fault, LedgerUnavailable, OrderUnknown, StoreUnavailable
from core.flows import FLOWS
from core.flows.table import MACHINES, PEOPLE, Flow
from core.ids import shard_of, text_of
from core.ledger.pool import ask
from core.ledger.queries import query
from core.model import OrderLine, OrderView, Refund, ShipTo
from core.trace_context import trace_id_of
from core.wire import has_units, read_hold, trace_of_hold
from gateway.catalogue import Catalogue
from gateway.lookup import Lookup
from lua.keys import sale_keys
from ops.desk import Desk

MESSAGES = 100  # of one order, that wait or are dead


class PaymentSeen(Struct, frozen=True):
    """A payment as the payment centre reported it. Minor units."""

    payment_no: str
    status: str
    amount: int
    currency: str
    paid_at: datetime
    at: datetime  # when it came


class Waiting(Struct, frozen=True):
    """A message in the outbox."""

    topic: str
    version: int
    at: datetime
    due_at: datetime  # next try
    attempts: int
    error: str | None


class Dead(Struct, frozen=True):
    """A message that nobody could deliver."""

    topic: str
    version: int
    at: datetime
    dead_at: datetime
    attempts: int
    reason: str


class Repair(Struct, frozen=True):
    """What the reconcile worker did with the order's hold."""

    at: datetime
    what: str
    why: str


class Story(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All there is of an order; what is left out is empty or not known."""

    order: OrderView
    order_type: str
    name: str  # of the state, as operators call it
    allowed: dict[str, list[str]]  # actor -> actions; none while the order is on its way to the ledger
    in_ledger: bool
    hold: str  # in the store: units, no units yet, none, or why that is not known
    trace_id: str = ""  # as W3C Trace Context has it
    note: str = ""  # why it is not in the ledger, if it is not
    ended: bool = False
    request_key: str = ""
    client_ip: str = ""
    device_id: str = ""
    epoch: int | None = None
    seq: int | None = None
    timer_at: datetime | None = None
    steps: list[TraceStep] = []
    payments: list[PaymentSeen] = []
    refunds: list[Refund] = []
    waiting: list[Waiting] = []
    dead: list[Dead] = []
    repairs: list[Repair] = []


@asynccontextmanager
async def looking(desk: Desk, shards: int) -> AsyncIterator[tuple[Catalogue, Lookup]]:
    """What finds orders that the ledger does not have yet."""
    catalogue = Catalogue(desk.store, desk.ledger, shards)
    lookup = Lookup(catalogue, desk.store, desk.ledger)
    try:
        yield catalogue, lookup
    finally:
        await lookup.stop()


async def read_story(desk: Desk, shards: int, order_id: bytes) -> Story:
    """The story as it stands; from the store alone if the ledger does not have the order, or is away.

    Raises: OrderUnknown; LedgerUnavailable if the store does not have the order either.
    """
    try:
        known = await ask(partial(_from_ledger, desk, order_id))
        away = ""
    except LedgerUnavailable as exc:
        known, away = None, exc.detail
    if known is None:
        async with looking(desk, shards) as (catalogue, lookup):
            view = await lookup.find(order_id)
            if view is None:
                raise await _nowhere(desk, order_id)
            if not away:
                known = await ask(partial(_from_ledger, desk, order_id))  # it may have arrived meanwhile
            if known is None:
                spec = (await catalogue.get(view.campaign)).spec
                note = f"the ledger is away: {away}" if away else await _why_absent(desk, order_id)
                return await _story(desk, order_id, view, spec.order_type, in_ledger=False, note=note)
    view, more = known
    order_type = (await desk.campaigns.show(view.campaign)).spec.order_type
    return await _story(desk, order_id, view, order_type, in_ledger=True, **more)


async def _story(desk: Desk, order_id: bytes, view: OrderView, order_type: str, **more: Any) -> Story:
    flow, held, trace = FLOWS[order_type], await _hold(desk, order_id, view.campaign), more.pop("trace", None)
    allowed = {a: flow.allowed(view.state, a) for a in (*PEOPLE, *MACHINES)} if more["in_ledger"] else {}
    return Story(
        order=view,
        order_type=order_type,
        name=flow.name(view.state, "operator"),
        allowed={actor: actions for actor, actions in allowed.items() if actions},
        ended=view.state in flow.ends,
        hold=_hold_in_words(held),
        trace_id=trace_id_of(order_id, trace or (trace_of_hold(held) if isinstance(held, bytes) else None)),
        **more,
    )


async def _from_ledger(desk: Desk, order_id: bytes) -> tuple[OrderView, dict[str, Any]] | None:
    """All of it as of one moment; None: the ledger does not have the order."""
    key = shard_of(order_id), UUID(order_id)
    async with (
        desk.ledger.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        row = await connection.fetchrow(query("order_head"), *key)
        if row is None:
            return None
        head = dict(row)
        lines = [OrderLine(**r) for r in await connection.fetch(query("order_lines"), *key)]
        more: dict[str, Any] = {k: head.pop(k) for k in ("request_key", "client_ip", "device_id", "epoch", "seq")}
        more["timer_at"], ship_to = head.pop("timer_at"), head.pop("ship_to")
        head["ship_to"] = ship_to and msgspec.json.decode(ship_to, type=ShipTo)
        found: dict[str, list[asyncpg.Record]] = {
            "steps": await connection.fetch(query("trace_order"), *key),
            "payments": await connection.fetch(query("order_payments"), *key),
            "refunds": await connection.fetch(query("order_refunds"), *key),
            "waiting": await connection.fetch(query("list_outbox"), *key, None, MESSAGES),
            "dead": await connection.fetch(query("list_dead_messages"), *key, None, MESSAGES),
            "repairs": await connection.fetch(query("order_repairs"), *key),
        }
        more["trace"] = await connection.fetchval(query("order_trace"), *key)
    more["steps"] = [TraceStep(**r) for r in found["steps"]]
    more["payments"] = [PaymentSeen(**r) for r in found["payments"]]
    more["refunds"] = [as_refund(dict(r)) for r in found["refunds"]]
    more["waiting"] = [Waiting(**_fields(r, Waiting)) for r in found["waiting"]]
    more["dead"] = [Dead(**_fields(r, Dead)) for r in found["dead"]]
    more["repairs"] = [Repair(**r) for r in found["repairs"]]
    discount = sum(line.quantity * line.price for line in lines) - head["amount"]
    return OrderView(order_id=text_of(order_id), items=lines, discount=discount, **head), more


def _fields(row: asyncpg.Record, kind: type[Struct]) -> dict[str, Any]:
    return {name: row[name] for name in kind.__struct_fields__}


async def _why_absent(desk: Desk, order_id: bytes) -> str:
    """Why the ledger does not have an order that the store holds, or held."""
    letter = await _letter(desk, order_id)
    return letter or "in the store, on its way to the ledger"


async def _letter(desk: Desk, order_id: bytes) -> str:
    """How the order was set aside, if it was."""
    row = await ask(lambda: desk.ledger.fetchrow(query("order_letters"), shard_of(order_id), UUID(order_id)))
    if row is None:
        return ""
    if row["dropped_at"] is None:
        return f"set aside, not in the ledger: {row['reason']} (rushgate dead-letters replay)"
    when = row["dropped_at"].astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"given up by an operator at {when}, set aside before that: {row['reason']}"


async def _nowhere(desk: Desk, order_id: bytes) -> OrderUnknown:
    """What to say of an order that neither ledger nor store has."""
    letter = await _letter(desk, order_id)
    if letter:
        return OrderUnknown(f"order {text_of(order_id)} was {letter}")
    return OrderUnknown(f"no order {text_of(order_id)}: neither ledger nor store has it")


async def _hold(desk: Desk, order_id: bytes, campaign: str) -> bytes | str | None:
    """What the store holds for the order; a text says why that is not known."""
    try:
        [found] = await desk.store.exchange([("HGET", sale_keys(shard_of(order_id), campaign).holds, order_id)])
    except StoreUnavailable as exc:
        return f"not known: {exc.detail}"
    if isinstance(found, RedisError):
        return f"not known: the store answers {found}"
    return None if found is None else bytes(found)


def _hold_in_words(found: bytes | str | None) -> str:
    if found is None or isinstance(found, str):
        return found or "none"
    units = ", ".join(f"{quantity:,} × {sku}" for sku, quantity, _ in read_hold(found)[0].items)
    return units if has_units(found) else f"no units yet, of {units}"


async def explain_unknown(desk: Desk, shards: int, order_id: bytes) -> Fault:
    """Why the ledger does not know an order that an operator wants to move."""
    async with looking(desk, shards) as (_, lookup):
        if await lookup.find(order_id) is None:
            return await _nowhere(desk, order_id)
    return OrderUnknown(f"order {text_of(order_id)} is {await _why_absent(desk, order_id)}")


async def where_now(desk: Desk, order_id: bytes) -> tuple[Moved, Flow]:
    """Where an order that the ledger has stands, and its flow. Raises: OrderUnknown."""
    key = shard_of(order_id), UUID(order_id)
    row = await ask(lambda: desk.ledger.fetchrow(query("order_state"), *key))
    if row is None:
        raise OrderUnknown(f"no order {text_of(order_id)}")
    order_type = (await desk.campaigns.show(row["campaign"])).spec.order_type
    return Moved(row["state"], row["version"], False), FLOWS[order_type]
