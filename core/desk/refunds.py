"""Money that goes back: requests in part or whole, their review, and the payment centre's word that it is done.

A refund is called `req_<version>` while it is a request and `ref_<version>` once it is approved: the version of the
order at its message `refund`, so relay, payment centre and callback find it by order and number. The number is unique
within its order only; callbacks name both.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec.structs import replace

from core.desk.moves import Moved, Moves, Order, Owner, advance, make, settle_refunds, totals
from core.desk.shares import amount_shares, sum_by_sku, unit_shares
from core.errors import Conflicting, Fault, NotAllowed, OrderUnknown, Refused
from core.flows import REFUND
from core.flows.table import Actor
from core.ids import shard_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import OrderLine, Payment, Refund, RefundRequest, RefundShare, minor

MAX_ASKED = 20  # requests of one order that wait for a review
MAX_REFUNDS = 200  # of one order, whatever became of them


class RefundUnknown(Fault):
    """The order has no refund of this number."""

    status = 404
    code = "unknown_refund"


class RefundDesk:
    """One per process; the pool is the caller's."""

    def __init__(self, ledger: Pool, shards: int) -> None:
        self._ledger = ledger
        self._moves = Moves(ledger, shards)

    async def request(
        self, order_id: bytes, wanted: RefundRequest, actor: Actor, who: str, owner: Owner | None
    ) -> Refund:
        """A request is on record for review; the same one again, while it waits, is that one.

        Raises: OrderUnknown, NotAllowed; Conflicting if more is asked than is left; Refused if too many wait;
        LedgerUnavailable.
        """

        async def work(connection: Any, order: Order) -> Refund:
            step = order.step("request_refund", actor)
            known = await _refunds(connection, order.shard, order.uuid)
            left = (await totals(connection, order)).left
            for refund in known:
                if refund.state == "requested" and _same(refund, wanted, left):
                    return replace(refund, repeated=True)
            amount, lines = await _priced(connection, order, wanted, known, left)
            if sum(r.state == "requested" for r in known) >= MAX_ASKED:
                raise Refused("too many refunds of this order wait for a review")
            moved = await make(connection, order, step, who)
            number = f"req_{moved.version}"
            await _put(connection, order, number, amount, "requested", wanted.reason, lines, number)
            return await _refund(connection, order, number)

        return await self._moves.run(order_id, owner, work)

    async def grant(self, order_id: bytes, wanted: RefundRequest, who: str) -> Refund:
        """An operator's refund without a request: approved and asked of the payment centre.

        The same one again (units or amount, and reason), until the centre has reported it done, is that one. All that
        is left is another sum each time; it is a repeat where nothing is left.

        Raises: OrderUnknown, NotAllowed; Conflicting if it is more than is left; Refused if there are too many;
        LedgerUnavailable.
        """

        async def work(connection: Any, order: Order) -> Refund:
            step = order.step("refund", "operator")
            known = await _refunds(connection, order.shard, order.uuid)
            left = (await totals(connection, order)).left
            reason = wanted.reason or step.reason
            for refund in reversed(known):
                mine = refund.state == "approved" and refund.request_no is None and refund.reason == reason
                if mine and _same(refund, wanted, 0 if left else refund.amount):
                    return replace(refund, repeated=True)
            amount, lines = await _priced(connection, order, wanted, known, left)
            moved = await advance(connection, order, step, who, list(step.messages))
            number = f"ref_{moved.version}"
            await _put(connection, order, number, amount, "approved", reason, lines, None)
            return await _refund(connection, order, number)

        return await self._moves.run(order_id, None, work)

    async def approve(self, order_id: bytes, number: str, who: str) -> Refund:
        """The refund is approved and asked of the payment centre; again, it is as it is.

        Raises: OrderUnknown, RefundUnknown, NotAllowed; Conflicting if more was approved meanwhile than leaves room
        for it; LedgerUnavailable.
        """

        async def work(connection: Any, order: Order) -> Refund:
            refund = await _refund(connection, order, number)
            if refund.state in ("approved", "done"):
                return refund
            _check(refund, "approve")
            step = order.step("refund", "operator")
            left = (await totals(connection, order)).left
            if refund.amount > left:
                raise Conflicting(f"{minor(left, order.currency)} can still be paid back", "amount")
            moved = await advance(connection, order, step, who, list(step.messages))
            booked = f"ref_{moved.version}"
            await _decide(connection, order, refund, booked, "approved")
            return await _refund(connection, order, booked)

        return await self._moves.run(order_id, None, work)

    async def reject(self, order_id: bytes, number: str, who: str) -> Refund:
        """The refund is rejected; again, it is as it is. Raises: as `approve`, but for Conflicting."""

        async def work(connection: Any, order: Order) -> Refund:
            refund = await _refund(connection, order, number)
            if refund.state == "rejected":
                return refund
            _check(refund, "reject")
            await make(connection, order, order.step("reject_refund", "operator"), who)
            await _decide(connection, order, refund, refund.refund_no, "rejected")
            return await _refund(connection, order, refund.refund_no)

        return await self._moves.run(order_id, None, work)

    async def confirm(self, order_id: bytes, number: str, who: str) -> Refund:
        """The refund is done on an operator's word, for a payment centre that paid back and never said so; an order
        that only waited for it is refunded. Again, or reported by the centre later, it is as it is.

        Raises: as `reject`.
        """

        async def work(connection: Any, order: Order) -> Refund:
            refund = await _refund(connection, order, number)
            if refund.state != "done":
                _check(refund, "done")
                # Asked no more of a payment centre that has paid back already, not even by a replay.
                version = int(refund.refund_no.removeprefix("ref_"))
                await connection.execute(query("end_refund_message"), order.shard, order.uuid, version)
                await _finish(connection, order, refund.refund_no, datetime.now(UTC), who)
            return await _refund(connection, order, refund.refund_no)

        return await self._moves.run(order_id, None, work)

    async def list(self, order_id: bytes, owner: Owner | None) -> list[Refund]:
        """The refunds of an order, the oldest first. Raises: OrderUnknown, LedgerUnavailable."""
        shard, uuid = shard_of(order_id), UUID(order_id)
        row = await ask(partial(self._ledger.fetchrow, query("order_state"), shard, uuid))
        if row is None or not (owner is None or owner.has_row(row)):
            raise OrderUnknown("no such order")
        return await ask(partial(_refunds, self._ledger, shard, uuid))


