"""What is timed: each hot function of the gateway with arguments as a rush has them, and the loop that it is held to.

The one place that names the functions: whoever renames one mends it here.
"""

import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from bench.services import Services, asks
from core.ids import IdSource, campaign_tag
from gateway.catalogue import Sale
from gateway.orders import decode_order
from gateway.prepare import prepare
from gateway.replies import OrderReply
from lua.connection import StoreConnection
from lua.reserve import Answers, ReserveCode, pack, read
from lua.source import LuaSource

BATCH = 64
BODY = (
    b'{"buyer_id":"buyer-000042","items":[{"sku":"phone-red","quantity":1}],'
    b'"client_ip":"10.20.30.40","device_id":"device-00000042"}'
)
KEY = "1f0e4b1c-77b5-4c39-9f0e-2b8f6f4c9a10"

Call = Callable[[], Any]


class _Line(msgspec.Struct):
    name: str
    count: int


_decode_lines = msgspec.json.Decoder(list[_Line]).decode
_LINES = msgspec.json.encode([_Line(f"line-{n}", n) for n in range(12)])


def calibrate() -> int:
    """The loop all figures are held to: attributes, dict, bytes and msgspec, none of it ours. About 5 us."""
    names: dict[str, int] = {}
    for line in _decode_lines(_LINES):
        names[line.name] = names.get(line.name, 0) + line.count * 7 % 5
    text = ",".join([f"{name}={count}" for name, count in names.items()])
    return len(text.encode()) + sum(sorted(names.values()))


def decode_body() -> Call:
    """A body of the common order, checked."""
    return lambda: decode_order(BODY)


def prepare_order(sale: Sale) -> Call:
    """From the decoded order to what the script wants of it."""
    ids, order = IdSource(), decode_order(BODY)
    return lambda: prepare(ids, sale, "app", KEY, order)


def pack_batch(sale: Sale, batch: int) -> Call:
    """One call of the script, its arguments from `batch` requests."""
    found = asks(sale, 0, batch)
    return lambda: pack(sale.keys[0], sale.campaign, sale.epoch, found)


def build_reply(public_url: str) -> Call:
    """Head and body of a 202."""
    order_id = IdSource().new(1, campaign_tag("micro"))
    reply = OrderReply(public_url.rstrip("/"), "fsync")
    return lambda: reply.whole(order_id, 1_790_000_000_000, False)


class Exchange:
    """Calls of the script on a real store, new buyers in each."""

    def __init__(self, services: Services, sale: Sale) -> None:
        self.connection = StoreConnection(services.settings.store_url, "memory", 60.0, "micro")
        self._sale = sale
        self._script = LuaSource.read("reserve")
        self._numbers = itertools.count(0, BATCH)

    def following(self) -> tuple[Any, list[Any]]:
        """The next call, and the requests in it."""
        found = asks(self._sale, next(self._numbers), BATCH)
        return pack(self._sale.keys[0], self._sale.campaign, self._sale.epoch, found), found

    async def run(self, call: Any) -> Any:
        """The reply to one call."""
        [reply] = await self.connection.run(self._script, [call])
        return reply

    async def read_reply(self) -> Call:
        """From the reply of a batch that was accepted to its outcomes."""
        call, found = self.following()
        reply = await self.run(call)
        all_accepted(read(reply, found))
        return lambda: read(reply, found)


def all_accepted(answers: Answers) -> None:
    """Nothing else than acceptance is worth timing."""
    assert all(outcome.code is ReserveCode.ACCEPTED for outcome in answers.outcomes)
