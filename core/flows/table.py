"""What a flow is made of, what makes a table contradict itself, and the questions a flow answers."""

from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple, get_args

Actor = Literal["buyer", "channel", "operator", "payment", "warehouse", "provisioning", "billing", "system"]
Role = Literal["buyer", "merchant", "operator"]
Names = dict[str, tuple[str, str, str]]  # state -> what buyer, merchant and operator call it

ACTORS: tuple[Actor, ...] = get_args(Actor)
ROLES: tuple[Role, ...] = get_args(Role)
PEOPLE: tuple[Actor, ...] = ("buyer", "channel", "operator")
MACHINES: tuple[Actor, ...] = tuple(a for a in ACTORS if a not in PEOPLE)

# Every topic of an outbox message, and what its delivery brings about.
TOPICS = {
    "release": "store: the hold ends, its units and limits come back",
    "settle": "store: the hold ends as sold",
    "allocate": "store: units are taken for an order that held none; its answer is `allocated` or `too_late`",
    "restock": "store: the order's sold units go on sale again, under the order's id",
    "payment": "payment centre: a payment is asked for; written with the order itself",
    "refund": "payment centre: money goes back; on the way to `refund_pending` all that has not gone back yet",
    "warehouse": "warehouse: the order and its address as they are now; the highest version counts",
    "recall": "warehouse: the order is not to be picked or shipped",
    "provision": "provisioning: the service is set up",
    "unprovision": "provisioning: the service is taken away again",
    "bill": "billing: the contract is billed",
    "unbill": "billing: the bill is taken back",
    "notify": "notification: the buyer (or, after `urge`, the merchant) hears of it",
    "webhook": "the channel's webhook: paid, shipped, or an end",
}
FIRST_TOPIC = "payment"  # written together with the order, in its first state

# Every guard: what whoever carries the move out must have checked, in the transaction of the move.
GUARDS = {
    "pay_by_passed": "the order's `pay_by` has passed, by the ledger's clock",
    "other_payment": "the payment number is new, and another payment of this order is on record",
    "delivery_over": "the time for delivery, counted from the last move to `shipped`, is over",
    "after_sales_over": "the after-sales window, counted from the last move to `received`, is over, and no refund is "
    "under review",
    "no_open_review": "no refund is under review",
    "refund_fits": "the refunds approved so far and this one are at most what was paid",
    "order_refunds_all": "the order has moved to `refund_pending`, which returns all that is left",
}


class Step(NamedTuple):
    """One move: in `state`, one of `actors` does `action`, and the order is in `to`.

    `guard` names the condition that whoever carries the move out must have checked; `reason` is recorded with the
    event; `messages` are the topics that the move writes into the outbox, in the same transaction.
    """

    state: str
    action: str
    actors: tuple[Actor, ...]
    to: str
    reason: str
    messages: tuple[str, ...] = ()
    guard: str = ""


class Flow:
    """The flow of one order type. Raises ValueError if its table contradicts itself."""

    def __init__(self, order_type: str, first: str, ends: tuple[str, ...], steps: Iterable[Step], names: Names) -> None:
        """Build the flow and check it.

        Args:
            order_type: its name; of a campaign's orders, or of a sub-flow.
            first: the state it begins in.
            ends: the states in which nothing is due any more, the wanted one first. An end may still have moves, for
                what comes unasked (late money).
            steps: the moves.
            names: each state's name for buyer, merchant and operator.
        """
        self.order_type = order_type
        self.first = first
        self.ends = ends
        self.steps = tuple(steps)
        self.names = names
        self.states = tuple(dict.fromkeys([first, *(s for step in self.steps for s in (step.state, step.to))]))
        self._by_move = {(step.state, step.action): step for step in self.steps}
        faults = [f"{step.state} {step.action}: {fault}" for step in self.steps for fault in _faults(step)]
        faults += self._contradictions()
        if faults:
            raise ValueError(f"{order_type}: " + "; ".join(faults))

    def step(self, state: str, action: str) -> Step | None:
        """The move, whoever makes it; None if the table has none."""
        return self._by_move.get((state, action))

    def allowed(self, state: str, actor: Actor) -> list[str]:
        """The actions that `actor` may take in `state`, in the table's order."""
        return [s.action for s in self.steps if s.state == state and actor in s.actors]

    def ending_moves(self) -> tuple[list[str], list[str], list[str]]:
        """The moves that end an order's hold, as parallel lists: state before, action, topic."""
        return self.moves_with(("settle", "release"))

    def moves_with(self, topics: Collection[str]) -> tuple[list[str], list[str], list[str]]:
        """The moves that write a message of these topics, as parallel lists: state before, action, topic."""
        found = [(s.state, s.action, t) for s in self.steps for t in s.messages if t in topics]
        return [state for state, _, _ in found], [action for _, action, _ in found], [topic for _, _, topic in found]

    def reachable(self, state: str) -> set[str]:
        """All states that can follow `state`, itself among them."""
        found, todo = {state}, [state]
        while todo:
            here = todo.pop()
            for step in self.steps:
                if step.state == here and step.to not in found:
                    found.add(step.to)
                    todo.append(step.to)
        return found

    def leading_to(self, targets: Collection[str], by: Collection[Actor] = ACTORS) -> set[str]:
        """All states from which moves of `by` alone can lead to one of `targets`, these among them."""
        found = set(targets)
        while True:
            more = {s.state for s in self.steps if s.to in found and any(a in by for a in s.actors)} - found
            if not more:
                return found
            found |= more

    def name(self, state: str, role: Role) -> str:
        """What `role` calls a state."""
        return self.names[state][ROLES.index(role)]

    def _contradictions(self) -> list[str]:
        found = []
        moves = [(step.state, step.action) for step in self.steps]
        found += [f"{s} has two moves for {a}" for s, a in sorted({m for m in moves if moves.count(m) > 1})]
        states = set(self.states)
        if not self.ends or not set(self.ends) <= states:
            found.append(f"ends that are no states: {sorted(set(self.ends) - states) or 'none is given'}")
        if states != set(self.names):
            found.append(f"names and states differ: {sorted(states ^ set(self.names))}")
        found += [f"{state} has an empty name" for state, names in self.names.items() if not all(names)]
        if unreachable := states - self.reachable(self.first):
            found.append(f"no way leads to {sorted(unreachable)}")
        if endless := states - self.leading_to(self.ends):
            found.append(f"no end can follow {sorted(endless)}")
        return found


def _faults(step: Step) -> list[str]:
    found = []
    if not step.actors or len(set(step.actors)) < len(step.actors):
        found.append("no actor, or one named twice")
    found += [f"unknown actor {a}" for a in step.actors if a not in ACTORS]
    found += [f"unknown topic {t}" for t in step.messages if t not in TOPICS]
    if len(set(step.messages)) < len(step.messages):  # the outbox has one message per order, version and topic
        found.append("a topic named twice")
    if step.guard and step.guard not in GUARDS:
        found.append(f"unknown guard {step.guard}")
    if not step.reason:
        found.append("no reason")
    return found
