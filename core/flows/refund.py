"""Review of a refund in part: a table of its own, since an order may have several at a time.

It has no messages: `approve` and `reject` are made in one transaction with the order's `refund` and `reject_refund`,
which carry them. Refunds in full have no review; they are moves of the order to `refund_pending`.
"""

from core.flows.table import Flow, Step

REFUND = Flow(
    "refund",
    "requested",
    ("done", "rejected"),
    [
        Step("requested", "approve", ("operator",), "approved", "refund_approved", (), "refund_fits"),
        Step("requested", "reject", ("operator",), "rejected", "refund_rejected"),
        Step("requested", "lapse", ("system",), "rejected", "covered_by_full_refund", (), "order_refunds_all"),
        Step("approved", "done", ("payment", "operator"), "done", "refunded"),
    ],
    {
        "requested": ("Refund requested", "Refund to be reviewed", "Refund under review"),
        "approved": ("Refund on its way", "Refund approved", "Refund asked of the payment centre"),
        "rejected": ("Refund declined", "Refund declined", "Refund rejected"),
        "done": ("Refunded in part", "Refunded in part", "Refund done"),
    },
)
