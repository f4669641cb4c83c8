"""A flow laid out to be drawn: the way that is hoped for as one line, the other states beside it; and an order's way.

Places are columns and rows; the page makes them points, across on a wide screen and down on a narrow one.
"""

from collections import deque
from collections.abc import Sequence
from functools import cache
from math import floor
from typing import Any

from msgspec import Struct

from core.desk.orders import TraceStep
from core.flows import FLOWS
from core.flows.table import Flow

ROWS_MAX = 10  # below the line
SIDEWAYS = 1.1  # a column more costs as much as so many rows


class Place(Struct, frozen=True):
    """Where a state is drawn."""

    state: str
    name: str
    column: int
    row: int
    end: bool


@cache
def layout(order_type: str) -> tuple[Place, ...]:
    """All states of a flow; no two in one place. Row 0 is the way to the end that is wanted."""
    flow = FLOWS[order_type]
    line = _hoped_for(flow)
    placed = {state: (n, 0) for n, state in enumerate(line)}
    depth = _depths(flow)
    leading = {state: {s.state for s in flow.steps if s.to == state != s.state} for state in flow.states}
    rest = [state for state in flow.states if state not in placed]
    while rest:
        # First that of which most is placed that leads to it, then the nearest.
        state = min(rest, key=lambda s: (len(leading[s] - placed.keys()), depth[s], flow.states.index(s)))
        rest.remove(state)
        before = [placed[s] for s in leading[state] if s in placed]
        placed[state] = _beside(before, set(placed.values()), len(line))
    return tuple(
        Place(state, flow.name(state, "operator"), *placed[state], state in flow.ends) for state in flow.states
    )


def _beside(before: list[tuple[int, int]], taken: set[tuple[int, int]], columns: int) -> tuple[int, int]:
    """A free place for a state that these places lead to: right of the only one, if that is off the line; else below
    them, or as near to that as there is room."""
    if len(before) == 1 and before[0][1] > 0:
        column, row = before[0][0] + 1, before[0][1]
    else:
        column = floor(sum(column for column, _ in before) / len(before) + 0.5)
        row = 1 if all(row == 0 for _, row in before) else 2
    places = ((c, r) for c in range(columns) for r in range(row, row + ROWS_MAX) if (c, r) not in taken)
    return min(places, key=lambda place: (SIDEWAYS * abs(place[0] - column) + place[1] - row, place))


def _hoped_for(flow: Flow) -> list[str]:
    """The shortest way from the first state to the first end."""
    came_from: dict[str, str] = {flow.first: ""}
    todo = deque([flow.first])
    while todo:
        here = todo.popleft()
        for step in flow.steps:
            if step.state == here and step.to not in came_from:
                came_from[step.to] = here
                todo.append(step.to)
    way = [flow.ends[0]]
    while way[0] != flow.first:
        way.insert(0, came_from[way[0]])
    return way


def _depths(flow: Flow) -> dict[str, int]:
    """Moves from the first state to each, at least."""
    depth, todo = {flow.first: 0}, deque([flow.first])
    while todo:
        here = todo.popleft()
        for step in flow.steps:
            if step.state == here and step.to not in depth:
                depth[step.to] = depth[here] + 1
                todo.append(step.to)
    return depth


def drawing(order_type: str, state: str, steps: Sequence[TraceStep]) -> dict[str, Any]:
    """The flow, and over it the moves that the order made, each numbered and with the time before it."""
    flow = FLOWS[order_type]
    moves: dict[tuple[str, str], list[str]] = {}
    for step in flow.steps:
        if step.state != step.to:
            moves.setdefault((step.state, step.to), []).append(step.action)
    made: dict[tuple[str, str], list[dict[str, Any]]] = {}
    visited, count = {flow.first}, 0
    for taken in steps:
        if taken.kind == "move" and taken.from_state and taken.to_state and taken.from_state != taken.to_state:
            count += 1
            visited.add(taken.to_state)
            told = {"n": count, "action": taken.what, "waited_ms": taken.waited_ms}
            made.setdefault((taken.from_state, taken.to_state), []).append(told)
    return {
        "places": layout(order_type),
        "moves": [
            {"from": a, "to": b, "actions": actions, "made": made.get((a, b), [])} for (a, b), actions in moves.items()
        ],
        "visited": sorted(visited),
        "now": state,
    }
