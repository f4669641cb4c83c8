"""What a flow is made of, and the questions it answers."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Actor = Literal["buyer", "channel", "operator", "payment", "warehouse", "provisioning", "billing", "system"]
Role = Literal["buyer", "merchant", "operator"]

PEOPLE: tuple[Actor, ...] = ("buyer", "channel", "operator")


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

    def __init__(
        self, order_type: str, first: str, steps: Iterable[Step], names: dict[str, tuple[str, str, str]]
    ) -> None:
        """`names`: each state's name for buyer, merchant and operator."""
        self.order_type = order_type
        self.first = first
        self.steps = tuple(steps)
        self.names = names
        self._by_move: dict[tuple[str, str], Step] = {}
        for step in self.steps:
            if (step.state, step.action) in self._by_move:
                raise ValueError(f"{order_type}: {step.state} has two moves for {step.action}")
            self._by_move[step.state, step.action] = step
        self.states = tuple(dict.fromkeys([first, *(s for step in self.steps for s in (step.state, step.to))]))
        if set(self.states) != set(names):
            raise ValueError(f"{order_type}: names and states differ: {set(self.states) ^ set(names)}")
        unreachable = set(self.states) - self.reachable(first)
        if unreachable:
            raise ValueError(f"{order_type}: no way leads to {sorted(unreachable)}")

    def step(self, state: str, action: str) -> Step | None:
        """The move, whoever makes it; None if the table has none."""
        return self._by_move.get((state, action))

    def allowed(self, state: str, actor: Actor) -> list[str]:
        """The actions that `actor` may take in `state`, in the table's order."""
        return [s.action for s in self.steps if s.state == state and actor in s.actors]

    def ends(self) -> tuple[str, ...]:
        """The states that an order rests in: no move of the system, a partner or an operator is due any more."""
        return tuple(s for s in self.states if not any(step.state == s and step.to != s for step in self.steps))

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

    def name(self, state: str, role: Role) -> str:
        """What `role` calls a state."""
        return self.names[state][("buyer", "merchant", "operator").index(role)]
