"""Virtual: nothing is shipped; a service is provisioned and billed, side by side, and both must succeed or neither.

Each state says what is known of both. When one has failed, the other's answer is waited for before anything is undone:
an undo that overtook the deed would leave the deed done.
"""

from core.flows import shared
from core.flows.shared import ASKING
from core.flows.table import Actor, Flow, Names, Step

SETUP: tuple[Actor, ...] = ("provisioning",)
BILLS: tuple[Actor, ...] = ("billing",)
# An operator may declare a failure or an undoing that the partner cannot report.
SETUP_OR_OPERATOR: tuple[Actor, ...] = ("provisioning", "operator")
BILLS_OR_OPERATOR: tuple[Actor, ...] = ("billing", "operator")

UNDER_WAY = ("paid", "provisioned", "billed")
UNDOING = ("awaiting_billing", "awaiting_provisioning", "unprovisioning", "unbilling")
BACK = ("restock", "refund", "notify")
DONE = ("notify", "webhook")

FULFILMENT: list[Step] = [
    Step("paid", "provisioned", SETUP, "provisioned", "provisioned"),
    Step("paid", "billed", BILLS, "billed", "billed"),
    Step("provisioned", "billed", BILLS, "completed", "provisioned_and_billed", DONE),
    Step("billed", "provisioned", SETUP, "completed", "provisioned_and_billed", DONE),
    Step("paid", "provision_failed", SETUP_OR_OPERATOR, "awaiting_billing", "provision_failed"),
    Step("paid", "bill_failed", BILLS_OR_OPERATOR, "awaiting_provisioning", "bill_failed"),
    Step("provisioned", "bill_failed", BILLS_OR_OPERATOR, "unprovisioning", "bill_failed", ("unprovision",)),
    Step("billed", "provision_failed", SETUP_OR_OPERATOR, "unbilling", "provision_failed", ("unbill",)),
    Step("awaiting_billing", "billed", BILLS, "unbilling", "billed_after_failure", ("unbill",)),
    Step("awaiting_billing", "bill_failed", BILLS_OR_OPERATOR, "refund_pending", "both_failed", BACK),
    Step("awaiting_provisioning", "provisioned", SETUP, "unprovisioning", "provisioned_after_failure",
         ("unprovision",)),
    Step("awaiting_provisioning", "provision_failed", SETUP_OR_OPERATOR, "refund_pending", "both_failed", BACK),
    Step("unprovisioning", "unprovisioned", SETUP_OR_OPERATOR, "refund_pending", "unprovisioned", BACK),
    Step("unbilling", "unbilled", BILLS_OR_OPERATOR, "refund_pending", "unbilled", BACK),
    *(Step(s, "urge", ASKING, s, "urged", ("notify",)) for s in UNDER_WAY),
    *shared.partial_refunds(("completed",), ("completed",)),
]  # fmt: skip

NAMES: Names = shared.NAMES | {
    "paid": ("Paid, being set up", "Paid, set-up and billing due", "Paid, provisioning and billing due"),
    "provisioned": ("Being set up", "Set up, billing due", "Provisioned, billing due"),
    "billed": ("Being set up", "Billed, set-up due", "Billed, provisioning due"),
    "awaiting_billing": ("Set-up failed", "Set-up failed, billing open", "Provisioning failed, waits for billing"),
    "awaiting_provisioning": ("Set-up failed", "Billing failed, set-up open", "Billing failed, waits for provisioning"),
    "unprovisioning": ("Set-up failed", "Set-up being undone", "Billing failed, provisioning being undone"),
    "unbilling": ("Set-up failed", "Bill being taken back", "Provisioning failed, billing being undone"),
}

VIRTUAL = Flow(
    "virtual",
    "accepted",
    shared.ENDS,
    [
        *shared.opening("paid", ("settle", "provision", "bill", "notify", "webhook")),
        *FULFILMENT,
        *shared.paid_twice((*UNDER_WAY, *UNDOING, "completed")),
    ],
    NAMES,
)
