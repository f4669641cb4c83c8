"""Moves that all order types share: before the payment, money that comes late or twice, and refunds."""

from collections.abc import Iterable

from core.flows.table import Actor, Names, Step

ENDS = ("completed", "cancelled", "expired", "refunded")

ASKING: tuple[Actor, ...] = ("buyer", "channel")
ANYONE: tuple[Actor, ...] = ("buyer", "channel", "operator")

NAMES: Names = {
    "accepted": ("Waiting for payment", "Reserved, unpaid", "Accepted, waits for payment"),
    "cancelled": ("Cancelled", "Cancelled before payment", "Cancelled before payment"),
    "expired": ("Closed, not paid in time", "Payment time ran out", "Expired unpaid"),
    "refund_pending": ("Refund on its way", "Refund under way", "Refund asked of the payment centre"),
    "refunded": ("Refunded", "Refunded", "Refunded in full"),
    "completed": ("Completed", "Completed", "Completed"),
}


def opening(paid: str, messages: tuple[str, ...]) -> list[Step]:
    """From `accepted` to `paid` with these messages, or to an end; money that comes after such an end goes back."""
    return [
        Step("accepted", "pay", ("payment",), paid, "paid", messages),
        Step("accepted", "pay_failed", ("payment",), "accepted", "payment_failed", ("notify",)),
        Step("accepted", "cancel", ANYONE, "cancelled", "cancelled", ("release", "notify", "webhook")),
        Step("accepted", "expire", ("system",), "expired", "not_paid_in_time", ("release", "notify", "webhook"),
             "pay_by_passed"),
        Step("cancelled", "pay", ("payment",), "refund_pending", "paid_after_cancel", ("refund", "notify")),
        Step("expired", "pay", ("payment",), "refund_pending", "paid_too_late", ("refund", "notify")),
        Step("refund_pending", "refunded", ("payment", "operator"), "refunded", "refunded", ("notify", "webhook")),
    ]  # fmt: skip


def paid_twice(states: Iterable[str]) -> list[Step]:
    """In each of these states a second payment goes straight back and changes nothing else."""
    return [
        Step(s, "pay_again", ("payment",), s, "paid_twice", ("refund", "notify"), "other_payment")
        for s in dict.fromkeys([*states, "refund_pending", "refunded"])
    ]


def partial_refunds(asked: Iterable[str], decided: Iterable[str]) -> list[Step]:
    """Refunds that leave the order where it is: asked for in the states `asked`, decided upon in the states `decided`.

    The request itself lives in the sub-flow REFUND; these moves are its traces in the order, and carry the messages.
    """
    steps = [Step(s, "request_refund", ASKING, s, "refund_requested", (), "refund_fits") for s in asked]
    for s in decided:
        steps += [
            Step(s, "refund", ("operator",), s, "refund_approved", ("refund", "notify"), "refund_fits"),
            Step(s, "reject_refund", ("operator",), s, "refund_rejected", ("notify",)),
        ]
    return steps
