"""How many users there are at a moment of a run. Pure: imports nothing of locust.

steady   all, from the ramp-up on
spike    all before T0, so that they click in the same second; the run goes on with those who come back
ramp     none to all over 60 % of the run, then all: where it bends is what the stack takes
wave     between a fifth and all of them, three times: does it recover as fast as it was loaded?
soak     all, after a ramp-up of 5 % of the run: for hours, looking for what grows
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

SPAWNED_A_SECOND_MAX = 100.0  # of one process: above it locust itself stutters, and warns
WAVES = 3
LOWEST = 0.2  # of a wave
RAMP = 0.6
SOAK_RAMP = 0.05


class Step(NamedTuple):
    """What the run should come to, from now on."""

    users: int
    spawn_rate: float  # users a second, over all processes


def _steady(at: float, users: int) -> int:
    return users


def _ramp(at: float, users: int) -> int:
    return max(1, math.ceil(users * min(1.0, at / RAMP)))


def _wave(at: float, users: int) -> int:
    height = (1 - math.cos(2 * math.pi * WAVES * at)) / 2
    return max(1, round(users * (LOWEST + (1 - LOWEST) * height)))


def _soak(at: float, users: int) -> int:
    return max(1, math.ceil(users * min(1.0, at / SOAK_RAMP)))


SHAPES: Mapping[str, Callable[[float, int], int]] = {
    "steady": _steady,
    "spike": _steady,
    "ramp": _ramp,
    "wave": _wave,
    "soak": _soak,
}


def step_at(
    shape: str, elapsed_s: float, run_s: float | None, users: int, spawn_rate: float, processes: int
) -> Step | None:
    """Where the run should be `elapsed_s` after its beginning; None: it is over.

    Args:
        run_s: how long it lasts; None = until it is stopped, which only `steady` and `spike` can do.
        users: at the most.
        spawn_rate: of `steady`; all other shapes spawn as fast as locust can.
    """
    if run_s is not None and elapsed_s >= run_s:
        return None
    at = elapsed_s / run_s if run_s else 0.0
    wanted = SHAPES[shape](at, users)
    if shape == "steady":
        return Step(wanted, spawn_rate)
    return Step(wanted, min(float(max(wanted, 1)), SPAWNED_A_SECOND_MAX * max(processes, 1)))


def warm_up_s(shape: str, users: int, processes: int) -> float:
    """How long before T0 a spike must begin to spawn: all users are there, and have looked at the countdown once."""
    if shape != "spike":
        return 0.0
    return math.ceil(users / (SPAWNED_A_SECOND_MAX * max(processes, 1))) + 2.0
