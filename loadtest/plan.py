"""The plan of a rush: who asks for what, and when. The same seed and run id give the same bytes."""

import enum
import math
import random
import zlib
from collections.abc import Callable
from itertools import accumulate
from typing import cast

import msgspec

from loadtest.campaign import Campaign

REPEAT_WITHIN_S = 0.3
GREEDY_ORDERS = 3
GREEDY_UNITS = 2
GREEDY_WITHIN_S = 0.5
DOUBLE_SHARE = 0.25  # ordinary buyers who want two units
DECAY = 4.0  # the window is this many time constants long: 63 % of the crowd comes in its first quarter

Body = dict[str, object]


class Kind(enum.StrEnum):
    """Why a request is in the plan."""

    ORDINARY = "ordinary"  # a buyer's first request
    REPEAT = "repeat"  # the same key and body again
    GREEDY = "greedy"  # a new key, after the first, to pass the limit
    MALFORMED = "malformed"
    UNKNOWN_SKU = "unknown_sku"


class Mix(msgspec.Struct, frozen=True):
    """Shares of the buyers, each 0 to 1 and together at most 1; the rest are ordinary."""

    repeat: float = 0.10
    greedy: float = 0.05
    malformed: float = 0.01
    unknown_sku: float = 0.01

    def __post_init__(self) -> None:
        shares = (self.repeat, self.greedy, self.malformed, self.unknown_sku)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError("mix: the shares must not be negative, and together at most 1")


class Planned(msgspec.Struct, frozen=True, gc=False):
    """One request of the plan.

    `due_s` counts from the start of the rush. `wire` is what follows the shared head: the request's own
    headers, the empty line and the body. `key` is empty when the request carries none.
    """

    due_s: float
    kind: Kind
    key: str
    buyer_id: str
    wire: bytes


def _wire(key: str, body: bytes) -> bytes:
    own = f"idempotency-key: {key}\r\n" if key else ""
    return f"{own}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _with_quantity(body: Body, quantity: object) -> Body:
    first = cast(list[Body], body["items"])[0]  # a SKU there is: the quantity alone is wrong
    return {**body, "items": [{**first, "quantity": quantity}]}


def _without(body: Body, field: str) -> Body:
    return {name: value for name, value in body.items() if name != field}


_encode = msgspec.json.encode

# Each is wrong by the contract alone, whatever the campaign sells.
_MALFORMED: tuple[Callable[[Body], bytes], ...] = (
    lambda body: _encode(body)[:-9],  # broken off
    lambda body: b"",
    lambda body: b"[]",
    lambda body: b'\xff\xfe{"buyer_id": 1}',
    lambda body: _encode({**body, "buyer_id": 17}),
    lambda body: _encode({**body, "items": "phone"}),
    lambda body: _encode({**body, "items": []}),
    lambda body: _encode(_without(body, "buyer_id")),
    lambda body: _encode(_without(body, "items")),
    lambda body: _encode(_with_quantity(body, -1)),
    lambda body: _encode(_with_quantity(body, 0)),
    lambda body: _encode(_with_quantity(body, "two")),
    lambda body: _encode(_with_quantity(body, 1.5)),
)


def arrival_s(share: float, spread_s: float) -> float:
    """When the buyer at `share` (0 to 1) of the crowd comes: a decaying exponential cut off at `spread_s`."""
    return -spread_s / DECAY * math.log(1.0 - share * (1.0 - math.exp(-DECAY)))


def client_ip(run_id: str, index: int) -> str:
    """An address of 10/8, distinct for each of up to 2**24 buyers of a run; another run starts elsewhere."""
    number = (zlib.crc32(run_id.encode()) + index) % (1 << 24)
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


class _Baskets:
    """What buyers want, within the campaign's limits where the buyer is an honest one."""

    def __init__(self, campaign: Campaign, by_price: bool, dice: random.Random) -> None:
        self.skus = [s.sku for s in campaign.skus]
        weights = [s.price if by_price else 1 for s in campaign.skus]
        self.weights = list(accumulate(weights if sum(weights) > 0 else [1] * len(weights)))
        self.dice = dice
        limits = {name: limit for name, limit in campaign.limits.items() if limit is not None}
        two = all(limits.get(name, 2) >= 2 for name in ("buyer", "ip", "device"))
        self.two_alike = two and limits.get("buyer_sku", 2) >= 2
        self.two_unlike = two and len(self.skus) > 1

    def _one(self) -> str:
        return self.dice.choices(self.skus, cum_weights=self.weights)[0]

    def ordinary(self) -> list[Body]:
        sku = self._one()
        if self.dice.random() >= DOUBLE_SHARE or not (self.two_alike or self.two_unlike):
            return [{"sku": sku, "quantity": 1}]
        if self.two_alike and not (self.two_unlike and self.dice.random() < 0.5):
            return [{"sku": sku, "quantity": 2}]
        other = self.dice.choice([s for s in self.skus if s != sku])
        return [{"sku": sku, "quantity": 1}, {"sku": other, "quantity": 1}]

    def greedy(self) -> list[Body]:
        return [{"sku": self._one(), "quantity": GREEDY_UNITS}]


