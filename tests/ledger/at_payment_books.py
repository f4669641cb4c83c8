"""A plain model of a sale of reserve_at_payment: its orders, the stock of one SKU, the limits of the buyers."""

from collections import Counter
from dataclasses import dataclass, field

from core.flows.table import Step
from workers.store_topics import TOPICS


@dataclass
class Order:
    """An order as the model has it."""

    id: bytes
    buyer: str
    units: int
    state: str = "accepted"
    hold: str = "empty"  # full = with units; ended
    waiting: list[str] = field(default_factory=list)  # topics for the store, not delivered
    version: int = 1
    written: dict[str, int] = field(default_factory=dict)  # topic -> version of the message
    payment: str = ""
    paid_at: int = 0

    def move(self, step: Step) -> None:
        self.state, self.version = step.to, self.version + 1
        topics = [t for t in step.messages if t in TOPICS]
        self.waiting += topics
        self.written |= dict.fromkeys(topics, self.version)


class Books:
    """The stock of one SKU and the limits, as the model has them."""

    def __init__(self, left: int) -> None:
        self.left, self.held, self.sold, self.allocation = left, 0, 0, left
        self.used: Counter[str] = Counter()

    def deliver(self, topic: str, order: Order) -> str:
        """What a message does; returns the action that follows from it."""
        n = order.units
        if topic == "settle":
            self.held, self.sold, order.hold = self.held - n, self.sold + n, "ended"
        elif topic == "release":
            if order.hold == "full":
                self.held, self.left = self.held - n, self.left + n
            self.used[order.buyer] -= n
            order.hold = "ended"
        elif topic == "restock":
            self.left, self.allocation = self.left + n, self.allocation + n
            self.used[order.buyer] -= n
        elif self.left >= n:
            self.left, self.held, order.hold = self.left - n, self.held + n, "full"
            return "allocated"
        else:
            return "too_late"
        return ""
