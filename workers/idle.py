"""How long a worker had nothing to do: what is left of its time it worked, or waited for those that it works with."""

import contextlib
import time
from collections.abc import Iterator


class Idle:
    """Counts the seconds of the waits; one wait at a time."""

    def __init__(self) -> None:
        self._waited_s = 0.0
        self._since_s: float | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """There is nothing to do while inside."""
        self._since_s = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += time.monotonic() - self._since_s
            self._since_s = None

    @property
    def seconds(self) -> float:
        """So far, the present wait included."""
        now = 0.0 if self._since_s is None else time.monotonic() - self._since_s
        return self._waited_s + now
