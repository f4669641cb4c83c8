"""Rebuild: a campaign that the store lost is installed there again from the ledger, under a new epoch.

In this order, and each step can be repeated by anybody:

1. The store is fenced (lua/fence.lua): no script finds the campaign, so nothing is added to the intake.
2. What stands in the intake is drained by the ledger workers.
3. The new epoch begins in the ledger, while nobody writes orders: what comes later under an older one is set aside.
4. The store is emptied, and filled page by page; the last part puts the epoch in service, still not on sale.
5. The audit judges it. Only then ledger and store have the state that it had before.

Every attempt is an epoch of its own, so one that was broken off or overtaken can do no harm.
"""

import asyncio
import logging
import time
from functools import partial
from itertools import islice

import asyncpg
from msgspec import Struct
from redis.exceptions import RedisError

from core.desk.audit import Auditor
from core.desk.campaigns import Campaign, CampaignDesk, meta_of
from core.desk.rebuild_books import Books, Pairs
from core.errors import LedgerUnavailable, Refused, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import AuditReport
from lua.connection import SharedConnection
from lua.keys import SaleKeys, portion, sale_keys
from lua.scripts import MAX_PAIRS, FenceCode, Reading, RebuildCode, Scripts

logger = logging.getLogger("rushgate.rebuild")

LEASE_S = 10.0  # after so long without a sign another one may take over
RENEW_S = 2.0
DRAIN_S = 60.0  # longest wait for the ledger workers
LOOK_S = 0.02  # between two looks at the intake


class Units(Struct, frozen=True):
    """A SKU's balance over all shards, in units. Before a rebuild: what the store says."""

    sku: str
    allocation: int
    left: int
    held: int
    sold: int


class Shard(Struct, frozen=True):
    """What was installed on a shard, or would be."""

    shard: int
    base: int  # the greatest number known: the next order has the next one
    orders: int
    gap: int  # numbers up to `base` that nobody has: orders that the store lost
    missing: str  # these as ranges


class Rebuilt(Struct, frozen=True):
    """A rebuild, made or planned."""

    campaign: str
    epoch: int
    before: list[Units]
    after: list[Units]
    shards: list[Shard]
    audit: AuditReport | None = None  # None: it was only planned, or cannot be put in service
    state: str = "recovering"

    @property
    def oversold(self) -> list[Units]:
        """SKUs of which more is promised than there ever was."""
        return [u for u in self.after if u.left < 0]


def sound(report: AuditReport) -> bool:
    """Whether the store is as the ledger wants it. A limit that orders of the ledger pass is not the store's affair."""
    others = [text for text in report.findings if not text.endswith("over the limit")]
    return not (report.oversold or report.lost or report.phantom or report.duplicated or others)