async def repaid(connection: Any, order: Order, payment: Payment) -> Moved:
    """The refund that the payment centre reports is done, once; an order that only waited for it is refunded.

    Raises: Conflicting if we asked for no such refund, or for another amount.
    """
    known = await _refunds(connection, order.shard, order.uuid)
    refund = next((r for r in known if r.refund_no == payment.payment_no), None)
    if refund is None or refund.state not in ("approved", "done"):
        raise Conflicting(f"no refund {payment.payment_no} of this order was asked for", "payment_no")
    if (payment.amount, payment.currency) != (refund.amount, refund.currency):
        told, wanted = minor(payment.amount, payment.currency), minor(refund.amount, refund.currency)
        raise Conflicting(f"{told} was paid back, not {wanted}", "amount")
    if refund.state == "done":
        return order.here()
    moved = await _finish(connection, order, refund.refund_no, payment.paid_at, f"payment:{refund.refund_no}")
    return moved.here(moved.version != order.version)


async def _finish(connection: Any, order: Order, number: str, at: datetime, who: str) -> Order:
    await connection.execute(query("finish_refund"), order.shard, order.uuid, number, at)
    return await settle_refunds(connection, order, who)


def _check(refund: Refund, action: str) -> None:
    """Raises NotAllowed unless an operator may do this with it now; `done` is the call `confirm`."""
    allowed = REFUND.allowed(refund.state, "operator")
    if action not in allowed:
        calls = {"done": "confirm"}
        named = [calls.get(a, a) for a in allowed]
        raise NotAllowed(refund.state, calls.get(action, action), named, noun="a refund")


async def _decide(connection: Any, order: Order, refund: Refund, number: str, state: str) -> None:
    await connection.execute(query("decide_refund"), order.shard, order.uuid, refund.refund_no, number, state)


async def _refunds(connection: Any, shard: int, uuid: UUID) -> list[Refund]:
    rows = await connection.fetch(query("order_refunds"), shard, uuid)
    return [as_refund(dict(r)) for r in rows]


def as_refund(row: Mapping[str, Any]) -> Refund:
    """A row of order_refunds.sql."""
    return Refund(**{**row, "lines": row["lines"] and msgspec.json.decode(row["lines"], type=list[RefundShare])})


async def _refund(connection: Any, order: Order, number: str) -> Refund:
    """By the number it has, or had as a request. Raises RefundUnknown."""
    for refund in await _refunds(connection, order.shard, order.uuid):
        if number in (refund.refund_no, refund.request_no):
            return refund
    raise RefundUnknown("the order has no such refund")


def _same(refund: Refund, wanted: RefundRequest, left: int) -> bool:
    """Whether a refund is of the same units, or of the same amount where no units are named."""
    units = {sku: count for sku, count in sum_by_sku(refund.lines or []).items() if count}
    if wanted.lines is not None:
        return units == sum_by_sku(wanted.lines)
    return not units and refund.lines is not None and refund.amount == _amount(wanted, left)


def _amount(wanted: RefundRequest, left: int) -> int:
    """Of a refund without units: all that is left, unless it says how much."""
    return left if wanted.amount is None else wanted.amount


async def _priced(
    connection: Any, order: Order, wanted: RefundRequest, known: list[Refund], left: int
) -> tuple[int, list[RefundShare]]:
    """What a refund comes to, in all and line by line; it fits.

    Raises: Conflicting if more money or more units are asked for than are left; Refused if there are too many refunds.
    """
    lines = [OrderLine(**row) for row in await connection.fetch(query("order_lines"), order.shard, order.uuid)]
    if wanted.lines is None:
        amount = _amount(wanted, left)
    else:
        taken = [share for refund in known if refund.state != "rejected" for share in refund.lines or []]
        shares = unit_shares(lines, order.amount, wanted.lines, taken)
        amount = sum(s.amount for s in shares)
    if not 0 < amount <= left:
        raise Conflicting(f"{minor(left, order.currency)} can still be paid back", "amount")
    if len(known) >= MAX_REFUNDS:
        raise Refused("too many refunds of this order were asked for")
    return amount, shares if wanted.lines is not None else amount_shares(lines, order.amount, amount)


async def _put(
    connection: Any, order: Order, number: str, amount: int, state: str, reason: str, lines: list[RefundShare],
    request_no: str | None,
) -> None:  # fmt: skip
    await connection.execute(
        query("put_refund"), order.shard, order.uuid, number, amount, order.currency, state, reason,
        msgspec.json.encode(lines).decode(), request_no,
    )  # fmt: skip
