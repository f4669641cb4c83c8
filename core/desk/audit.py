"""The audit: judges a campaign's balance over store, intake and ledger while the sale goes on.

The order of the readings is what makes it right without stopping anything. Per shard: first the store, in one instant
(orders accepted so far: `seq`, and the balance), then what is on its way in the intake, then the ledger, in one
snapshot. An entry leaves the intake only after its commit, so every order up to `seq` is by then in the ledger or was
seen on its way; and one that was seen on its way is counted once, whether the snapshot has it or not.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from redis.exceptions import RedisError

from core.desk.campaigns import Campaign, CampaignDesk, shares_here
from core.errors import CampaignLost, StoreUnavailable
from core.ids import text_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import AuditReport, AuditSku, Loosest
from core.wire import EntryInvalid, HoldInvalid, decode_placed, has_units, read_entry, read_hold
from lua.connection import SharedConnection
from lua.keys import SaleKeys, home_shards, sale_keys
from lua.scripts import Reading, Scripts

PAGE = 10  # entries, or hash fields, read from the store at once
RECORDS = 200_000  # holds read one by one; beyond it they are only counted
LETTERS = 10_000  # orders set aside whose units are counted; beyond it nobody knows how many they hold
DROP_S = 10.0  # an order that was given up has its hold released within so long, or the reconcile worker does it


@dataclass
class Tally:
    """What one shard adds to the report. Orders, unless a name says units."""

    accepted: int = 0
    persisted: int = 0
    dead: int = 0
    in_flight: int = 0
    lost: int = 0
    gap: int = 0
    phantom: int = 0
    duplicated: int = 0
    over_limit: int = 0
    units_in_ledger: Counter[str] = field(default_factory=Counter)  # orders up to `seq` that surely have their units
    units_unsure: Counter[str] = field(default_factory=Counter)  # whose units went back while we read, or are about to
    units_in_flight: Counter[str] = field(default_factory=Counter)  # orders up to `seq` that are not there yet
    units_unknown: bool = False  # of orders set aside that cannot be read: there is no saying what they hold
    findings: list[str] = field(default_factory=list)


@dataclass
class Balance:
    """Readings of all shards of a campaign, and what lies between them."""

    readings: list[Reading]
    moving: Counter[str]  # units that left one shard and have not arrived at another
    still: bool  # no unit moved from one shard to another meanwhile, so the sums over all shards are of one instant


@dataclass
class Books:
    """What the ledger has of one shard, in one snapshot."""

    persisted: int
    dead: int
    earlier: int  # of these two, orders of earlier epochs
    later: int
    known: set[bytes]
    sure: Counter[str]
    unsure: Counter[str]
    letters: list[bytes]  # orders set aside that may hold units, at most LETTERS + 1
    over_limit: list[asyncpg.Record]
    duplicated: int


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
        since = await ask(lambda: self._ledger.fetchval(query("ledger_clock")))
        balance = await self._balance(home, known)
        tallies = []
        for shard, reading in zip(home, balance.readings, strict=True):
            tally = await self._shard(known, shard, reading, since)
            self._weigh(shard, reading, tally)
            tallies.append(tally)
        total = Tally()
        judged = balance.still and moves == await self._moves(known, home)
        skus = self._skus(known, balance, tallies, moves if judged else None, total)
        return _report(tallies, skus, total)

    async def _balance(self, home: list[int], known: Campaign) -> Balance:
        """Readings between which no unit moved from shard to shard, where that can be had."""
        sales = [sale_keys(s, known.campaign) for s in home]
        readings = await self._read(sales, known)
        if len(sales) == 1:
            return Balance(readings, Counter(), True)
        moving: Counter[str] = Counter()
        for _ in range(20):
            moving = await self._moving(dict(zip(home, sales, strict=True)), readings)
            again = await self._read(sales, known)
            if [(r.allocation, r.moves) for r in readings] == [(r.allocation, r.moves) for r in again]:
                return Balance(again, moving, True)
            readings = again
        return Balance(readings, moving, False)

    async def _moving(self, sales: dict[int, SaleKeys], readings: list[Reading]) -> Counter[str]:
        """Units noted at their source that are not at their target yet. A note outlives the arrival by a moment."""
        noted = [(move_id, *move) for r in readings for move_id, move in r.moves.items()]
        if not noted:
            return Counter()
        arrived = await self._store.exchange([("HEXISTS", sales[to].deltas, i) for i, to, _, _ in noted])
        moving: Counter[str] = Counter()
        for reply, (_, _, sku, units) in zip(arrived, noted, strict=True):
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {reply}")
            moving[sku] += 0 if reply else units
        return moving

    async def _read(self, sales: list[SaleKeys], known: Campaign) -> list[Reading]:
        readings = await self._scripts.audit(sales)
        for keys, reading in zip(sales, readings, strict=True):
            if reading.meta.get("epoch") != str(known.epoch):
                found = reading.meta.get("epoch", "nothing")
                raise CampaignLost(f"{keys.meta.decode()}: epoch {known.epoch} wanted, {found} found")
            if reading.missing:
                raise CampaignLost(f"{keys.meta.decode()}: lost by the store: {reading.missing}")
        return readings

    async def _shard(self, known: Campaign, shard: int, reading: Reading, since: datetime) -> Tally:
        """The orders of one shard: accepted, on their way, in the ledger."""
        tally = Tally(accepted=reading.seq)
        on_the_way = await self._in_flight(known, shard, reading.seq, tally)
        books = await ask(lambda: self._books(known, shard, reading, list(on_the_way), since))
        tally.persisted, tally.dead, tally.duplicated = books.persisted, books.dead, books.duplicated
        tally.units_in_ledger, tally.units_unsure = books.sure, books.unsure
        _add_letters(books.letters, tally)
        for order_id, units in on_the_way.items():
            if order_id not in books.known:
                tally.in_flight += 1
                if not known.at_payment:  # these have no units yet
                    tally.units_in_flight.update(units)
        # What the store lost before a rebuild is not lost again with each audit: the gap is told by itself.
        tally.gap = max(0, reading.base - books.earlier)
        told = tally.persisted + tally.dead + tally.in_flight + tally.gap
        tally.lost, more = max(0, tally.accepted - told), told - tally.accepted
        [now] = await self._scripts.audit([sale_keys(shard, known.campaign)])
        tally.phantom = max(0, more) + max(0, books.later - (now.seq - reading.seq))
        tally.over_limit = len(books.over_limit)
        tally.findings += [
            f"shard {shard}: {r['kind']} {r['who']} has {r['units']} units, over the limit" for r in books.over_limit
        ]
        if not tally.in_flight and now.seq == reading.seq:
            await self._read_holds(sale_keys(shard, known.campaign), reading, tally)
        return tally

    async def _books(
        self, known: Campaign, shard: int, reading: Reading, on_the_way: list[bytes], since: datetime
    ) -> Books:
        """Everything of one snapshot; orders `on_the_way` may be written while we read."""
        where = (shard, known.campaign, known.epoch, reading.seq)
        first = home_shards(known.campaign, 1, self._shards)[0]
        async with (
            self._ledger.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            row = await connection.fetchrow(query("audit_orders"), *where, reading.base)
            campaign = await connection.fetchrow(query("get_campaign"), first, known.campaign)
            assert row is not None  # noqa: S101 - a SELECT of counts has one row
            assert campaign is not None  # noqa: S101 - nobody deletes campaigns
            # Of the same snapshot: a limit is loosened in the ledger first, then orders are accepted under it.
            limits = msgspec.json.decode(campaign["loosest"], type=Loosest)
            slot, spread = self._desk.home(known).index(shard), known.spec.spread
            shares = shares_here(limits.channel_shares or {}, slot, spread)
            bounds = (limits.buyer, limits.buyer_sku, limits.ip, limits.device, list(shares), list(shares.values()))
            there: set[bytes] = set()
            for n in range(0, len(on_the_way), 10_000):
                ids = [UUID(i) for i in on_the_way[n : n + 10_000]]
                there.update(r["order_id"].bytes for r in await connection.fetch(query("audit_known"), shard, ids))
            taken = query("audit_allocated") if known.at_payment else query("audit_units")
            units = await connection.fetch(taken, *where, since)
            letters: list[asyncpg.Record] = []
            if row["dead"] and not known.at_payment:  # those hold no units
                letters = await connection.fetch(query("audit_letters"), *where, since, DROP_S, LETTERS + 1)
            over = await connection.fetch(query("audit_limits"), shard, known.campaign, *bounds)
            duplicated = await connection.fetchval(query("audit_duplicates"), shard, known.campaign)
        sure, unsure = (Counter({r["sku"]: r[kind] for r in units}) for kind in ("sure", "unsure"))
        payloads = [r["payload"] for r in letters]
        counts = row["persisted"], row["dead"], row["known"], row["later"]
        return Books(*counts, there, sure, unsure, payloads, over, duplicated)

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
                    header, orders = read_entry(fields)
                except EntryInvalid as exc:
                    tally.findings.append(f"shard {shard}: entry {entry_id.decode()}: {exc}")
                    continue
                if (header.campaign, header.epoch) != (known.campaign, known.epoch):
                    continue
                for n, (order_id, order) in enumerate(orders):
                    if header.first_seq + n > seq:
                        continue
                    if len(order_id) != 16:
                        tally.findings.append(f"shard {shard}: entry {entry_id.decode()}: order id {order_id!r}")
                        continue
                    found[order_id] = Counter()
                    try:
                        for sku, quantity, _ in decode_placed(order).items:
                            found[order_id][sku] += quantity
                    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                        tally.findings.append(f"shard {shard}: order {text_of(order_id)} cannot be read: {exc}")
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
                    try:
                        for sku, quantity, _ in read_hold(hold)[0].items:
                            held[sku] += quantity if has_units(hold) else 0
                    except HoldInvalid as exc:
                        tally.findings.append(f"{keys.holds.decode()}: {order_id!r} cannot be read: {exc}")
            if cursor == b"0":
                break
        [after] = await self._scripts.audit([keys])
        # The number of holds too: units taken for one hold and sold of another leave what is held as it was.
        if (after.seq, after.holds, after.held) != (reading.seq, reading.holds, reading.held):
            return  # the sale went on meanwhile: another audit will judge
        for sku, count in reading.held.items():
            if held[sku] != count:
                tally.findings.append(
                    f"{keys.holds.decode()}: {sku}: holds add up to {held[sku]}, counter says {count}"
                )

    def _weigh(self, shard: int, reading: Reading, tally: Tally) -> None:
        """The store's own sums."""
        # A rebuild installs the keys that it knows; from then on each number has its key.
        keys = int(reading.meta.get("known", "0")) + reading.seq - reading.base
        if reading.requests != keys:
            tally.findings.append(f"shard {shard}: {keys} orders accepted, {reading.requests} keys recorded")
        for sku, left in reading.left.items():
            parts = left + reading.held[sku] + reading.sold[sku]
            if left < 0 or parts != reading.allocation[sku]:
                tally.findings.append(
                    f"shard {shard}: {sku}: {reading.allocation[sku]} allocated, {left} left, {parts} with the taken"
                )
            taken, here = reading.held[sku] + reading.sold[sku], tally.units_in_ledger[sku] + tally.units_in_flight[sku]
            # Units of a whole entry that was set aside are nowhere here; but then its orders are lost.
            more = taken > here + tally.units_unsure[sku] and not tally.units_unknown
            if not tally.lost and (taken < here or more):
                tally.findings.append(f"shard {shard}: {sku}: {taken} units taken in the store, {here} ordered")

    async def _moves(self, known: Campaign, home: list[int]) -> list[tuple[str, str, int]]:
        """SKU, state and units of each journalled change of stock."""
        rows = await ask(lambda: self._ledger.fetch(query("get_moves"), home, known.campaign))
        return [(row["sku"], row["state"], row["units"]) for row in rows]

    def _skus(
        self,
        known: Campaign,
        balance: Balance,
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
        skus, readings = [], balance.readings
        for spec in known.spec.skus:
            sku, moving = spec.sku, balance.moving[spec.sku]
            one = AuditSku(
                sku=sku,
                allocation=sum(r.allocation[sku] for r in readings) + moving,
                left=sum(r.left[sku] for r in readings) + moving,
                held=sum(r.held[sku] for r in readings),
                sold=sum(r.sold[sku] for r in readings),
                in_flight=sum(t.units_in_flight[sku] for t in tallies),
            )
            if moves is not None and sku not in pending and one.allocation != allocated[sku]:
                total.findings.append(
                    f"{sku}: allocation {one.allocation} in the store, {allocated[sku]} in the ledger"
                )
            skus.append(one)
        return skus


def _add_letters(payloads: list[bytes], tally: Tally) -> None:
    """Orders set aside hold their units until they are replayed or given up; one may just be about to be released."""
    tally.units_unknown = len(payloads) > LETTERS
    for payload in payloads:
        try:
            for sku, quantity, _ in decode_placed(payload).items:
                tally.units_unsure[sku] += quantity
        except (msgspec.DecodeError, UnicodeDecodeError):
            tally.units_unknown = True


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
        gap=sum(t.gap for t in tallies),
        skus=skus,
        findings=findings,
    )
