"""Rate limits as operators write them: `5/s:10` = 5 a second in the long run, and up to 10 at one instant."""

import re
from functools import lru_cache
from typing import NamedTuple

KINDS = ("buyer", "ip", "device", "channel")  # whose requests are counted; the first three by campaign
OFF = "off"  # of a campaign: the deployment's limit does not hold here
RATE = r"^(off|[1-9][0-9]{0,5}/[smh](:[1-9][0-9]{0,5})?)\Z"
RATE_WORDS = "a rate such as 5/s, 30/m:10 (10 at once) or off"
MAX_HORIZON_S = 3_600  # after so long without a request a name is forgotten at the latest

_PERIODS = {"s": 1, "m": 60, "h": 3_600}
_is_rate = re.compile(RATE).match


class Rate(NamedTuple):
    """So many `requests` in `per_s` seconds in the long run, and never more than `burst` at one instant."""

    requests: int
    per_s: int
    burst: int

    @property
    def interval_us(self) -> float:
        """How long one request is worth, microseconds."""
        return self.per_s * 1_000_000 / self.requests

    @property
    def horizon_s(self) -> float:
        """How long after its last request a name has its whole burst again."""
        return self.burst * self.per_s / self.requests


class Rates(NamedTuple):
    """The limit of each kind; None = no limit."""

    buyer: Rate | None = None
    ip: Rate | None = None
    device: Rate | None = None
    channel: Rate | None = None


@lru_cache(maxsize=1_024)
def parse_rate(text: str) -> Rate | None:
    """The rate; None = off. Without a burst it is the count. Raises ValueError, in words for whoever wrote it."""
    if not _is_rate(text):
        raise ValueError(f"{text!r} is not {RATE_WORDS}")
    if text == OFF:
        return None
    rate, _, burst = text.partition(":")
    count, _, period = rate.partition("/")
    found = Rate(int(count), _PERIODS[period], int(burst or count))
    if found.horizon_s > MAX_HORIZON_S:
        raise ValueError(f"{text!r} takes {found.horizon_s:,.0f} s to have its burst again, at most {MAX_HORIZON_S:,}")
    return found


def parse_rates(text: str) -> Rates:
    """The rates of `buyer=5/s:10,ip=20/s`, kinds left out have none. Raises ValueError."""
    found: dict[str, Rate | None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, rate = part.partition("=")
        if kind not in KINDS or kind in found:
            raise ValueError(f"{part!r}: expected each of {', '.join(KINDS)} once at most, such as buyer=5/s:10")
        found[kind] = parse_rate(rate)
    return Rates(**found)
