"""A circuit breaker: after so many failures in a row nothing is sent for a while, then one probe at a time."""

import random
import time
from collections.abc import Callable

FAILURES = 10  # in a row, that open it
OPEN_S = (1.0, 30.0)  # it stays open: the first time, at most; doubling while the probes fail


class Breaker:
    """Of one destination. `clock` is monotonic, seconds; `draw` 0 to 1 spreads the probes of many processes."""

    def __init__(
        self,
        failures: int = FAILURES,
        open_s: tuple[float, float] = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._most = failures
        self._open_s = open_s
        self._clock = clock
        self._draw = draw
        self._failed = 0  # in a row
        self._openings = 0  # in a row
        self._until_s = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether it opened and no success came since."""
        return self._openings > 0

    def wait_s(self) -> float:
        """How long nothing may be sent from now on."""
        return max(0.0, self._until_s - self._clock()) if self.is_open else 0.0

    def ready(self) -> bool:
        """Whether something could be sent now."""
        return not self.is_open or (self.wait_s() == 0 and not self._probing)

    def take(self) -> bool:
        """Whether the caller may send one message now; it then tells `succeeded` or `failed`."""
        if not self.ready():
            return False
        self._probing = self.is_open
        return True

    def succeeded(self) -> None:
        """The destination does its work."""
        self._failed, self._openings, self._probing = 0, 0, False

    def failed(self) -> None:
        """The destination did not answer, or not as one that works."""
        self._failed += 1
        if self.is_open and not self._probing:
            return  # sent before it opened
        if self.is_open or self._failed >= self._most:
            whole_s = min(self._open_s[1], self._open_s[0] * 2.0 ** min(self._openings, 30))
            self._openings += 1
            self._probing = False
            self._until_s = self._clock() + whole_s * (0.5 + self._draw() / 2)