def paced(plan: list[Planned], rate: float, poisson: bool, seed: int) -> list[Planned]:
    """The same requests in the same order, due one every 1/rate seconds, or as a Poisson process of that rate.

    A repeat stays behind what it repeats. The mean rate of a Poisson process of n requests is off by 1/sqrt(n).
    """
    dice, due_s, again = random.Random(seed), 0.0, list[Planned]()  # noqa: S311  a plan must repeat
    for number, planned in enumerate(plan):
        due_s = due_s + dice.expovariate(rate) if poisson else number / rate
        again.append(msgspec.structs.replace(planned, due_s=due_s))
    return again


def build_plan(
    campaign: Campaign,
    buyers: int,
    spread_s: float,
    seed: int,
    run_id: str,
    mix: Mix | None = None,
    by_price: bool = False,
) -> list[Planned]:
    """Return the requests of `buyers` buyers, sorted by due time.

    First requests fall within `spread_s`; repeats and greedy orders may come up to half a second later.
    About 450 bytes of memory a request.

    Args:
        run_id: 1 to 16 ASCII letters and digits; begins every key, buyer id and device id, so that a second
            run with the same seed is a new crowd and not a replay of the first.
        by_price: SKUs are wanted in proportion to their price, instead of evenly.
    """
    mix = mix or Mix()
    dice = random.Random(seed)  # noqa: S311  a plan must repeat, it guards nothing
    baskets = _Baskets(campaign, by_price, dice)
    greedy_below = mix.repeat + mix.greedy
    malformed_below = greedy_below + mix.malformed
    unknown_below = malformed_below + mix.unknown_sku
    plan: list[Planned] = []
    for index in range(buyers):
        due_s = arrival_s(dice.random(), spread_s)
        buyer_id, key = f"{run_id}-b{index}", f"{run_id}-{index}-1"
        body: Body = {
            "buyer_id": buyer_id,
            "items": baskets.ordinary(),
            "client_ip": client_ip(run_id, index),
            "device_id": f"{run_id}-d{index}",
        }
        character = dice.random()
        if greedy_below <= character < malformed_below:
            # One variant more than there are bodies: a good body without a key.
            variant = dice.randrange(len(_MALFORMED) + 1)
            if variant == len(_MALFORMED):
                plan.append(Planned(due_s, Kind.MALFORMED, "", buyer_id, _wire("", _encode(body))))
            else:
                wire = _wire(key, _MALFORMED[variant](body))
                plan.append(Planned(due_s, Kind.MALFORMED, key, buyer_id, wire))
            continue
        if malformed_below <= character < unknown_below:
            body["items"] = [{"sku": f"no-such-{dice.randrange(1000)}", "quantity": 1}]
            plan.append(Planned(due_s, Kind.UNKNOWN_SKU, key, buyer_id, _wire(key, _encode(body))))
            continue
        wire = _wire(key, _encode(body))
        plan.append(Planned(due_s, Kind.ORDINARY, key, buyer_id, wire))
        if character < mix.repeat:
            for _ in range(dice.randint(1, 3)):
                again_s = due_s + dice.uniform(0.0, REPEAT_WITHIN_S)
                plan.append(Planned(again_s, Kind.REPEAT, key, buyer_id, wire))
        elif character < greedy_below:
            for number in range(2, 2 + GREEDY_ORDERS):
                more_s = due_s + dice.uniform(0.0, GREEDY_WITHIN_S)
                more_key = f"{run_id}-{index}-{number}"
                wire = _wire(more_key, _encode({**body, "items": baskets.greedy()}))
                plan.append(Planned(more_s, Kind.GREEDY, more_key, buyer_id, wire))
    plan.sort(key=lambda planned: planned.due_s)
    return plan
