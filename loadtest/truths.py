"""What a client can know to be wrong, without seeing the server: checked while the answers come in.

Every check holds at any interleaving. A refusal, for one, contradicts an acceptance only if it answers a
request that was sent after the acceptance was seen: of two clicks under way at once either may be first.
"""

from collections import Counter

import msgspec

from loadtest.outcomes import DENIED, FAULTS, Outcome
from loadtest.plan import Kind, Planned

EXAMPLES_MAX = 20

# These say nothing about what became of the key.
_NO_VERDICT = FAULTS | DENIED | {Outcome.LIMITED, Outcome.UNEXPECTED}


class AcceptedOrder(msgspec.Struct, frozen=True, gc=False):
    """An order that a 202 promised to this client."""

    key: str
    order_id: str
    buyer_id: str


class _Seen(msgspec.Struct, gc=False):
    order: AcceptedOrder
    first_hand: bool  # there was a 202 that was no replay
    answered_s: float


class Truths:
    """The acceptances by key, and the contradictions by name.

    `inconsistent` counts `two_order_ids` (one key, two orders), `shared_order_id` (two keys, one order),
    `accepted_twice` (two 202 for one key, neither marked as a replay), `refused_after_accepted`,
    `key_reused_same_body` (no key of a rush ever has two bodies) and `wrong_body_accepted`.
    """

    def __init__(self) -> None:
        self.inconsistent: Counter[str] = Counter()
        self.examples: list[str] = []
        self._by_key: dict[str, _Seen] = {}
        self._by_order: dict[str, str] = {}

    def accepted_orders(self) -> list[AcceptedOrder]:
        """One entry a key, in the order in which the first 202 came."""
        return [seen.order for seen in self._by_key.values()]

    def accept(self, planned: Planned, order_id: str, replayed: bool, answered_s: float) -> None:
        """Take note of a 202."""
        key = planned.key
        if planned.kind is Kind.MALFORMED or planned.kind is Kind.UNKNOWN_SKU:
            self._contradiction("wrong_body_accepted", f"{planned.kind} {key!r} became order {order_id}")
        owner = self._by_order.setdefault(order_id, key)
        if owner != key:
            self._contradiction("shared_order_id", f"keys {owner!r} and {key!r} both got order {order_id}")
        seen = self._by_key.get(key)
        if seen is None:
            order = AcceptedOrder(key, order_id, planned.buyer_id)
            self._by_key[key] = _Seen(order, not replayed, answered_s)
            return
        if seen.order.order_id != order_id:
            self._contradiction("two_order_ids", f"key {key!r} got {seen.order.order_id} and {order_id}")
        elif not replayed and seen.first_hand:
            self._contradiction("accepted_twice", f"key {key!r} was accepted twice, not replayed")
        seen.first_hand |= not replayed

    def refuse(self, planned: Planned, outcome: Outcome, sent_s: float | None) -> None:
        """Take note of any other answer; `sent_s` is when its request left."""
        if outcome in _NO_VERDICT:
            return
        if outcome is Outcome.KEY_REUSED:
            self._contradiction("key_reused_same_body", f"key {planned.key!r} had one body only")
            return
        seen = self._by_key.get(planned.key)
        if seen is not None and sent_s is not None and sent_s > seen.answered_s:
            what = f"key {planned.key!r} is order {seen.order.order_id}, then was answered {outcome}"
            self._contradiction("refused_after_accepted", what)

    def _contradiction(self, name: str, example: str) -> None:
        self.inconsistent[name] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{name}: {example}")