class Rebuilder:
    """One per process; the store connection and the pool are the caller's. `who`: unlike any other living process."""

    def __init__(self, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool, who: str) -> None:
        self._desk = desk
        self._auditor = auditor
        self._store = store
        self._scripts = Scripts(store)
        self._ledger = ledger
        self._who = who
        self._renewed_s = 0.0

    async def plan(self, campaign: str) -> Rebuilt:
        """What a rebuild would come to now; nothing is changed. Raises: as `rebuild`."""
        known = await self._rebuildable(campaign)
        readings = await self._scripts.audit(self._desk.keys(known))
        books = await self._books(known)
        for one in books:
            async for _ in one.parts():
                pass
        bases = await self._bases(known, readings)
        return self._told(known, readings, books, bases)

    async def set_aside(self, campaign: str, why: str) -> None:
        """The campaign is out of service until it is rebuilt, its data in the store stay. Raises: as `rebuild`."""
        known = await self._begin(await self._rebuildable(campaign), why)
        await self._leave(known)

    async def rebuild(self, campaign: str, why: str) -> Rebuilt:
        """The campaign is in the store as the ledger has it, under a new epoch, and back in its state if the audit
        finds it so; else it stays `recovering`, and the result says why.

        Raises: CampaignUnknown; Refused if it was never opened, if somebody else rebuilds it, or if the intake is not
        drained; StoreUnavailable, LedgerUnavailable: broken off, and to be done again.
        """
        known = await self._rebuildable(campaign)
        readings = await self._scripts.audit(self._desk.keys(known))
        known = await self._begin(known, why)
        try:
            return await self._install(known, readings)
        finally:
            await self._leave(known)

    async def _rebuildable(self, campaign: str) -> Campaign:
        known = await self._desk.show(campaign)
        if known.state in ("draft", "opening"):
            raise Refused(f"campaign {campaign} is {known.state}: open it")
        return known

    async def _begin(self, known: Campaign, why: str) -> Campaign:
        """Steps 1 to 3."""
        first, home = self._desk.home(known)[0], self._desk.home(known)
        lease = await ask(lambda: self._ledger.fetchrow(query("rebuild_lease"), first, known.campaign))
        if lease is not None and (lease["left_s"] or 0) > 0 and lease["rebuilt_by"] != self._who:
            raise Refused(
                f"campaign {known.campaign} is being rebuilt by {lease['rebuilt_by']}; if that has died, anybody may "
                f"in {lease['left_s']:.0f} s"
            )
        epoch = await self._fence(known)
        await self._drained(known)
        found = await ask(partial(self._new_epoch, first, home, known.campaign, epoch, why))
        if found is None:
            raise Refused(f"campaign {known.campaign} is being rebuilt by somebody else")
        self._renewed_s = time.monotonic()
        logger.warning("campaign is rebuilt", extra={"campaign": known.campaign, "epoch": epoch, "why": why})
        # What operators changed until just now counts.
        return await self._desk.show(known.campaign)

    async def _fence(self, known: Campaign) -> int:
        """No script finds the campaign on any shard. Returns the new epoch, greater than any that was met."""
        deployment, epoch = await self._desk.deployment(), known.epoch + 1
        for keys in self._desk.keys(known):
            while True:
                code, found = await self._scripts.fence(keys, epoch, deployment, False)
                if code is FenceCode.FOREIGN:
                    raise Refused(f"the store holds campaign {known.campaign} of another deployment")
                if code is not FenceCode.FENCED:
                    break
                epoch = found + 1
        return epoch

    async def _drained(self, known: Campaign) -> None:
        """Whatever stood in the campaign's intake at the beginning of this call is in the ledger or set aside."""
        until_s = time.monotonic() + DRAIN_S
        for shard in self._desk.home(known):
            intake = sale_keys(shard, known.campaign).intake
            [tail] = await self._tell("XREVRANGE", intake, "+", "-", "COUNT", 1)
            while tail:
                [head] = await self._tell("XRANGE", intake, "-", tail[0][0], "COUNT", 1)
                if not head:
                    break
                if time.monotonic() > until_s:
                    raise Refused(
                        f"the intake of shard {shard} is not drained: a ledger worker must run; {known.campaign} stays "
                        "out of service until then"
                    )
                await asyncio.sleep(LOOK_S)

    async def _tell(self, *command: bytes | str | int) -> list[list[tuple[bytes, list[bytes]]]]:
        replies = await self._store.exchange([command])
        for reply in replies:
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {reply}")
        return replies

    async def _new_epoch(
        self, first: int, home: list[int], campaign: str, epoch: int, why: str
    ) -> asyncpg.Record | None:
        async with self._ledger.acquire() as connection, connection.transaction():
            await connection.execute(query("lock_writers"))
            row = await connection.fetchrow(query("begin_rebuild"), first, campaign, epoch, self._who, LEASE_S)
            if row is not None:
                await connection.execute(query("put_rebuilds"), home, campaign, epoch, self._who, why[:1_000])
            return row

    async def _books(self, known: Campaign) -> list[Books]:
        home = self._desk.home(known)
        moves = await ask(lambda: self._ledger.fetch(query("get_moves"), home, known.campaign))
        return [Books(self._ledger, known, shard, [m for m in moves if m["shard"] == shard]) for shard in home]

    async def _bases(self, known: Campaign, readings: list[Reading]) -> list[int]:
        """The greatest number of each shard that ledger or store know of."""
        home = self._desk.home(known)
        rows = await ask(lambda: self._ledger.fetch(query("last_numbers"), home, known.campaign))
        last = {row["shard"]: row["seq"] for row in rows}
        return [max(last[shard], reading.seq) for shard, reading in zip(home, readings, strict=True)]

    async def _install(self, known: Campaign, readings: list[Reading]) -> Rebuilt:
        """Steps 4 and 5."""
        home, deployment = self._desk.home(known), await self._desk.deployment()
        books = await self._books(known)
        for shard, one in zip(home, books, strict=True):
            keys = sale_keys(shard, known.campaign)
            code, _ = await self._scripts.fence(keys, known.epoch, deployment, True)
            if code in (FenceCode.FENCED, FenceCode.FOREIGN):
                raise Refused(f"campaign {known.campaign} is being rebuilt by somebody else")
            async for part in one.parts():
                for target, pairs in ((keys.requests, part.requests), (keys.holds, part.holds),
                                      (keys.deltas, part.deltas)):  # fmt: skip
                    await self._put(known, keys, target, pairs)
                await self._renew(known)
            await self._put(known, keys, keys.used, {k.encode(): n for k, n in one.sums.used.items()})
        bases = await self._bases(known, readings)
        told = self._told(known, readings, books, bases)
        left = {u.sku: u.left for u in told.after}
        if told.oversold:
            await self._journal(known, books, told)
            return told
        for slot, (shard, one) in enumerate(zip(home, books, strict=True)):
            keys = sale_keys(shard, known.campaign)
            stock: Pairs = {}
            for sku, units in left.items():
                here = portion(units, slot, len(home))
                held, sold = one.sums.held[sku], one.sums.sold[sku]
                name = sku.encode()
                stock |= {name: here, b"a:" + name: here + held + sold, b"h:" + name: held, b"s:" + name: sold}
            await self._put(known, keys, keys.stock, stock)
            await self._put(known, keys, keys.meta, self._meta(known, deployment, bases[slot], one), last=True)
            await self._renew(known)
        await self._journal(known, books, told)
        return await self._open(known, told)

    def _meta(self, known: Campaign, deployment: str, base: int, books: Books) -> Pairs:
        fields = {
            **meta_of(known.spec, "recovering"), "version": known.version, "lease_ms": self._desk.lease_ms,
            "deployment": deployment, "reopen": 0, "seq": base, "base": base, "known": books.sums.known,
            "count_buyer_sku": 1, "count_ip": 1, "count_device": 1,
        }  # fmt: skip
        return {name.encode(): value for name, value in fields.items()}

    async def _put(self, known: Campaign, keys: SaleKeys, target: bytes, pairs: Pairs, last: bool = False) -> None:
        rest = iter(pairs.items())
        while chunk := dict(islice(rest, MAX_PAIRS)):
            code = await self._scripts.rebuild(keys, known.epoch, target, chunk, last)
            if code is RebuildCode.FENCED:
                raise Refused(
                    f"campaign {known.campaign} is being rebuilt by somebody else, or the store lost it again"
                )

    async def _renew(self, known: Campaign) -> None:
        if time.monotonic() - self._renewed_s < RENEW_S:
            return
        values = (self._desk.home(known)[0], known.campaign, known.epoch, self._who, LEASE_S)
        if await ask(lambda: self._ledger.fetchval(query("renew_rebuild"), *values)) is None:
            raise Refused(f"campaign {known.campaign} is being rebuilt by somebody else")
        self._renewed_s = time.monotonic()

    async def _leave(self, known: Campaign) -> None:
        values = (self._desk.home(known)[0], known.campaign, known.epoch, self._who)
        try:
            await ask(lambda: self._ledger.execute(query("leave_rebuild"), *values))
        except LedgerUnavailable:  # then the lease runs out
            logger.warning("rebuild left without a farewell", extra={"campaign": known.campaign})

    async def _journal(self, known: Campaign, books: list[Books], told: Rebuilt) -> None:
        for one, shard in zip(books, told.shards, strict=True):
            values = (
                shard.shard, known.campaign, known.epoch, shard.base, shard.orders, one.sums.held.total(),
                one.sums.sold.total(), shard.gap, shard.missing,
            )  # fmt: skip
            await ask(partial(self._ledger.execute, query("finish_rebuild"), *values))
            if shard.gap:
                facts = {"campaign": known.campaign, "shard": shard.shard, "gap": shard.gap, "missing": shard.missing}
                logger.error("orders lost by the store", extra=facts)

    async def _open(self, known: Campaign, told: Rebuilt) -> Rebuilt:
        """Back in its state, if the audit finds the store as the ledger wants it."""
        # Changes of stock that the old store had made, or was about to make, and the journal does not know as made.
        await self._desk.finish_moves(known)
        report = await self._auditor.audit(known.campaign)
        if not sound(report):  # a change may have passed through just then
            report = await self._auditor.audit(known.campaign)
        if sound(report):
            values = (self._desk.home(known)[0], known.campaign, known.epoch, self._who)
            if await ask(lambda: self._ledger.fetchval(query("end_rebuild"), *values)) is None:
                raise Refused(f"campaign {known.campaign} is being rebuilt by somebody else")
            known = await self._desk.show(known.campaign)
            await self._desk.tell_store(known)
            logger.warning("campaign is back", extra={"campaign": known.campaign, "state": known.state})
        return Rebuilt(told.campaign, told.epoch, told.before, told.after, told.shards, report, known.state)

    def _told(self, known: Campaign, readings: list[Reading], books: list[Books], bases: list[int]) -> Rebuilt:
        before, after = [], []
        for spec in known.spec.skus:
            sku = spec.sku
            sums = [
                sum(getattr(r, name).get(sku, 0) for r in readings) for name in ("allocation", "left", "held", "sold")
            ]
            before.append(Units(sku, *sums))
            allocation, held, sold = (
                sum(getattr(b.sums, name)[sku] for b in books) for name in ("allocation", "held", "sold")
            )
            after.append(Units(sku, allocation, allocation - held - sold, held, sold))
        shards = []
        for shard, one, base in zip(self._desk.home(known), books, bases, strict=True):
            gap, missing = one.sums.missing(base)
            shards.append(Shard(shard, base, one.sums.orders, gap, missing))
        return Rebuilt(known.campaign, known.epoch, before, after, shards)
