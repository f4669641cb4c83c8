"""Goods: units are held when the order comes, and sold, picked and shipped once it is paid.

The warehouse picks only after its `pick` was taken, so until then a cancelled order's units are where they were. What
it has picked it must be asked back for (`recalling`): a parcel that left meanwhile is shipped, not cancelled.
"""

from core.flows import shared
from core.flows.shared import ANYONE, ASKING
from core.flows.table import Actor, Flow, Names, Step

DEPOT: tuple[Actor, ...] = ("warehouse", "operator")

PAID = ("paid", "suspended", "picking", "recalling", "shipped", "received", "returning", "completed")
ON_ITS_WAY = ("paid", "picking", "shipped")
IN_HAND = ("recalling", "shipped", "returning")  # of warehouse or courier: goods may turn out to be broken or gone

BACK = ("restock", "refund", "notify")
CHANGE_UNPAID = Step("accepted", "change", ANYONE, "accepted", "changed")

# From `paid` to the end; the same for every order type that ships.
FULFILMENT: list[Step] = [
    Step("paid", "pick", DEPOT, "picking", "picked"),
    Step("picking", "ship", DEPOT, "shipped", "shipped", ("notify", "webhook")),
    Step("shipped", "receive", ("buyer", *DEPOT), "received", "received", ("notify",)),
    Step("shipped", "receive_by_time", ("system",), "received", "receipt_not_confirmed", ("notify",), "delivery_over"),
    Step("received", "complete", ("system",), "completed", "after_sales_over", ("webhook",), "after_sales_over"),
    Step("received", "complete_early", ("operator",), "completed", "closed_by_operator", ("webhook",),
         "no_open_review"),
    Step("paid", "change", ANYONE, "paid", "changed", ("warehouse",)),
    *(Step(s, "urge", ASKING, s, "urged", ("notify",)) for s in ON_ITS_WAY),
    Step("paid", "suspend", ("operator",), "suspended", "suspended", ("recall",)),
    Step("suspended", "resume", ("operator",), "paid", "resumed", ("warehouse",)),
    Step("paid", "cancel", ANYONE, "refund_pending", "cancelled_after_payment", ("recall", *BACK)),
    Step("suspended", "cancel", ANYONE, "refund_pending", "cancelled_after_payment", BACK),
    Step("picking", "cancel", ANYONE, "recalling", "cancel_requested", ("recall",)),
    Step("recalling", "recalled", DEPOT, "refund_pending", "cancelled_after_payment", BACK),
    Step("recalling", "ship", DEPOT, "shipped", "cancel_too_late", ("notify", "webhook")),
    *(Step(s, "return", ANYONE, "returning", "return_requested", ("notify",)) for s in ("shipped", "received")),
    Step("returning", "goods_back", DEPOT, "refund_pending", "returned", BACK),
    Step("returning", "reject_return", ("operator",), "received", "return_rejected", ("notify",)),
    *(Step(s, "lost", DEPOT, "refund_pending", "goods_lost", ("refund", "notify")) for s in IN_HAND),
    *shared.partial_refunds(("paid", "picking", "shipped", "received"), PAID),
]  # fmt: skip

NAMES: Names = shared.NAMES | {
    "paid": ("Paid, being prepared", "Paid, to be picked", "Paid, waits for the warehouse"),
    "suspended": ("Being checked", "On hold, do not pick", "Suspended by an operator"),
    "picking": ("Being packed", "Picking", "Picking"),
    "recalling": ("Cancellation under way", "Cancelled, stop the parcel", "Recalled, waits for the warehouse"),
    "shipped": ("On its way", "Shipped", "Shipped"),
    "received": ("Delivered", "Delivered, may be returned", "Received, after-sales window"),
    "returning": ("Return under way", "Return expected", "Returning, waits for the goods"),
}

GOODS = Flow(
    "goods",
    "accepted",
    shared.ENDS,
    [
        *shared.opening("paid", ("settle", "warehouse", "notify", "webhook")),
        CHANGE_UNPAID,
        *FULFILMENT,
        *shared.paid_twice(PAID),
    ],
    NAMES,
)
