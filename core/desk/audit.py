"""The audit: judges a campaign's balance over store, intake and ledger while the sale goes on.

The order of the readings is what makes it right without stopping anything. Per shard: first the store, in one instant
(orders accepted so far: `seq`, and the balance), then what is on its way in the intake, then the ledger. An entry
leaves the intake only after its commit, so every order up to `seq` is by then in the ledger or was seen on its way.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from asyncpg.pgproto.pgproto import UUID
from redis.exceptions import RedisError

from core.desk.campaigns import Campaign, CampaignDesk
from core.errors import CampaignLost, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import AuditReport, AuditSku
from core.wire import EntryInvalid, decode_placed, read_header, read_hold
from lua.connection import SharedConnection
from lua.keys import SaleKeys, home_shards, sale_keys
from lua.scripts import Reading, Scripts

PAGE = 100  # entries, or hash fields, read from the store at once
RECORDS = 200_000  # holds read one by one; beyond it they are only counted


@dataclass
class Tally:
    """What one shard adds to the report. Orders, unless a name says units."""

    accepted: int = 0
    persisted: int = 0
    dead: int = 0
    in_flight: int = 0
    lost: int = 0
    phantom: int = 0
    duplicated: int = 0
    over_limit: int = 0
    units_in_ledger: Counter[str] = field(default_factory=Counter)  # orders in the ledger up to `seq`
    units_in_flight: Counter[str] = field(default_factory=Counter)  # orders up to `seq` that are not there yet
    findings: list[str] = field(default_factory=list)


class Auditor:
    """One per process; the store connection and the pool are the caller's."""

    def __init__(self, desk: CampaignDesk, store: SharedConnection, ledger: Pool, shards: int) -> None:
        self._desk = desk
        self._store = store
        self._scripts = Scripts(store)
        self._ledger = ledger
        self._shards = shards

    async def audit(self, campaign: str) -> AuditReport:
        """Invariants 1 to 6 of one campaign, per SKU and per buyer; 7 is `unsold`, judged by who knows the demand.

        Raises: CampaignUnknown, CampaignLost, StoreUnavailable, LedgerUnavailable.
        """
        known = await self._desk.show(campaign)
        if known.state == "draft":
            nothing = [AuditSku(sku=s.sku, allocation=0, left=0, held=0, sold=0, in_flight=0) for s in known.spec.skus]
            return _report([], nothing, Tally())
        home = home_shards(campaign, known.spec.spread, self._shards)
        moves = await self._moves(known, home)
        readings = await self._still_reading([sale_keys(s, campaign) for s in home], known)
        tallies = []
        for shard, reading in zip(home, readings, strict=True):
            tally = await self._shard(known, shard, reading)
            self._weigh(shard, reading, tally)
            tallies.append(tally)
        total = Tally()
        still = moves == await self._moves(known, home)
        skus = self._skus(known, readings, tallies, moves if still else None, total)
        return _report(tallies, skus, total)

    async def _still_reading(self, sales: list[SaleKeys], known: Campaign) -> list[Reading]:
        """Readings of all shards between which no unit moved from one to another, where that can be had."""
        readings = await self._read(sales, known)
        for _ in range(20):
            if len(sales) == 1:
                break
            again = await self._read(sales, known)
            if [(r.allocation, r.moves) for r in readings] == [(r.allocation, r.moves) for r in again]:
                break
            readings = again
        return readings

    async def _read(self, sales: list[SaleKeys], known: Campaign) -> list[Reading]:
        readings = await self._scripts.audit(sales)
        for keys, reading in zip(sales, readings, strict=True):
            if reading.meta.get("epoch") != str(known.epoch):
                found = reading.meta.get("epoch", "nothing")
                raise CampaignLost(f"{keys.meta.decode()}: epoch {known.epoch} wanted, {found} found")
        return readings

    async def _shard(self, known: Campaign, shard: int, reading: Reading) -> Tally:
        """The orders of one shard: accepted, on their way, in the ledger."""
        tally = Tally(accepted=reading.seq)
        on_the_way = await self._in_flight(known, shard, reading.seq, tally)
        where = (shard, known.campaign, known.epoch)
        row = await ask(lambda: self._ledger.fetchrow(query("audit_orders"), *where, reading.seq))
        assert row is not None  # noqa: S101 - a SELECT of counts has one row
        tally.persisted, tally.dead = row["persisted"], row["dead"]
        there: set[bytes] = set()
        ids = list(on_the_way)
        for n in range(0, len(ids), 10_000):
            some = [UUID(i) for i in ids[n : n + 10_000]]
            rows = await ask(partial(self._ledger.fetch, query("audit_known"), shard, some))
            there.update(r["order_id"].bytes for r in rows)
        for order_id, units in on_the_way.items():
            if order_id not in there:
                tally.in_flight += 1
                tally.units_in_flight.update(units)
        tally.lost = max(0, tally.accepted - tally.persisted - tally.dead - tally.in_flight)
        more = tally.persisted + tally.dead + tally.in_flight - tally.accepted
        [now] = await self._scripts.audit([sale_keys(shard, known.campaign)])
        tally.phantom = max(0, more) + max(0, row["later"] - (now.seq - reading.seq))
        for r in await ask(lambda: self._ledger.fetch(query("audit_units"), *where, reading.seq)):
            tally.units_in_ledger[r["sku"]] += r["units"]
        limits = known.spec.limits
        over = await ask(
            lambda: self._ledger.fetch(
                query("audit_limits"), shard, known.campaign,
                limits.buyer, limits.buyer_sku, limits.ip, limits.device,
            )
        )  # fmt: skip
        tally.over_limit = len(over)
        tally.findings += [
            f"shard {shard}: {r['kind']} {r['who']} has {r['units']} units, over the limit" for r in over
        ]
        tally.duplicated = int(
            await ask(lambda: self._ledger.fetchval(query("audit_duplicates"), shard, known.campaign)) or 0
        )
        if not tally.in_flight and now.seq == reading.seq:
            await self._read_holds(sale_keys(shard, known.campaign), reading, tally)
        return tally

    async def _in_flight(self, known: Campaign, shard: int, seq: int, tally: Tally) -> dict[bytes, Counter[str]]:
        """Orders of this campaign up to `seq` that stand in the intake: order id -> units by SKU."""
        found: dict[bytes, Counter[str]] = {}
        keys = sale_keys(shard, known.campaign)
        start = b"-"
        while True:
            [page] = await self._store.exchange([("XRANGE", keys.intake, start, "+", "COUNT", PAGE)])
            if isinstance(page, RedisError):
                raise StoreUnavailable(f"the store answers {page}")
            for entry_id, fields in page:
                try:
                    header = read_header(fields[1])
                except EntryInvalid as exc:
                    tally.findings.append(f"shard {shard}: entry {entry_id.decode()}: {exc}")
                    continue
                if (header.campaign, header.epoch) != (known.campaign, known.epoch):
                    continue
                for n, (order_id, order) in enumerate(zip(fields[2::2], fields[3::2], strict=True)):
                    if header.first_seq + n <= seq:
                        items = decode_placed(order).items
                        found[order_id] = Counter()
                        for sku, quantity, _ in items:
                            found[order_id][sku] += quantity
            if len(page) < PAGE:
                return found
            start = b"(" + page[-1][0]
            await asyncio.sleep(0)  # a long backlog does not keep the process from its other work

    async def _read_holds(self, keys: SaleKeys, reading: Reading, tally: Tally) -> None:
        """The holds add up to what is held, where nothing moves and there are not too many."""
        if reading.holds > RECORDS:
            return
        held: Counter[str] = Counter()
        cursor = b"0"
        seen: set[bytes] = set()
        while True:
            [reply] = await self._store.exchange([("HSCAN", keys.holds, cursor, "COUNT", 10 * PAGE)])
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {reply}")
            cursor, pairs = reply
            for order_id, hold in zip(pairs[::2], pairs[1::2], strict=True):
                if order_id not in seen:  # a scan may show a field twice
                    seen.add(order_id)
                    for sku, quantity, _ in read_hold(hold)[0].items:
                        held[sku] += quantity
            if cursor == b"0":
                break
        [after] = await self._scripts.audit([keys])
        if after.seq != reading.seq or after.held != reading.held:
            return  # the sale went on meanwhile: another audit will judge
        for sku, count in reading.held.items():
            if held[sku] != count:
                tally.findings.append(
                    f"{keys.holds.decode()}: {sku}: holds add up to {held[sku]}, counter says {count}"
                )

    def _weigh(self, shard: int, reading: Reading, tally: Tally) -> None:
        """The store's own sums."""
        if reading.requests != reading.seq:
            tally.findings.append(f"shard {shard}: {reading.seq} orders accepted, {reading.requests} keys recorded")
        for sku, left in reading.left.items():
            parts = left + reading.held[sku] + reading.sold[sku]
            if left < 0 or parts != reading.allocation[sku]:
                tally.findings.append(
                    f"shard {shard}: {sku}: {reading.allocation[sku]} allocated, {left} left, {parts} with the taken"
                )
            here = tally.units_in_ledger[sku] + tally.units_in_flight[sku]
            if not tally.dead and not tally.lost and here != reading.held[sku] + reading.sold[sku]:
                taken = reading.held[sku] + reading.sold[sku]
                tally.findings.append(f"shard {shard}: {sku}: {taken} units taken in the store, {here} ordered")

    async def _moves(self, known: Campaign, home: list[int]) -> list[tuple[str, str, int]]:
        """SKU, state and units of each journalled change of stock."""
        rows = await ask(lambda: self._ledger.fetch(query("get_moves"), home, known.campaign))
        return [(row["sku"], row["state"], row["units"]) for row in rows]

    def _skus(
        self,
        known: Campaign,
        readings: list[Reading],
        tallies: list[Tally],
        moves: list[tuple[str, str, int]] | None,
        total: Tally,
    ) -> list[AuditSku]:
        """The balance per SKU over all shards, against what the ledger put on sale; None = that changed meanwhile."""
        allocated: Counter[str] = Counter()
        pending: set[str] = set()
        for sku, state, units in moves or []:
            if state == "applied":
                allocated[sku] += units
            elif state == "pending":
                pending.add(sku)
        skus = []
        for spec in known.spec.skus:
            sku = spec.sku
            moving = sum(units for r in readings for _, moved, units in r.moves.values() if moved == sku)
            one = AuditSku(
                sku=sku,
                allocation=sum(r.allocation[sku] for r in readings) + moving,
                left=sum(r.left[sku] for r in readings) + moving,
                held=sum(r.held[sku] for r in readings),
                sold=sum(r.sold[sku] for r in readings),
                in_flight=sum(t.units_in_flight[sku] for t in tallies),
            )
            if moves is not None and not moving and sku not in pending and one.allocation != allocated[sku]:
                total.findings.append(
                    f"{sku}: allocation {one.allocation} in the store, {allocated[sku]} in the ledger"
                )
            skus.append(one)
        return skus


def _report(tallies: list[Tally], skus: list[AuditSku], total: Tally) -> AuditReport:
    ordered: Counter[str] = Counter()
    for t in tallies:
        ordered.update(t.units_in_ledger)
        ordered.update(t.units_in_flight)
    oversold = sum(max(0, max(ordered[s.sku], s.held + s.sold) - s.allocation) for s in skus)
    findings = [f for t in tallies for f in t.findings] + total.findings
    lost, phantom = sum(t.lost for t in tallies), sum(t.phantom for t in tallies)
    duplicated, over_limit = sum(t.duplicated for t in tallies), sum(t.over_limit for t in tallies)
    return AuditReport(
        ok=not (oversold or lost or phantom or duplicated or over_limit or findings),
        accepted=sum(t.accepted for t in tallies),
        persisted=sum(t.persisted for t in tallies),
        oversold=oversold,
        lost=lost,
        duplicated=duplicated,
        unsold=sum(s.left for s in skus),
        phantom=phantom,
        over_limit=over_limit,
        in_flight=sum(t.in_flight for t in tallies),
        dead_lettered=sum(t.dead for t in tallies),
        skus=skus,
        findings=findings,
    )
