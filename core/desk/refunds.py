"""Money that goes back: requests in part or whole, their review, and the payment centre's word that it is done.

A refund is called `req_<version>` while it is a request and `ref_<version>` once it is approved: the version of the
order at its message `refund`, so relay, payment centre and callback find it by order and number. The number is unique
within its order only; callbacks name both.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from asyncpg.pgproto.pgproto import UUID

from core.desk.moves import Moved, Moves, Order, advance, make, settle_refunds, totals
from core.errors import Conflicting, Fault, NotAllowed, OrderUnknown, Refused
from core.flows import REFUND
from core.flows.table import Actor
from core.ids import shard_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import Item, Payment, Refund, RefundRequest, RefundShare

MAX_ASKED = 20  # requests of one order that wait for a review
MAX_REFUNDS = 200  # of one order, whatever became of them


class RefundUnknown(Fault):
    """The order has no refund of this number."""

    status = 404
    code = "unknown_refund"


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts as `weights` have it, to the last minor unit: the parts add up to exactly `total`.

    Each part is its exact share rounded down or up; what is left over goes to the largest remainders, of equal ones to
    the first. A weight of 0 gets 0. Raises ValueError for anything negative, or if there is nobody to share among.
    """
    whole = sum(weights)
    if total < 0 or any(w < 0 for w in weights):
        raise ValueError("neither the total nor a weight may be negative")
    if whole == 0:
        if total:
            raise ValueError("there is something to share, and nobody to share it among")
        return [0] * len(weights)
    parts = [total * w // whole for w in weights]
    first = sorted(range(len(weights)), key=lambda n: (-(total * weights[n] % whole), n))
    for n in first[: total - sum(parts)]:
        parts[n] += 1
    return parts


class RefundDesk:
    """One per process; the pool is the caller's."""

    def __init__(self, ledger: Pool, shards: int) -> None:
        self._ledger = ledger
        self._moves = Moves(ledger, shards)

    async def request(
        self, order_id: bytes, wanted: RefundRequest, actor: Actor, who: str, channel: str | None
    ) -> Refund:
        """A request is on record for review; the same one again, while it waits, is that one.

        Raises: OrderUnknown, NotAllowed; Conflicting if more is asked than is left; Refused if too many wait;
        LedgerUnavailable.
        """

        async def work(connection: Any, order: Order) -> Refund:
            step = order.step("request_refund", actor)
            known = await _refunds(connection, order.shard, order.uuid)
            left = (await totals(connection, order)).left
            amount, lines = await _priced(connection, order, wanted, known, left)
            for refund in known:
                if refund.state == "requested" and (refund.amount, refund.lines) == (amount, lines):
                    return refund
            if not 0 < amount <= left:
                raise Conflicting(f"{left} {order.currency} can still be paid back", "amount")
            if sum(r.state == "requested" for r in known) >= MAX_ASKED or len(known) >= MAX_REFUNDS:
                raise Refused("too many refunds of this order were asked for")
            moved = await make(connection, order, step, who)
            number = f"req_{moved.version}"
            await connection.execute(
                query("put_refund"), order.shard, order.uuid, number, amount, order.currency, "requested",
                wanted.reason, msgspec.json.encode(lines).decode(), number,
            )  # fmt: skip
            return await _refund(connection, order, number)

        return await self._moves.run(order_id, channel, work)

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
                raise Conflicting(f"{left} {order.currency} can still be paid back", "amount")
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

    async def list(self, order_id: bytes, channel: str | None) -> list[Refund]:
        """The refunds of an order, the oldest first. Raises: OrderUnknown, LedgerUnavailable."""
        shard, uuid = shard_of(order_id), UUID(order_id)
        row = await ask(partial(self._ledger.fetchrow, query("order_state"), shard, uuid))
        if row is None or channel not in (None, row["channel"]):
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
        wanted = f"{refund.amount} {refund.currency}"
        raise Conflicting(f"{payment.amount} {payment.currency} was paid back, not {wanted}", "amount")
    if refund.state == "done":
        return order.here()
    done = order.shard, order.uuid, refund.refund_no, payment.paid_at
    await connection.execute(query("finish_refund"), *done)
    moved = await settle_refunds(connection, order, f"payment:{refund.refund_no}")
    return moved.here(moved.version != order.version)


def _check(refund: Refund, action: str) -> None:
    """Raises NotAllowed unless an operator may still decide."""
    if REFUND.step(refund.state, action) is None:
        raise NotAllowed(refund.state, action, REFUND.allowed(refund.state, "operator"))


async def _decide(connection: Any, order: Order, refund: Refund, number: str, state: str) -> None:
    await connection.execute(query("decide_refund"), order.shard, order.uuid, refund.refund_no, number, state)


async def _refunds(connection: Any, shard: int, uuid: UUID) -> list[Refund]:
    rows = await connection.fetch(query("order_refunds"), shard, uuid)
    return [
        Refund(**{**dict(r), "lines": r["lines"] and msgspec.json.decode(r["lines"], type=list[RefundShare])})
        for r in rows
    ]


async def _refund(connection: Any, order: Order, number: str) -> Refund:
    """By the number it has, or had as a request. Raises RefundUnknown."""
    for refund in await _refunds(connection, order.shard, order.uuid):
        if number in (refund.refund_no, refund.request_no):
            return refund
    raise RefundUnknown("the order has no such refund")


async def _priced(
    connection: Any, order: Order, wanted: RefundRequest, known: list[Refund], left: int
) -> tuple[int, list[RefundShare]]:
    """What is asked for, in all and per line. Raises Conflicting if a line has fewer units left than are asked for."""
    rows = await connection.fetch(query("order_lines"), order.shard, order.uuid)
    units: Counter[str] = Counter()
    worth: Counter[str] = Counter()
    for row in rows:
        units[row["sku"]] += row["quantity"]
        worth[row["sku"]] += row["quantity"] * row["price"]
    skus = list(units)
    # What was paid for a line may be less than its price once there are discounts: its share of the amount counts.
    paid = dict(zip(skus, share_out(order.amount, [worth[s] for s in skus]), strict=True)) if order.amount else worth
    if wanted.lines is None:
        amount = left if wanted.amount is None else wanted.amount
        if not order.amount:
            return amount, []
        parts = share_out(amount, [paid[s] for s in skus])
        return amount, [RefundShare(s, 0, part) for s, part in zip(skus, parts, strict=True) if part]
    gone: Counter[str] = Counter()
    for refund in known:
        if refund.state in ("approved", "done"):
            gone.update({line.sku: line.quantity for line in refund.lines or []})
    shares = [_share(line, units, paid, gone) for line in _merged(wanted.lines)]
    return sum(s.amount for s in shares), shares


def _merged(lines: list[Item]) -> list[Item]:
    found: Counter[str] = Counter()
    for line in lines:
        found[line.sku] += line.quantity
    return [Item(sku, quantity) for sku, quantity in found.items()]


def _share(line: Item, units: Counter[str], paid: Any, gone: Counter[str]) -> RefundShare:
    """The units of a line that come after those that were paid back already, at what each of them cost."""
    begin, end = gone[line.sku], gone[line.sku] + line.quantity
    if end > units[line.sku]:
        raise Conflicting(f"{units[line.sku] - begin} of {line.sku} can still be paid back", "lines")
    return RefundShare(line.sku, line.quantity, sum(share_out(paid[line.sku], [1] * units[line.sku])[begin:end]))
