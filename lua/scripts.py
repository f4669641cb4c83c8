"""Typed stubs of the scripts that are not on the hot path; the name of a method is the name of its script."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from lua.connection import Command, Reply, StoreConnection
from lua.keys import SaleKeys, intake_key
from lua.source import LuaSource


class OpenCode(IntEnum):
    DONE = 0
    REPEATED = 1
    FENCED = 2
    DIRTY = 3


class FenceCode(IntEnum):
    DONE = 0
    REPEATED = 1
    FENCED = 2
    FOREIGN = 3


class RebuildCode(IntEnum):
    DONE = 0
    REPEATED = 1
    FENCED = 2


class ChangeCode(IntEnum):
    DONE = 0
    REPEATED = 1
    FENCED = 2


class RestockCode(IntEnum):
    DONE = 0
    REPEATED = 1
    TOO_FEW = 2
    FENCED = 3
    UNKNOWN = 4


class ReleaseCode(IntEnum):
    NOTHING = 0
    RELEASED = 1


class SettleCode(IntEnum):
    NOTHING = 0
    SETTLED = 1


class AllocateCode(IntEnum):
    NOTHING = 0
    ALLOCATED = 1
    TOO_LATE = 2


class GivebackCode(IntEnum):
    REPEATED = 0
    RETURNED = 1
    UNKNOWN = 2


LAYOUT = "2"  # of a campaign's keys: what lua/open.lua writes into its meta and lua/reserve.lua wants to find there
MAX_PAIRS = 2_000  # in one call of rebuild
MAX_ENDED = 100  # orders in one call of release, settle, allocate or giveback


class Sold(NamedTuple):
    """What `giveback` needs to know of an order: who bought it, and its units by SKU."""

    order_id: bytes
    channel: str
    buyer_id: str
    client_ip: str
    device_id: str
    units: dict[str, int]


class Reading(NamedTuple):
    """A campaign on a shard at one instant. Empty `meta` = the store does not hold it. Units by SKU."""

    now_ms: int
    meta: dict[str, str]
    left: dict[str, int]
    allocation: dict[str, int]
    held: dict[str, int]
    sold: dict[str, int]
    requests: int
    holds: int
    moves: dict[str, tuple[int, str, int]]  # move id -> destination shard, SKU, units: withdrawn here, not yet arrived
    intake: int  # entries
    used: int  # limits that count something

    def on_sale(self, sku: str) -> int:
        """Units that a request could get now: what is left, unless it waits for the leases to end."""
        return 0 if self.waits_ms(sku) else self.left.get(sku, 0)

    def waits_ms(self, sku: str) -> int:
        """How long returned units still wait before they are on sale."""
        wait_ms = int(self.meta.get(f"r:{sku}", "0")) - self.now_ms
        # Longer than a lease it cannot be, unless the clock was set back.
        return wait_ms if 0 < wait_ms <= int(self.meta.get("lease_ms", "0")) else 0

    @property
    def base(self) -> int:
        """Numbers up to here are of earlier epochs; 0 = the campaign was never rebuilt."""
        return int(self.meta.get("base", "0"))

    @property
    def seq(self) -> int:
        """Orders accepted so far."""
        return int(self.meta.get("seq", "0"))

    @property
    def told(self) -> int:
        """The greatest number that a process was told of by a store that had not lost it yet (witness.lua)."""
        return int(self.meta.get("told", "0"))

    @property
    def missing(self) -> str:
        """What of the campaign's keys has gone, as far as the others show it; '' = nothing.

        Not the holds: of an order that is in no stream either, its key still tells, and a rebuild would forget it.
        """
        gone = {
            "stock": not self.left,
            "requests": not self.requests and int(self.meta.get("known", "0")) + self.seq > self.base,
            "used": not self.used and self.holds > 0,  # every hold counts for its buyer
        }
        return ", ".join(name for name, lost in gone.items() if lost)


class Backlog(NamedTuple):
    """What waits in the intake of one shard. `sale`: campaign and epoch of its oldest entry; `first`: its number."""

    entries: int
    orders: int
    age_ms: int  # of the oldest entry
    sale: bytes
    first: int


class Scripts:
    """The scripts on a connection that the caller owns. Every method raises StoreUnavailable."""

    def __init__(self, connection: StoreConnection) -> None:
        self.connection = connection

    async def _call(self, name: str, calls: Sequence[Command], confirm: bool = True) -> list[Reply]:
        replies = await self.connection.run(LuaSource.read(name), calls, confirm)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"{name}: the store answers {type(reply).__name__}: {reply}") from reply
        return replies

    async def open(
        self,
        keys: SaleKeys,
        epoch: int,
        meta: Mapping[str, str | int],
        stock: Mapping[str, int],
        deployment: str = "",
    ) -> OpenCode:
        """The campaign is installed with `stock` units by SKU, unless this or another epoch is there.

        `deployment`: id of the ledger that the campaign is in; another one's campaign of this name is fenced off.
        """
        pairs = [v for item in meta.items() for v in item]
        units = [v for item in stock.items() for v in item]
        [(code, _)] = await self._call(
            "open",
            [(7, *keys[:7], epoch, deployment, len(meta), *pairs, *units)],
        )
        return OpenCode(code)

    async def fence(self, keys: SaleKeys, epoch: int, deployment: str, empty: bool) -> tuple[FenceCode, int]:
        """The campaign is out of service on this shard; `empty`: its data are gone, to be rebuilt under `epoch`.

        Returns: the code, and the epoch as asked or, if it is FENCED or FOREIGN, as found.
        """
        [(code, found)] = await self._call("fence", [(7, *keys[:7], epoch, deployment, int(empty))])
        return FenceCode(code), found

    async def rebuild(
        self, keys: SaleKeys, epoch: int, target: bytes, pairs: Mapping[Any, Any], last: bool = False
    ) -> RebuildCode:
        """The pairs, 1 to MAX_PAIRS, are in the hash `target` of a campaign that is rebuilt under `epoch`.

        `last`: the epoch is in service; `target` is the meta.
        """
        flat = [part for pair in pairs.items() for part in pair]
        [(code,)] = await self._call("rebuild", [(2, keys.meta, target, epoch, int(last), *flat)])
        return RebuildCode(code)

    async def change(self, keys: SaleKeys, epoch: int, version: int, fields: Mapping[str, str | int]) -> ChangeCode:
        """The fields of meta are as given, unless the store has this version or a newer one."""
        pairs = [v for item in fields.items() for v in item]
        [(code, _)] = await self._call("change", [(1, keys.meta, epoch, version, *pairs)])
        return ChangeCode(code)

    async def restock(
        self, keys: SaleKeys, epoch: int, move_id: str, sku: str, units: int, to: int | None = None
    ) -> tuple[RestockCode, int]:
        """Units are added, or withdrawn if negative, once per move id. `to`: the other shard of a transfer.

        Returns: the code, and the units left afterwards.
        """
        other = "" if to is None else to
        [(code, left)] = await self._call(
            "restock",
            [(4, keys.meta, keys.stock, keys.deltas, keys.moves, epoch, move_id, sku, units, other)],
        )
        return RestockCode(code), left

    async def release(self, keys: SaleKeys, epoch: int, order_ids: Sequence[bytes]) -> list[ReleaseCode] | None:
        """The holds of 1 to MAX_ENDED orders are gone, their units and limits back. None = fenced: another epoch."""
        [(fenced, codes)] = await self._call(
            "release", [(4, keys.meta, keys.stock, keys.used, keys.holds, epoch, *order_ids)]
        )
        return None if fenced else [ReleaseCode(code) for code in codes]

    async def settle(self, keys: SaleKeys, epoch: int, order_ids: Sequence[bytes]) -> list[SettleCode] | None:
        """The holds of 1 to MAX_ENDED orders are gone, their units sold. None = fenced: another epoch."""
        [(fenced, codes)] = await self._call(
            "settle", [(4, keys.meta, keys.stock, keys.holds, keys.deltas, epoch, *order_ids)]
        )
        return None if fenced else [SettleCode(code) for code in codes]

    async def allocate(self, keys: SaleKeys, epoch: int, order_ids: Sequence[bytes]) -> list[AllocateCode] | None:
        """The holds of 1 to MAX_ENDED orders have their units, as far as enough are left. None = fenced."""
        [(fenced, codes)] = await self._call("allocate", [(3, keys.meta, keys.stock, keys.holds, epoch, *order_ids)])
        return None if fenced else [AllocateCode(code) for code in codes]

    async def giveback(self, keys: SaleKeys, epoch: int, orders: Sequence[Sold]) -> list[GivebackCode] | None:
        """The units of 1 to MAX_ENDED sold orders are on sale again, their limits back. None = fenced."""
        flat: list[bytes | str | int] = []
        for order in orders:
            lines = [part for line in order.units.items() for part in line]
            flat += [order.order_id, order.channel, order.buyer_id, order.client_ip, order.device_id]
            flat += [len(order.units), *lines]
        [(fenced, codes)] = await self._call(
            "giveback", [(5, keys.meta, keys.stock, keys.used, keys.holds, keys.deltas, epoch, *flat)]
        )
        return None if fenced else [GivebackCode(code) for code in codes]

    async def ack(self, intake: bytes, group: str, entry_ids: Sequence[bytes]) -> int:
        """The entries, 1 to 1,000, are off the stream and off the pending list. Returns how many still were there."""
        # Not confirmed by replicas: entries that a failover brings back are written again, which changes nothing.
        [gone] = await self._call("ack", [(1, intake, group, *entry_ids)], confirm=False)
        return int(gone)

    async def backlog(self, shards: Sequence[int]) -> dict[int, Backlog]:
        """What waits in the intake of each shard."""
        if not shards:
            return {}
        replies = await self._call("backlog", [(1, intake_key(shard)) for shard in shards])
        return {shard: Backlog(*reply) for shard, reply in zip(shards, replies, strict=True)}

    async def audit(self, sales: Sequence[SaleKeys]) -> list[Reading]:
        """A reading of each, each consistent in itself."""
        calls = [(7, k.meta, k.stock, k.requests, k.holds, k.moves, k.intake, k.used) for k in sales]
        return [_reading(reply) for reply in await self._call("audit", calls)]


def _pairs(flat: list[bytes]) -> dict[str, str]:
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


def _reading(reply: Reply) -> Reading:
    now_ms, meta, stock, requests, holds, moves, intake, used = reply
    units = {name: int(count) for name, count in _pairs(stock).items()}
    left = {name: count for name, count in units.items() if ":" not in name}

    def counted(kind: str) -> dict[str, int]:
        return {sku: units.get(f"{kind}:{sku}", 0) for sku in left}

    on_the_way = {}
    for move_id, text in _pairs(moves).items():
        to, sku, count = text.split(" ")
        on_the_way[move_id] = (int(to), sku, int(count))
    return Reading(
        now_ms,
        _pairs(meta),
        left,
        counted("a"),
        counted("h"),
        counted("s"),
        requests,
        holds,
        on_the_way,
        intake,
        used,
    )
