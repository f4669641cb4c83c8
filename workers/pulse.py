"""When a worker last went through its work without a fault of store or ledger, and how often it did."""

import time


class Pulse:
    """Of one worker."""

    def __init__(self) -> None:
        self.rounds = 0
        self.at_s = 0.0  # Unix time; 0 = never

    def beat(self) -> None:
        """A round is done."""
        self.rounds += 1
        self.at_s = time.time()
