"""What the partners remember and count, within bounds."""

from collections import OrderedDict, deque
from typing import Any

import msgspec

EFFECTS_PER_ORDER_MAX = 64
TOPICS_MAX = 64  # of one partner; the rest are counted together
OTHER = "other"


class Tally(msgspec.Struct):
    """Counts of one partner and topic. `received` = `done` + `repeated` + `failed` + `full`, but for those on the way.

    `lost` answers are of messages that were done or repeated. Of callbacks, `sent` counts every attempt; each ends as
    `taken` (2xx), `refused` (a buyer's cancelling came too late) or `given_up`.
    """

    received: int = 0
    done: int = 0
    repeated: int = 0
    failed: int = 0
    full: int = 0
    lost: int = 0
    callbacks_sent: int = 0
    callbacks_taken: int = 0
    callbacks_refused: int = 0
    callbacks_given_up: int = 0


class PartnerTally(msgspec.Struct):
    """Counts of one partner; `away` and `rejected` (no good signature or message) have no topic to trust."""

    away: int = 0
    rejected: int = 0
    topics: dict[str, Tally] = {}

    def of(self, topic: str) -> Tally:
        tally = self.topics.get(topic)
        if tally is None:
            name = topic if len(self.topics) < TOPICS_MAX else OTHER
            tally = self.topics.setdefault(name, Tally())
        return tally


class Effect(msgspec.Struct, frozen=True, gc=False):
    """One thing that a partner did for an order; `message_id` is the message's or the callback's."""

    partner: str
    effect: str
    message_id: str
    at: float


class Received(msgspec.Struct, gc=False):
    """A message by its id: how often it came, how often it was acted upon, and the money it spoke of at first.

    `others` counts receipts that spoke of other money than the first, which an honest sender never does.
    """

    partner: str
    topic: str
    message_id: str
    order_id: str
    amount: int = 0
    number: str = ""
    received: int = 0
    effects: int = 0
    others: int = 0


class Report(msgspec.Struct, gc=False):
    """A callback by its id: how often it was sent, and how often the gateway took it with a 2xx."""

    partner: str
    action: str
    order_id: str
    number: str
    amount: int = 0
    sent: int = 0
    taken: int = 0


class Records(msgspec.Struct, frozen=True):
    """Everything that was received and reported. `forgotten` above 0: no more than the latest of it."""

    messages: list[Received]
    reports: list[Report]
    forgotten: int


class Memory:
    """The ids that were worked on, and the effects of each order: the least recent are forgotten beyond `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._received: OrderedDict[tuple[str, str], Received] = OrderedDict()
        self._reports: OrderedDict[tuple[str, str, str], Report] = OrderedDict()
        self._forgotten = 0
        self._ids: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._orders: OrderedDict[str, deque[Effect]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ids)

    def knows(self, partner: str, message_id: str) -> bool:
        """Whether the partner did the work of this message; asking keeps it fresh."""
        key = (partner, message_id)
        if key not in self._ids:
            return False
        self._ids.move_to_end(key)
        return True

    def remember(self, partner: str, message_id: str) -> None:
        self._ids[partner, message_id] = None
        if len(self._ids) > self._most:
            self._ids.popitem(last=False)

    def add_effect(self, order_id: str, effect: Effect) -> None:
        effects = self._orders.get(order_id)
        if effects is None:
            effects = self._orders[order_id] = deque(maxlen=EFFECTS_PER_ORDER_MAX)
            if len(self._orders) > self._most:
                self._orders.popitem(last=False)
        else:
            self._orders.move_to_end(order_id)
        effects.append(effect)

    def effects(self, order_id: str) -> list[Effect]:
        return list(self._orders.get(order_id, ()))

    def receive(
        self, partner: str, topic: str, message_id: str, order_id: str, amount: int = 0, number: str = ""
    ) -> None:
        """A message that is what it says it is has come, once more or for the first time."""
        key = (partner, message_id)
        known = self._received.get(key)
        if known is None:
            known = self._received[key] = Received(partner, topic, message_id, order_id, amount, number)
            self._forgotten += _bounded(self._received, self._most)
        known.received += 1
        known.others += (known.topic, known.order_id, known.amount, known.number) != (topic, order_id, amount, number)

    def act(self, partner: str, message_id: str) -> None:
        """The message has had its effect."""
        if (known := self._received.get((partner, message_id))) is not None:
            known.effects += 1

    def report(self, partner: str, action: str, order_id: str, number: str, amount: int, taken: bool) -> None:
        """A callback was sent; `taken`: and the gateway has taken it."""
        key = (partner, order_id, number or action)
        known = self._reports.get(key)
        if known is None:
            known = self._reports[key] = Report(partner, action, order_id, number, amount)
            self._forgotten += _bounded(self._reports, self._most)
        known.sent += not taken
        known.taken += taken

    def records(self) -> Records:
        """All of it."""
        return Records(list(self._received.values()), list(self._reports.values()), self._forgotten)


def _bounded(kept: "OrderedDict[Any, Any]", most: int) -> int:
    """The oldest is gone if there are too many; how many were dropped."""
    if len(kept) <= most:
        return 0
    kept.popitem(last=False)
    return 1
