"""The settings of the partners' server: how each partner behaves, and what the buyers do when asked to pay."""

from typing import Annotated

import msgspec
from msgspec import Meta

from loadtest.exchange import Target

PARTNERS = ("payment", "warehouse", "provisioning", "billing", "notification", "channel")
STEP_MS = 100.0
EVERY = "*"  # in `secrets`: the partners that are not named

Rate = Annotated[float, Meta(ge=0, le=1)]
Ms = Annotated[float, Meta(ge=0, le=600_000)]


class Conduct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one partner behaves; `PUT /control/{partner}` changes any of it while it runs. Rates are 0 to 1.

    Args:
        latency_ms: mean time before a message is worked on; `jitter_ms` is the most it differs, either way.
        failure: share of the deliveries answered 500 before anything was done.
        lost_answer: share of the deliveries after whose work no answer comes: the connection is held for
            `lost_hold_ms` and closed, so that 0 looks like a crash and a long time like a timeout.
        duplicate: share of the callbacks that are sent twice, at once, under the same id.
        away: everything is answered 503.
    """

    latency_ms: Ms = 0
    jitter_ms: Ms = 0
    failure: Rate = 0
    lost_answer: Rate = 0
    lost_hold_ms: Ms = 0
    duplicate: Rate = 0
    away: bool = False


class Buyers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What buyers do when they are asked to pay: shares that add up to 1. `PUT /control/buyers` changes them.

    Args:
        think_ms: mean time until a buyer pays or cancels; each takes half to one and a half of it, and never
            more than half of the time that is left to pay.
        late_ms: how long after `pay_by` a late payer pays.
    """

    pay: Rate = 0.70
    cancel: Rate = 0.10
    ignore: Rate = 0.15
    pay_late: Rate = 0.05
    think_ms: Ms = 200
    late_ms: Ms = 500

    def __post_init__(self) -> None:
        if abs(self.pay + self.cancel + self.ignore + self.pay_late - 1) > 1e-9:
            raise ValueError("pay, cancel, ignore and pay_late must add up to 1")


class PartnersOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of the server, checked when made.

    Args:
        gateway_url: where callbacks go, `http://host:port`.
        channel_keys: channel -> key, for the buyers who cancel; an order whose message names no channel, or an
            unknown one, is cancelled with the first.
        secrets: partner -> `whsec_…` secrets, `*` for all others. The first signs; all verify.
        seed: the same seed, the same decisions of the buyers.
        conduct: partner -> its behaviour at the start.
        step_ms: time between a message, or the callback before, and a callback of the warehouse, provisioning
            or billing, or of a refund.
        timeout_s: of one callback, from sending to the whole answer.
        attempts: most sendings of one callback; then it is given up, and with it those that wait for it.
        backoff_ms: before the second sending; doubled each time up to `backoff_max_ms`, with jitter.
        connections: most connections to the gateway.
        pending_max: most callbacks that wait or are being sent; a message that would pass it is answered 503.
        remember: most message ids, and most orders with their effects, that are remembered (least recent go).

    Raises:
        ValueError: `<field>: <what is wrong>`.
    """

    gateway_url: str
    channel_keys: dict[str, str]
    secrets: dict[str, list[str]]
    seed: int = 1
    conduct: dict[str, Conduct] = {}
    buyers: Buyers = Buyers()
    step_ms: float = STEP_MS
    timeout_s: float = 10.0
    attempts: int = 30
    backoff_ms: float = 100
    backoff_max_ms: float = 5_000
    connections: int = 64
    pending_max: int = 200_000
    remember: int = 500_000

    def __post_init__(self) -> None:
        Target.from_url(self.gateway_url)
        _in_range("step_ms", self.step_ms, 0, 600_000)
        _in_range("timeout_s", self.timeout_s, 0.01, 300)
        _in_range("attempts", self.attempts, 1, 1_000)
        _in_range("backoff_ms", self.backoff_ms, 1, 600_000)
        _in_range("backoff_max_ms", self.backoff_max_ms, self.backoff_ms, 600_000)
        _in_range("connections", self.connections, 1, 4_096)
        _in_range("pending_max", self.pending_max, 4, 10_000_000)
        _in_range("remember", self.remember, 1, 10_000_000)
        for field, names in (("conduct", set(self.conduct)), ("secrets", set(self.secrets) - {EVERY})):
            if names - set(PARTNERS):
                raise ValueError(f"{field}: partners are {', '.join(PARTNERS)}; not {', '.join(sorted(names))}")
        if not self.channel_keys:
            raise ValueError("channel_keys: is empty")
        if not all(key.isascii() and key.isprintable() and key for key in self.channel_keys.values()):
            raise ValueError("channel_keys: one is empty or cannot be sent in a header")
        if EVERY not in self.secrets and set(self.secrets) != set(PARTNERS):
            raise ValueError(f"secrets: each partner needs one, or {EVERY!r} must give one for the rest")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value:,} is not between {low:,} and {high:,}")
