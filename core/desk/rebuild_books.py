"""What the ledger says a campaign's shard must hold in the store: requests, holds, limits and units, from its orders.

How far an order has come is read from its events, never from the outbox: event and message are of one transaction, so a
message that is still to be delivered finds its work done, and one that is not written yet finds the hold.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import partial

import asyncpg
import msgspec

from core.desk.campaigns import Campaign
from core.flows import FLOWS
from core.ids import parse
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import ShipTo
from core.wire import ALL_COUNTED, NO_UNITS, TOO_LATE, Held, Placed, decode_placed, encode, fingerprint, request_field

PAGE = 1_000  # orders read at once
RANGES = 50  # of missing numbers that are told one by one

Pairs = dict[bytes, bytes | int | str]

decode_ship_to = msgspec.json.Decoder(ShipTo | None).decode


@dataclass
class Part:
    """Fields for the store, of a page of orders."""

    requests: Pairs = field(default_factory=dict)
    holds: Pairs = field(default_factory=dict)
    deltas: Pairs = field(default_factory=dict)


@dataclass
class Sums:
    """What all pages of a shard come to."""

    used: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)  # units by SKU
    sold: Counter[str] = field(default_factory=Counter)
    allocation: Counter[str] = field(default_factory=Counter)  # as the ledger put on sale here
    ranges: list[list[int]] = field(default_factory=list)  # numbers of orders and letters: first, last; unsorted
    orders: int = 0
    known: int = 0  # requests

    def number(self, number: int) -> None:
        """Somebody has this number. They come nearly sorted, so a million of them are a few ranges."""
        if self.ranges and number == self.ranges[-1][1] + 1:
            self.ranges[-1][1] = number
        else:
            self.ranges.append([number, number])

    def missing(self, base: int) -> tuple[int, str]:
        """The numbers 1 to `base` that nobody has: how many, and as ranges."""
        gaps, before = [], 0
        for first, last in [*sorted(self.ranges), [base + 1, base + 1]]:
            if min(first, base + 1) > before + 1:
                gaps.append((before + 1, min(first, base + 1) - 1))
            before = max(before, last)
        told = [str(a) if a == b else f"{a}-{b}" for a, b in gaps[:RANGES]]
        more = f", and {len(gaps) - RANGES} ranges more" if len(gaps) > RANGES else ""
        return sum(b - a + 1 for a, b in gaps), ", ".join(told) + more


class Books:
    """The ledger's side of one campaign on one shard. `sums` is complete once `parts` is at its end."""

    def __init__(self, ledger: Pool, known: Campaign, shard: int, moves: Iterable[asyncpg.Record]) -> None:
        """`moves`: the journalled changes of stock of this shard, read after nobody can apply one any more."""
        self._ledger = ledger
        self._known = known
        self._shard = shard
        self.sums = Sums()
        self._moves: Pairs = {}
        self._back: set[bytes] = set()  # orders whose units came back
        for move in moves:
            if move["state"] != "applied":
                continue
            self.sums.allocation[move["sku"]] += move["units"]
            if move["kind"] == "return":  # return.<order id>.<version>.<SKU>
                self._back.add(parse(move["move_id"][7:43]) or b"")
            elif move["kind"] != "open":
                self._moves[move["move_id"].encode()] = f"{move['sku']} {move['units']}"

    async def parts(self) -> AsyncIterator[Part]:
        """All that stands per order or move, page by page. Raises: LedgerUnavailable."""
        yield Part(deltas=self._moves)
        yield self._letters(await self._fetch("rebuild_letters"))
        endings = FLOWS[self._known.spec.order_type].ending_moves()
        after = (0, 0)
        while True:
            rows = await self._fetch("rebuild_orders", *after, PAGE, *endings)
            part = Part()
            for row in rows:
                self._order(row, part)
            yield part
            if len(rows) < PAGE:
                return
            after = (rows[-1]["epoch"], rows[-1]["seq"])

    async def _fetch(self, name: str, *values: object) -> list[asyncpg.Record]:
        texts = {"rebuild_letters": query("rebuild_letters"), "rebuild_orders": query("rebuild_orders")}
        return list(await ask(partial(self._ledger.fetch, texts[name], self._shard, self._known.campaign, *values)))

    def _order(self, row: asyncpg.Record, part: Part) -> None:
        items = list(zip(row["skus"], row["quantities"], row["prices"], strict=True))
        ship_to = None if row["ship_to"] is None else decode_ship_to(row["ship_to"])
        held = Held(
            row["channel"], row["request_key"], row["buyer_id"], items, row["amount"], row["currency"],
            row["client_ip"], row["device_id"],
        )  # fmt: skip
        self.sums.orders += 1
        self.sums.number(row["seq"])
        times = row["accepted_ms"], row["pay_by_ms"]
        self._take(row["order_id"].bytes, held, ship_to, times, row["ended"], part)

    def _letters(self, rows: list[asyncpg.Record]) -> Part:
        """Orders that were set aside keep what they were promised, unless they had lost it already."""
        part = Part()
        for row in rows:
            self.sums.number(row["seq"])
            if row["reason"].startswith(TOO_LATE):
                continue
            try:
                placed: Placed = decode_placed(row["payload"])
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # nobody can tell what it holds
            # Its entry alone knew its times; the id of the entry is the store's clock at that moment.
            accepted_ms = int(row["entry_id"].partition("-")[0])
            times = accepted_ms, accepted_ms + self._known.spec.pay_within_s * 1000
            held = Held(*(getattr(placed, name) for name in Held.__struct_fields__))
            ended = "release" if row["dropped"] else None
            self._take(row["order_id"].bytes, held, placed.ship_to, times, ended, part)
        return part

    def _take(
        self, order_id: bytes, held: Held, ship_to: ShipTo | None, times: tuple[int, int], ended: str | None, part: Part
    ) -> None:
        stamp = times[0].to_bytes(6, "big") + times[1].to_bytes(6, "big")
        print_ = fingerprint(held.buyer_id, held.items, held.device_id, ship_to)
        part.requests[request_field(held.channel, held.request_key)] = order_id + print_ + stamp
        self.sums.known += 1
        if ended == "release":
            return
        if ended == "settle":
            part.deltas[order_id] = "back" if order_id in self._back else ALL_COUNTED
            if order_id not in self._back:
                self._count(held)
            for sku, units, _ in held.items:
                self.sums.sold[sku] += units
            return
        bare = NO_UNITS if self._known.at_payment else 0
        part.holds[order_id] = encode(held) + bytes([ALL_COUNTED + bare]) + stamp
        self._count(held)
        if not bare:
            for sku, units, _ in held.items:
                self.sums.held[sku] += units

    def _count(self, held: Held) -> None:
        """Every limit is counted, whichever are set: one that comes back finds its counters complete."""
        used, total = self.sums.used, 0
        for sku, units, _ in held.items:
            total += units
            used[f"s:{held.buyer_id} {sku}"] += units
        used[f"b:{held.buyer_id}"] += total
        used[f"c:{held.channel}"] += total
        if held.client_ip:
            used[f"i:{held.client_ip}"] += total
        if held.device_id:
            used[f"d:{held.device_id}"] += total
