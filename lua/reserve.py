"""The typed side of reserve.lua: packs a batch, reads its outcomes. The contract is its header."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from redis.exceptions import RedisError

from core.errors import CampaignLost, StoreUnavailable
from core.wire import encode, orders_of
from lua.connection import Command, Reply
from lua.keys import SaleKeys

MAX_REQUESTS = 512  # of one call
MAX_LINES = 1_600  # of all baskets of one call: Lua's unpack takes under 8,000 values


class ReserveCode(IntEnum):
    ACCEPTED = 0
    REPLAYED = 1
    SOLD_OUT = 2
    OVER_LIMIT = 3
    NOT_OPEN = 4
    CLOSED = 5
    PAUSED = 6
    KEY_REUSED = 7
    NO_SKU = 8


class Ask(NamedTuple):
    """One request as the script wants it."""

    field: bytes  # 12 bytes: core.wire.request_field of channel and request key
    order_id: bytes  # 16 bytes, used if it is accepted
    fingerprint: bytes  # 8 bytes
    held: bytes
    placed: bytes  # b"" = the same as held
    buyer_id: str
    client_ip: str
    device_id: str
    lines: tuple[str | int, ...]  # sku, quantity, sku, quantity, ...


class Outcome(NamedTuple):
    """What became of one request.

    `order_id` and `pay_by_ms` are set for ACCEPTED and REPLAYED; `detail` is the SKU or the limit that refused it.
    """

    code: ReserveCode
    order_id: bytes = b""
    pay_by_ms: int = 0
    detail: str = ""


class Lease(NamedTuple):
    """Nothing of `sku` is left on this shard nor will be on sale within `ms`; `mark` changes when units come back."""

    sku: str
    ms: int
    mark: bytes


class Answers(NamedTuple):
    """The reply to one call, one outcome a request in their order."""

    version: int
    outcomes: list[Outcome]
    leases: list[Lease]
    seq: int  # the number of the last order that was accepted on the shard


class AllAccepted(NamedTuple):
    """The reply to a call of which all requests were accepted, each under the id that it came with."""

    version: int
    pay_by_ms: int
    seq: int  # as of Answers


class Fenced(CampaignLost):
    """The store has no such campaign, or another epoch of it, on this shard. Nothing was written."""

    def __init__(self) -> None:
        super().__init__("the store does not hold the campaign as it should")


_CODES = list(ReserveCode)
_PLAIN = [Outcome(code) for code in ReserveCode]


def pack(keys: SaleKeys, campaign: str, epoch: int, asks: Sequence[Ask]) -> Command:
    """The call of one batch, at most MAX_REQUESTS requests and MAX_LINES lines; the caller sees to that."""
    # By columns and not by requests: most of it is then one call of C for the whole batch.
    fields, ids, prints, holds, placed, buyers, ips, devices, lines = zip(*asks, strict=True)
    orders, others = holds, []
    if any(placed):
        orders = tuple([order or held for order, held in zip(placed, holds, strict=True)])
        others = [part for n, pair in enumerate(zip(placed, holds, strict=True), 1) if pair[0] for part in (n, pair[1])]
    baskets, which = lines[:1], []
    if lines.count(lines[0]) != len(lines):
        places: dict[tuple[str | int, ...], int] = {}
        which = [places.setdefault(basket, len(places) + 1) for basket in lines]
        baskets = tuple(places)
    unlike = len(set(fields)) == len(fields) == len(set(buyers))
    asked = encode((baskets, which, ["b:" + buyer for buyer in buyers], unlike))
    return [
        6, keys.meta, keys.stock, keys.used, keys.requests, keys.holds, keys.intake, campaign, epoch, len(asks),
        b"".join(fields), b"".join(prints), orders_of(ids, orders),
        asked, _names("i:", ips), _names("d:", devices), *others,
    ]  # fmt: skip


def _names(kind: str, whose: Sequence[str]) -> bytes:
    """The limit counters of one kind, as the script wants them."""
    return encode([who and kind + who for who in whose]) if any(whose) else b""


def all_accepted(reply: Reply) -> AllAccepted | None:
    """What a whole batch was told, if all of it was accepted, as nearly all batches are; otherwise `read` tells."""
    if isinstance(reply, RedisError):
        return None
    fenced, _now_ms, pay_by_ms, version, codes, _details, _leases, seq = reply
    return None if fenced or codes else AllAccepted(version, pay_by_ms, seq)


def read(reply: Reply, asks: Sequence[Ask]) -> Answers:
    """The outcomes of one call.

    Raises:
        Fenced: see there.
        StoreUnavailable: the store answered with an error (OOM, READONLY, LOADING, BUSY, ...); nothing was written.
    """
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}") from reply
    fenced, _now_ms, pay_by_ms, version, codes, details, leases, seq = reply
    if fenced:
        raise Fenced
    if not codes:
        accepted = ReserveCode.ACCEPTED
        return Answers(version, [Outcome(accepted, ask.order_id, pay_by_ms) for ask in asks], [], seq)
    outcomes = [
        Outcome(ReserveCode.ACCEPTED, ask.order_id, pay_by_ms) if code == 0 else _PLAIN[code]
        for code, ask in zip(codes, asks, strict=True)
    ]
    for i in range(0, len(details), 2):
        n = details[i] - 1
        outcomes[n] = _with_detail(_CODES[codes[n]], details[i + 1], asks[n])
    found = [Lease(leases[i].decode(), leases[i + 1], leases[i + 2]) for i in range(0, len(leases), 3)]
    return Answers(version, outcomes, found, seq)


def _with_detail(code: ReserveCode, detail: bytes, ask: Ask) -> Outcome:
    if code is ReserveCode.REPLAYED:
        order_id = detail[:16]
        # Our own order comes back as a replay when the first call was executed but its reply was lost.
        first = ReserveCode.ACCEPTED if order_id == ask.order_id else code
        return Outcome(first, order_id, int.from_bytes(detail[30:36], "big"))
    if code is ReserveCode.KEY_REUSED:
        return _PLAIN[code]
    return Outcome(code, detail=detail.decode())
