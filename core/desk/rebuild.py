"""Rebuild: a campaign that the store lost is installed there again from the ledger, under a new epoch.

In this order, and each step can be repeated by anybody:

1. The store is fenced (lua/fence.lua): no script finds the campaign, so nothing is added to the intake.
2. What stands in the intake is drained by the ledger workers; gateways say what they were told of (lua/witness.py).
3. The new epoch begins in the ledger, while nobody writes orders: what comes later under an older one is set aside.
4. The store is emptied, and filled page by page; the last part puts the epoch in service, still not on sale.
5. The audit judges it. Only then, and not before every gateway has forgotten what it was told to be sold out, ledger
   and store have the state that it had before.

Every attempt is an epoch of its own, so one that was broken off or overtaken can do no harm.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import asyncpg
import msgspec
from redis.exceptions import RedisError

from core.desk.audit import Auditor
from core.desk.campaigns import Campaign, CampaignDesk, meta_of
from core.desk.heads import Head
from core.desk.rebuild_books import Books, Pairs
from core.desk.rebuild_lease import LEASE_S, Lease
from core.desk.rebuilt import Rebuilt, Shard, Units, sound
from core.errors import LedgerUnavailable, Refused, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import AuditReport
from lua.connection import SharedConnection
from lua.keys import SaleKeys, portion, sale_keys
from lua.scripts import LAYOUT, FenceCode, Reading, RebuildCode, Scripts
from lua.witness import HEARD_S, call

logger = logging.getLogger("rushgate.rebuild")

DRAIN_S = 60.0  # longest wait for the ledger workers
STILL_S = 15.0  # as long, while nothing leaves the intake; a dead worker's entries are claimed before
LOOK_S = 0.02  # between two looks at the intake
LOCK_TRIES = 10  # for the writers' lock, which is waited for at most a second
CHUNK = 500  # fields in one call: the store sells other campaigns meanwhile, and does nothing else during a call


class Rebuilder:
    """One per process; the store connection and the pool are the caller's. `who`: unlike any other living process."""

    def __init__(self, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool, who: str) -> None:
        self._desk = desk
        self._auditor = auditor
        self._store = store
        self._scripts = Scripts(store)
        self._ledger = ledger
        self._who = who

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
        async with Lease(self._ledger, self._desk.home(known)[0], known, self._who):
            return

    async def fence(self, head: Head) -> None:
        """The store has the campaign under no epoch: nothing of it is sold or changed until it is rebuilt.

        Raises: Refused if it was rebuilt since, or if the store has another deployment's campaign of this name;
        StoreUnavailable, LedgerUnavailable. The other shards are fenced all the same.
        """
        wrong: list[Refused | StoreUnavailable] = []
        for keys in head.keys:
            try:
                await self._fence(head.campaign, head.epoch, [keys])
            except (Refused, StoreUnavailable) as exc:
                wrong.append(exc)
        if wrong:
            raise wrong[0]

    async def rebuild(self, campaign: str, why: str, judged: Campaign | None = None) -> Rebuilt:
        """The campaign is in the store as the ledger has it, under a new epoch, and back in its state if the audit
        finds it so; else it stays `recovering`, and the result says why.

        `judged`: as it was when somebody found that it must be rebuilt; if it was rebuilt since, it need not be.

        Raises: CampaignUnknown; Refused if it was never opened, if somebody else rebuilds it or has done so, or if the
        intake is not drained; StoreUnavailable, LedgerUnavailable: broken off, and to be done again.
        """
        known = await self._rebuildable(campaign)
        self._same(campaign, (judged or known).epoch, known.epoch)
        readings = await self._scripts.audit(self._desk.keys(known))
        fenced_s = time.monotonic()
        known = await self._begin(known, why)
        async with Lease(self._ledger, self._desk.home(known)[0], known, self._who) as lease:
            told, report = await self._install(known, readings, lease)
            if report is None or not sound(report):
                return msgspec.structs.replace(told, audit=report)
            longest_ms = max([self._desk.lease_ms, *(int(r.meta.get("lease_ms", "0")) for r in readings)])
            # A gateway may say "sold out" from memory for so long after the old epoch's last answer.
            await asyncio.sleep(fenced_s + longest_ms / 1000 - time.monotonic())
            lease.check()
            return await self._open(known, msgspec.structs.replace(told, audit=report))

    def _same(self, campaign: str, before: int, now: int) -> None:
        """`before`, `now`: its epochs in the ledger."""
        if now > before:
            raise Refused(f"campaign {campaign} was rebuilt by somebody else just now")

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
        epoch = await self._fence(known.campaign, known.epoch, self._desk.keys(known))
        await call(self._store)
        heard_s = time.monotonic() + HEARD_S
        await self._drained(known)
        await asyncio.sleep(heard_s - time.monotonic())
        found = await self._with_lock(partial(self._new_epoch, first, home, known.campaign, epoch, why))
        if found is None:
            raise Refused(f"campaign {known.campaign} is being rebuilt by somebody else")
        logger.warning("campaign is out of service", extra={"campaign": known.campaign, "epoch": epoch, "why": why})
        # What operators changed until just now counts.
        return await self._desk.show(known.campaign)

    async def _fence(self, campaign: str, known: int, shards: list[SaleKeys]) -> int:
        """No script finds the campaign on any shard. `known`: its epoch in the ledger. Returns the new epoch, greater
        than any that was met."""
        deployment, epoch = await self._desk.deployment(), known + 1
        for keys in shards:
            while True:
                code, found = await self._scripts.fence(keys, epoch, deployment, False)
                if code is FenceCode.FOREIGN:
                    raise Refused(f"the store holds campaign {campaign} of another deployment")
                if code is not FenceCode.FENCED:
                    break
                self._same(campaign, known, await self._desk.epoch(campaign))
                epoch = found + 1
        return epoch

    async def _drained(self, known: Campaign) -> None:
        """Whatever stood in the campaign's intake at the beginning of this call is in the ledger or set aside."""
        until_s = time.monotonic() + DRAIN_S
        moved_s, last = time.monotonic(), b""
        for shard in self._desk.home(known):
            intake = sale_keys(shard, known.campaign).intake
            [tail] = await self._tell("XREVRANGE", intake, "+", "-", "COUNT", 1)
            while tail:
                [head] = await self._tell("XRANGE", intake, "-", tail[0][0], "COUNT", 1)
                if not head:
                    break
                if head[0][0] != last:
                    moved_s, last = time.monotonic(), head[0][0]
                if time.monotonic() > min(until_s, moved_s + STILL_S):
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

    async def _with_lock(self, call: Callable[[], Awaitable[asyncpg.Record | None]]) -> asyncpg.Record | None:
        """The result of `call`, which waits for its lock only shortly: writers behind it go on between two tries."""
        for _ in range(LOCK_TRIES - 1):
            try:
                return await ask(call)
            except LedgerUnavailable as exc:
                if not isinstance(exc.__cause__, asyncpg.LockNotAvailableError):
                    raise
            await asyncio.sleep(LOOK_S)
        return await ask(call)

    async def _new_epoch(
        self, first: int, home: list[int], campaign: str, epoch: int, why: str
    ) -> asyncpg.Record | None:
        async with self._ledger.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '1s'")
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
        return [max(last[s], reading.seq, reading.told) for s, reading in zip(home, readings, strict=True)]

    async def _install(
        self, known: Campaign, readings: list[Reading], lease: Lease
    ) -> tuple[Rebuilt, AuditReport | None]:
        """Step 4, and the audit's judgement; None if more is promised than there is."""
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
                lease.check()
            await self._put(known, keys, keys.used, one.sums.used)
        # Read again: what processes were told of, they may have said just now.
        bases = await self._bases(known, await self._scripts.audit(self._desk.keys(known)))
        told = self._told(known, readings, books, bases)
        left = {u.sku: u.left for u in told.after}
        if told.oversold:
            await self._journal(known, books, told)
            return told, None
        for slot, (shard, one) in enumerate(zip(home, books, strict=True)):
            keys = sale_keys(shard, known.campaign)
            stock: Pairs = {}
            for sku, units in left.items():
                here = portion(units, slot, len(home))
                held, sold = one.sums.held[sku], one.sums.sold[sku]
                name = sku.encode()
                stock |= {name: here, b"a:" + name: here + held + sold, b"h:" + name: held, b"s:" + name: sold}
            await self._put(known, keys, keys.stock, stock)
            await self._put(known, keys, keys.meta, self._meta(known, slot, deployment, bases[slot], one), last=True)
            lease.check()
        await self._journal(known, books, told)
        # Changes of stock that the old store had made, or was about to make, and the journal does not know as made.
        await self._desk.finish_moves(known)
        report = await self._auditor.audit(known.campaign)
        if not sound(report):  # a change may have passed through just then
            report = await self._auditor.audit(known.campaign)
        return told, report

    def _meta(self, known: Campaign, slot: int, deployment: str, base: int, books: Books) -> Pairs:
        fields = {
            **meta_of(known.spec, "recovering", slot), "version": known.version, "lease_ms": self._desk.lease_ms,
            "deployment": deployment, "reopen": 0, "seq": base, "base": base, "known": books.sums.known,
            "count_buyer_sku": 1, "count_ip": 1, "count_device": 1, "count_channel": 1,
            "layout": LAYOUT,
        }  # fmt: skip
        return {name.encode(): value for name, value in fields.items()}

    async def _put(
        self, known: Campaign, keys: SaleKeys, target: bytes, pairs: Mapping[Any, Any], last: bool = False
    ) -> None:
        rest = iter(pairs.items())
        while chunk := dict(islice(rest, CHUNK)):
            code = await self._scripts.rebuild(keys, known.epoch, target, chunk, last)
            if code is RebuildCode.FENCED:
                raise Refused(
                    f"campaign {known.campaign} is being rebuilt by somebody else, or the store lost it again"
                )

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
        """Back in its state: first in the ledger, then in the store."""
        values = (self._desk.home(known)[0], known.campaign, known.epoch, self._who)
        if await ask(lambda: self._ledger.fetchval(query("end_rebuild"), *values)) is None:
            raise Refused(f"campaign {known.campaign} is being rebuilt by somebody else")
        known = await self._desk.show(known.campaign)
        await self._desk.tell_store(known)
        logger.warning("campaign is back", extra={"campaign": known.campaign, "state": known.state})
        return msgspec.structs.replace(told, state=known.state)

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
