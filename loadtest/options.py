"""The settings of a rush, each with its bounds."""

import re

import msgspec

from loadtest.campaign import request_head
from loadtest.exchange import Target
from loadtest.plan import Mix

_RUN_ID = re.compile(r"[A-Za-z0-9]{1,16}")


class RushOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a rush, checked when made.

    Args:
        timeout_s: of one attempt, from sending to the whole answer.
        finish_s: after the last due time; what is unanswered then is given up.
        retries: repeats of one request after a 503 or a lost answer, with the same key.
        run_id: begins all keys and buyers; empty draws one. The same run id and seed are the same requests.
        by_price: SKUs are wanted in proportion to their price, instead of evenly.
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

    def __post_init__(self) -> None:
        _in_range("buyers", self.buyers, 1, 1_000_000)
        _in_range("spread-s", self.spread_s, 0.0, 3_600.0)
        _in_range("connections", self.connections, 1, 4_096)
        _in_range("timeout-s", self.timeout_s, 0.01, 300.0)
        _in_range("finish-s", self.finish_s, 0.0, 3_600.0)
        _in_range("retries", self.retries, 0, 20)
        if not self.campaign:
            raise ValueError("campaign: is empty")
        if not self.channel_key:
            raise ValueError("channel-key: is empty")
        if self.run_id and not _RUN_ID.fullmatch(self.run_id):
            raise ValueError(f"run-id: {self.run_id!r} is not 1 to 16 ASCII letters and digits")
        request_head("GET", "/", Target.from_url(self.url), self.channel_key)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value:,} is not between {low:,} and {high:,}")
