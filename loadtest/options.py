"""The settings of a rush, each with its bounds."""

import math
import re

import msgspec

from loadtest.campaign import request_head
from loadtest.exchange import Target
from loadtest.plan import Mix

REQUESTS_MAX = 1_000_000
_RUN_ID = re.compile(r"[A-Za-z0-9]{1,16}")


class RushOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a rush, checked when made.

    Args:
        timeout_s: of one attempt, from sending to the whole answer.
        finish_s: after the last due time; what is unanswered then is given up.
        retries: repeats of one request after a 503 or a lost answer, with the same key.
        run_id: begins all keys and buyers; empty draws one. The same run id and seed are the same requests.
        by_price: SKUs are wanted in proportion to their price, instead of evenly.
        rate: requests a second, for `for_s` seconds; 0 = a crowd of `buyers` that comes within `spread_s`.
        poisson: of a rate: they come as independent people do, instead of one every 1/rate seconds.
        verify_tls: check the server's certificate.

    Raises:
        ValueError: `<field>: <what is wrong>`.
    """

    url: str
    campaign: str
    channel_key: str
    buyers: int = 20_000
    spread_s: float = 2.0
    connections: int = 256
    timeout_s: float = 10.0
    finish_s: float = 120.0
    retries: int = 5
    seed: int = 1
    run_id: str = ""
    mix: Mix = Mix()
    by_price: bool = False
    verify_tls: bool = True
    rate: float = 0.0
    for_s: float = 10.0
    poisson: bool = False

    def __post_init__(self) -> None:
        _in_range("buyers", self.buyers, 1, 1_000_000)
        _in_range("spread-s", self.spread_s, 0.0, 3_600.0)
        _in_range("connections", self.connections, 1, 4_096)
        _in_range("timeout-s", self.timeout_s, 0.01, 300.0)
        _in_range("finish-s", self.finish_s, 0.0, 3_600.0)
        _in_range("retries", self.retries, 0, 20)
        _in_range("rate", self.rate, 0.0, 200_000.0)
        _in_range("for-s", self.for_s, 0.1, 3_600.0)
        if self.requests > REQUESTS_MAX:
            raise ValueError(f"rate: {self.requests:,} requests in all, at most {REQUESTS_MAX:,} are planned")
        if not self.campaign:
            raise ValueError("campaign: is empty")
        if not self.channel_key:
            raise ValueError("channel-key: is empty")
        if self.run_id and not _RUN_ID.fullmatch(self.run_id):
            raise ValueError(f"run-id: {self.run_id!r} is not 1 to 16 ASCII letters and digits")
        request_head("GET", "/", Target.from_url(self.url), self.channel_key)

    @property
    def requests(self) -> int:
        """How many a rate comes to; 0 for a crowd."""
        return math.ceil(self.rate * self.for_s)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value:,} is not between {low:,} and {high:,}")
