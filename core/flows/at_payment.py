"""Reserve at payment: the order takes no units; the script takes them when the payment lands, or the money goes back.

The order's hold has no units, only what it counts against the limits. `allocate` puts the units into it; from then on
the flow is that of goods. Whichever way the hold ends, it ends by `settle` or `release` as any other.
"""

from core.flows import goods, shared
from core.flows.table import Flow, Step

# An operator may say `too_late` while the store stays away; units that it takes all the same come back by `release`.
ALLOCATION = [
    Step("allocating", "allocated", ("system",), "paid", "allocated", ("settle", "warehouse", "notify", "webhook")),
    Step("allocating", "too_late", ("system", "operator"), "refund_pending", "sold_out_at_payment",
         ("release", "refund", "notify")),
]  # fmt: skip

AT_PAYMENT = Flow(
    "reserve_at_payment",
    "accepted",
    shared.ENDS,
    [
        *shared.opening("allocating", ("allocate",)),
        goods.CHANGE_UNPAID,
        *ALLOCATION,
        *goods.FULFILMENT,
        *shared.paid_twice(("allocating", *goods.PAID)),
    ],
    goods.NAMES
    | {
        "accepted": (
            "Waiting for payment, not reserved",
            "Ordered, unpaid, no stock taken",
            "Accepted, holds no units",
        ),
        "allocating": ("Paid, securing your item", "Paid, stock being taken", "Paid, allocation under way"),
    },
)
