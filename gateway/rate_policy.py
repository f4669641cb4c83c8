"""The limits that hold for a request, the names that it counts for, and what its caller is told of them."""

import math
from typing import NamedTuple, Protocol

from core.errors import RateLimited
from core.rates import KINDS, Rate, Rates
from gateway.peer import network_of
from lua.rate import Verdict
from lua.reserve import Ask


class Standing(NamedTuple):
    """The values of the fields `RateLimit` and `RateLimit-Policy`."""

    limit: bytes
    policy: bytes

    @property
    def lines(self) -> bytes:
        """Lines of a head."""
        return b"ratelimit: %b\r\nratelimit-policy: %b\r\n" % self

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same for ASGI."""
        return [(b"ratelimit", self.limit), (b"ratelimit-policy", self.policy)]


class Holder(Protocol):
    """Who tells the client how it stands with its limits; that is given when the request is let through."""

    standing: Standing | None


class Stand:
    """A holder, for who awaits the outcome."""

    __slots__ = ("standing",)

    def __init__(self) -> None:
        self.standing: Standing | None = None


class Policy:
    """The limits that hold for a channel's requests to one campaign, in the order of KINDS."""

    __slots__ = ("_limits", "_policy", "kinds", "own", "rates")

    def __init__(self, rates: Rates) -> None:
        limits = [(kind, rate) for kind, rate in zip(KINDS, rates, strict=True) if rate is not None]
        self.kinds = [kind for kind, _ in limits]
        self.rates = [rate for _, rate in limits]
        self.own = len(limits) - (rates.channel is not None)  # how many count a campaign's names
        self._limits = [f'"{kind}";r=%d;t=%d'.encode() for kind in self.kinds]
        self._policy = ", ".join(f'"{kind}";q={quota(rate)};w={window_s(rate)}' for kind, rate in limits).encode()

    def names(self, channel: str, ask: Ask) -> list[str]:
        """Of each limit the name that the request counts for, "" = none."""
        found = []
        for kind in self.kinds:
            if kind == "buyer":
                found.append("b:" + ask.buyer_id)
            elif kind == "channel":
                found.append("c:" + channel)
            elif kind == "ip":
                found.append(ask.client_ip and "i:" + network_of(ask.client_ip))
            else:
                found.append(ask.device_id and "d:" + ask.device_id)
        return found

    def line_names(self, buyer_id: str, client_ip: str, device_id: str) -> list[str]:
        """The same of joining a waiting room. The names are others, so that no place costs an order; none is the
        channel's, whose crowd the room is for."""
        found = {"buyer": buyer_id, "ip": network_of(client_ip), "device": device_id, "channel": ""}
        return [f"l{kind[0]}:{found[kind]}" if found[kind] else "" for kind in self.kinds]

    def standing(self, verdict: Verdict) -> Standing:
        """What the client is told of the limit that the verdict is about."""
        return Standing(self._limits[verdict.limit - 1] % (verdict.more, -(-verdict.ms // 1_000)), self._policy)

    def refusal(self, verdict: Verdict) -> RateLimited:
        """The same as an error."""
        kind, rate = self.kinds[verdict.limit - 1], self.rates[verdict.limit - 1]
        words = f"more than {rate.burst} at once, or {rate.requests} in {rate.per_s} s, of this {kind}"
        return RateLimited(words, kind, max(1, -(-verdict.ms // 1_000)), self.standing(verdict).headers)


def window_s(rate: Rate) -> int:
    """The window that is told of a limit, whole seconds: its burst comes back in it, or a second."""
    return max(1, math.ceil(rate.horizon_s))


def quota(rate: Rate) -> int:
    """Requests of one window: never less than the burst."""
    return max(rate.burst, rate.requests * window_s(rate) // rate.per_s)
