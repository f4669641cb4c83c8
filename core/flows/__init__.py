"""Flows: what may become of an order, as data. One table per order type; docs/flows.md is drawn from them.

Nothing here reads or writes. Whoever carries a move out looks it up with `FLOWS[order_type].step(state, action)`,
checks actor and guard, and in one transaction updates `WHERE state = <expected>`, records the event with its reason and
writes the messages into the outbox. `REFUND` is the review of a refund in part, beside the order's own state.
"""

from core.flows.at_payment import AT_PAYMENT
from core.flows.goods import GOODS
from core.flows.refund import REFUND
from core.flows.table import Flow
from core.flows.virtual import VIRTUAL

__all__ = ["FLOWS", "REFUND"]

FLOWS: dict[str, Flow] = {flow.order_type: flow for flow in (GOODS, VIRTUAL, AT_PAYMENT)}
