"""What tests build their cases from: campaigns, requests, batches, on real services."""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from redis.exceptions import RedisError

from core.ids import IdSource, campaign_tag
from core.model import CampaignSpec
from core.wire import Held, encode, fingerprint, request_field
from lua.connection import StoreConnection
from lua.keys import SaleKeys, home_shards, sale_keys
from lua.reserve import Answers, Ask, pack, read
from lua.scripts import OpenCode, Reading, Scripts
from lua.source import LuaSource

SHARDS = 64
LEASE_MS = 300

_ids = IdSource()
_count = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name that no other test has."""
    return f"{prefix}-{os.getpid()}-{next(_count)}"


def spec(stock: Mapping[str, int] | None = None, **fields: Any) -> CampaignSpec:
    """A campaign open since an hour; `stock` by SKU, every unit costs 100; `fields` replace the defaults."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "opens_at": now - timedelta(hours=1),
        "closes_at": now + timedelta(hours=1),
        "currency": "CNY",
        "pay_within_s": 900,
        "skus": [
            {"sku": sku, "name": sku, "stock": units, "price": 100} for sku, units in (stock or {"red": 10}).items()
        ],
    }
    return msgspec.convert(values | fields, CampaignSpec)


class StoreSale:
    """A campaign installed in the store alone, on one shard: for tests of scripts, without a ledger."""

    def __init__(self, campaign: str, keys: SaleKeys, shard: int, epoch: int = 1) -> None:
        self.campaign = campaign
        self.keys = keys
        self.shard = shard
        self.epoch = epoch

    @classmethod
    async def open(cls, store: StoreConnection, stock: Mapping[str, int], **meta: str | int) -> "StoreSale":
        """Open since an hour, for an hour; `meta` replaces fields, e.g. limit_buyer=2, state="paused"."""
        campaign = fresh("sale")
        shard = home_shards(campaign, 1, SHARDS)[0]
        keys = sale_keys(shard, campaign)
        now_ms = time.time_ns() // 1_000_000
        fields: dict[str, str | int] = {
            "state": "open", "opens_ms": now_ms - 3_600_000, "closes_ms": now_ms + 3_600_000,
            "pay_within_ms": 900_000, "version": 1, "lease_ms": LEASE_MS, "config": "{}",
            "limit_buyer": "", "limit_buyer_sku": "", "limit_ip": "", "limit_device": "",
        }  # fmt: skip
        code = await Scripts(store).open(keys, 1, fields | meta, stock)
        assert code is OpenCode.DONE
        return cls(campaign, keys, shard)

    def ask(
        self,
        buyer: str,
        *lines: tuple[str, int],
        key: str | None = None,
        ip: str = "",
        device: str = "",
        channel: str = "app",
    ) -> Ask:
        """A request for lines of (SKU, quantity), one unit of `red` if none is given, with a new key if none is."""
        wanted = list(lines) or [("red", 1)]
        key = key or fresh("key")
        items = [(sku, quantity, 100) for sku, quantity in wanted]
        amount = sum(q * p for _, q, p in items)
        held = encode(Held(channel, key, buyer, items, amount, "CNY", ip, device))
        flat = tuple(part for line in wanted for part in line)
        return Ask(
            request_field(channel, key), _ids.new(self.shard, campaign_tag(self.campaign)),
            fingerprint(buyer, items, device, None), held, b"", buyer, ip, device, flat,
        )  # fmt: skip

    async def reserve(self, store: StoreConnection, *asks: Ask) -> Answers:
        """The answers to one batch."""
        [reply] = await store.run(LuaSource.read("reserve"), [pack(self.keys, self.campaign, self.epoch, asks)])
        return read(reply, asks)


async def eventually(condition: Callable[[], Awaitable[Any]], timeout_s: float = 10.0, every_s: float = 0.01) -> Any:
    """The first true value of `condition`; AssertionError if there is none in time."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + timeout_s
    while True:
        value = await condition()
        if value:
            return value
        assert loop.time() < until_s, f"still {value!r} after {timeout_s} s"
        await asyncio.sleep(every_s)


async def tell(store: StoreConnection, *command: bytes | str | int) -> Any:
    """The reply to one command; an error reply is raised."""
    [reply] = await store.exchange([command])
    if isinstance(reply, RedisError):
        raise reply
    return reply


async def contents(store: StoreConnection) -> dict[bytes, Any]:
    """All that the store holds, by key: equal before and after = nothing was written."""
    found: dict[bytes, Any] = {}
    for key in sorted(await tell(store, "KEYS", "*")):
        kind = await tell(store, "TYPE", key)
        if kind == b"hash":
            flat = await tell(store, "HGETALL", key)
            found[key] = dict(zip(flat[::2], flat[1::2], strict=True))
        elif kind == b"stream":
            found[key] = await tell(store, "XRANGE", key, "-", "+")
        else:
            found[key] = kind, await tell(store, "GET", key)
    return found


async def raw_reserve(store: StoreConnection, sale: StoreSale, batches: Sequence[Sequence[Ask]]) -> list[Any]:
    """The bare replies to batches sent in one exchange, back to back: they carry the store's clock."""
    calls = [pack(sale.keys, sale.campaign, sale.epoch, asks) for asks in batches]
    return await store.run(LuaSource.read("reserve"), calls)


async def reading(store: StoreConnection, sale: StoreSale) -> Reading:
    """A campaign on its shard, now."""
    [found] = await Scripts(store).audit([sale.keys])
    return found
