"""Log lines of events that may come in floods: the first ones, then one a second with how many were left out."""

import logging
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 1.0
MAX_KEYS = 256  # kinds of one event that are told apart; beyond it all begin anew


class SampledLog:
    """One event of one logger. Costs a look at the clock where the line is left out."""

    def __init__(
        self, logger: logging.Logger, level: int, event: str,
        every_s: float = EVERY_S, burst: int = 1, with_exception: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`burst`: lines in `every_s`, of one key. `with_exception`: each tells of the exception that is handled."""
        self._logger = logger
        self._level = level
        self._event = event
        self._every_s = every_s
        self._burst = burst
        self._with_exception = with_exception
        self._clock = clock
        # key -> when its last period began, lines in it, events left out since the last line
        self._kinds: dict[str, tuple[float, int, int]] = {}

    def due(self, key: str = "") -> bool:
        """Whether `write` is to be called now; otherwise the event is counted as left out.

        `key`: events of different keys (a topic, a partner) do not hide each other.
        """
        known = self._kinds.get(key)
        if known is None or known[1] < self._burst or self._clock() >= known[0] + self._every_s:
            return True
        self._kinds[key] = known[0], known[1], known[2] + 1
        return False

    def write(self, key: str = "", /, **fields: Any) -> None:
        """The line is in the log, with `left_out` if there were more since the last one of this key."""
        now_s = self._clock()
        began_s, lines, left_out = self._kinds.get(key, (now_s, 0, 0))
        if now_s >= began_s + self._every_s:
            began_s, lines = now_s, 0
        if key not in self._kinds and len(self._kinds) >= MAX_KEYS:
            self._kinds.clear()
        self._kinds[key] = began_s, lines + 1, 0
        if left_out:
            fields["left_out"] = left_out
        self._logger.log(self._level, self._event, extra=fields, exc_info=self._with_exception)

    def __call__(self, key: str = "", /, **fields: Any) -> bool:
        """`write` if it is `due`. Returns whether it was."""
        if not self.due(key):
            return False
        self.write(key, **fields)
        return True
