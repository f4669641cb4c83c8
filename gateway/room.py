"""How many requests may wait before the store, and how many go at once: bounded in time, by what it took lately."""

KEPT = 0.5  # of what is known, with each new exchange
SHARE = 0.75  # of the longest wait is offered: who is let in should be served, not refused a second later
BELIEVED_S = 0.05  # weighs little: the first exchange tells more
RATE = 10_000.0  # requests a second that are believed of a store before it was measured


class Room:
    """`most` requests may wait: who comes when as many do is refused at once. `take` go in one exchange.

    A bound in count alone is a wait of any length when the store is slow: 20,000 requests are a second of a fast store,
    and 20 of a slow one. So is an exchange: one that is too large for a slow store fails whole, at its time limit.
    Full exchanges tell the store's rate: so many requests in the time in which at least one of them was under way. Of
    small ones the rate is that of the arrivals.
    """

    def __init__(self, bound: int, wait_s: float, full: int, most_taken: int) -> None:
        """`bound`: of the queue, whatever the rate; `wait_s`: longest wait; `full`: so many may always go at once, and
        tell the rate; `most_taken`: in an exchange, and so many may always wait, as they may come in one body of
        orders:batch."""
        self._bound = bound
        self._wait_s = wait_s
        self._full = full
        self._most_taken = max(most_taken, full)
        self._count, self._busy_s, self._done_s = RATE * BELIEVED_S, BELIEVED_S, 0.0  # requests, in so long, until then
        self.take = full
        self.most = self._of_rate()

    def carried(self, count: int, sent_s: float, done_s: float) -> None:
        """`most` and `take` are as an exchange of `count` requests makes them, under way from `sent_s` to `done_s`."""
        if count < self._full:
            return
        self._busy_s = self._busy_s * KEPT + done_s - max(sent_s, self._done_s)
        self._count = self._count * KEPT + count
        self._done_s = done_s
        self.most = self._of_rate()
        took_s = done_s - sent_s
        if took_s > self._wait_s / 4:
            self.take = max(self._full, self.take // 2)
        elif count >= self.take and took_s < self._wait_s / 8:
            self.take = min(self._most_taken, self.take * 2)

    def _of_rate(self) -> int:
        rate = self._count / max(self._busy_s, 1e-6)
        return min(self._bound, max(self._most_taken, int(rate * self._wait_s * SHARE)))
