"""Recovery: a store that was started anew is judged, campaign by campaign, against the ledger, and mended or fenced.

What is damaged is taken out of service, then the store is admitted (lua/life.py), and orders of all other campaigns are
taken again; the damaged ones follow as each is rebuilt. Any number of processes may do so at once: judging changes
nothing, a rebuild is one's own (core/desk/rebuild.py), and admitting twice is admitting once.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from core.desk.audit import Auditor
from core.desk.campaigns import Campaign, CampaignDesk
from core.desk.heads import Head, idle, over, ping, read_heads, read_store
from core.desk.rebuild import Rebuilder
from core.desk.rebuilt import Rebuilt, sound
from core.errors import CampaignLost, Fault, LedgerUnavailable, Refused, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from lua.connection import SharedConnection
from lua.life import admit, look
from lua.scripts import LAYOUT, Reading, Scripts
from lua.witness import judged_with

logger = logging.getLogger("rushgate.recovery")

RETRY_S = 30.0  # after so long a campaign that could not be put in service is tried again; twice as long each time
MAX_RETRY_S = 900.0
REFUSED_S = 1.0  # likewise after a rebuild that could not begin: the intake is not drained, somebody else is at it
MAX_REFUSED_S = 30.0
AT_ONCE = 4  # campaigns that are judged, or rebuilt: most of a rebuild is waiting for others


S = TypeVar("S")
T = TypeVar("T")


class Tried(NamedTuple):
    """A rebuild that left a campaign out of service."""

    at_s: float  # monotonic
    version: int  # of the campaign, afterwards; -1 = it cannot be read
    pause_s: float  # before the next one, unless somebody changes the campaign
    why: str

    def rests(self) -> bool:
        """It is too early for the next one, unless somebody changed the campaign."""
        return time.monotonic() - self.at_s < self.pause_s

    def waits(self, known: Campaign) -> bool:
        """It is too early for the next one."""
        return self.version == known.version and self.rests()


class Recovery:
    """One per process; the store connection (without a look at the store's life) and the pool are the caller's."""

    def __init__(
        self, desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool, who: str, auto: bool = True
    ) -> None:
        """`auto`: damaged campaigns are rebuilt; else they are set aside until somebody calls `rushgate rebuild`."""
        self._desk = desk
        self._auditor = auditor
        self._store = store
        self._scripts = Scripts(store)
        self._ledger = ledger
        self._auto = auto
        self._rebuilder = Rebuilder(desk, auditor, store, ledger, who)
        self._turn = asyncio.Lock()
        self._mending: dict[str, asyncio.Lock] = {}
        self._judged = ""  # run of the store that was judged by this process
        self._tried: dict[str, Tried] = {}
        self.damaged: dict[str, str] = {}  # campaign -> why it is out of service; not put right yet by this process
        self.blocking: dict[str, str] = {}  # campaign -> why the store is not admitted for it
        self.rebuilt = 0  # campaigns, by this process
        self.lost = 0  # order numbers that nobody had any more when it rebuilt them

    async def step(self) -> bool:
        """The store is judged if its life is not admitted, and admitted if it may be. Returns whether it is.

        Campaigns that it has damaged, or that cannot be judged, are out of service then, and in `damaged` until `mend`
        has done its work. What keeps it from being admitted is in `blocking`: a campaign that must not be sold and
        could be.
        Raises: StoreUnavailable, LedgerUnavailable: to be called again.
        """
        async with self._turn:
            seen, deployment = await look(self._store), await self._desk.deployment()
            if seen.admitted and (seen.deployment == deployment or self._judged == seen.run_id):
                self.blocking = {}
                return True
            began_s = time.monotonic()
            heads = await read_heads(self._ledger, self._desk.shards)
            # The open ones first. A closed one is judged if something of it can be sold, or given out.
            judged = sorted((h for h in heads if h.state != "closed" or h.at_payment), key=lambda h: h.state != "open")
            blocking = await self._admissible(judged + await self._not_over(heads))
            if blocking:
                if blocking.keys() != self.blocking.keys():
                    logger.error("store not admitted", extra={"campaigns": sorted(blocking)[:10], "why": blocking})
                self.blocking = blocking
                return False
            await judged_with(self._store, [keys for head in heads for keys in head.keys], seen.run_id)
            await admit(self._store, deployment, seen.run_id)
            self._judged, self.blocking = seen.run_id, {}
            facts = {"run_id": seen.run_id, "took_ms": round((time.monotonic() - began_s) * 1000)}
            logger.info("store admitted", extra={**facts, "damaged": len(self.damaged)})
            return True

    async def end_closed(self) -> None:
        """Closed campaigns that the store would sell are closed there too, or out of service and in `damaged`.

        Raises: StoreUnavailable, LedgerUnavailable.
        """
        async with self._turn:
            await self._admissible(await self._not_over(await read_heads(self._ledger, self._desk.shards)))

    def due(self) -> list[str]:
        """What of `damaged` may be tried now."""
        return sorted(name for name in self.damaged if not ((tried := self._tried.get(name)) and tried.rests()))

    async def mend(self) -> None:
        """Every campaign that is due is rebuilt, or set aside, or waits for a person, several at a time. One that
        cannot be put right does not keep the others waiting; it is tried again later.

        Raises: StoreUnavailable, LedgerUnavailable: to be called again.
        """
        await _each(self.due(), self._mend)

    async def _mend(self, campaign: str) -> None:
        try:
            await self.restore(campaign)
        except LedgerUnavailable:
            raise
        except Exception as exc:
            if isinstance(exc, StoreUnavailable):
                await ping(self._store)
            # A stack trace tells of an error of ours only: a store that went away and is back is none.
            why = f"{type(exc).__name__}: {exc}"
            facts = {"campaign": campaign, "why": why}
            logger.warning("campaign cannot be mended", extra=facts, exc_info=not isinstance(exc, Fault))
            self._put_off(campaign, -1, why)

    async def restore(self, campaign: str) -> str:
        """A campaign that the store does not hold as the ledger has it is rebuilt, or set aside. Returns its state:
        `recovering` if that did not succeed, or waits for a person; then it is in `damaged`.

        Raises: CampaignUnknown, StoreUnavailable, LedgerUnavailable.
        """
        async with self._mending.setdefault(campaign, asyncio.Lock()):
            state = await self._restore(campaign)
        if state == "recovering":
            self.damaged[campaign] = self.why(campaign) or self.damaged.get(campaign, "it waits to be rebuilt")
        else:
            self.well(campaign)
        return state

    def well(self, campaign: str) -> None:
        """The campaign was found to be as it should."""
        self.damaged.pop(campaign, None)
        self._tried.pop(campaign, None)

    def why(self, campaign: str) -> str:
        """What this process found to keep a campaign out of service when it last tried to rebuild it; '' = nothing."""
        tried = self._tried.get(campaign)
        return tried.why if tried else ""

    async def behind(self, campaign: str) -> bool:
        """The ledger has orders that the store never heard of: it is an older copy, however it looks otherwise.

        Raises: CampaignUnknown, StoreUnavailable, LedgerUnavailable.
        """
        known = await self._desk.show(campaign)
        return bool(await self._behind(known, await self._scripts.audit(self._desk.keys(known))))

    async def catch_up(self, known: Campaign) -> None:
        """The store has state and definition as the ledger, if it holds the campaign: a call may have broken off.

        Raises: CampaignLost if it holds another deployment's; StoreUnavailable, LedgerUnavailable.
        """
        head = Head(known.campaign, known.state, known.version, known.epoch, known.at_payment, self._desk.keys(known))
        [shards], deployment = await read_store(self._store, [head]), await self._desk.deployment()
        for here in shards:
            if here.deployment not in ("", deployment):
                raise CampaignLost(f"the store holds campaign {known.campaign} of another deployment")
        if any(here.epoch == str(known.epoch) and int(here.version) < known.version for here in shards):
            await self._desk.tell_store(known)

    async def _not_over(self, heads: Sequence[Head]) -> list[Head]:
        """Closed campaigns that the store has otherwise: it may be a copy from before they were closed."""
        closed = [head for head in heads if head.state == "closed" and not head.at_payment]
        shards = await read_store(self._store, closed)
        return [head for head, here in zip(closed, shards, strict=True) if not over(head, here)]

    async def _admissible(self, heads: Sequence[Head]) -> dict[str, str]:
        """Those that must not be sold and could be, with the reason. Each is judged by itself."""
        whys = await _each(heads, self._judge)
        return {head.campaign: why for head, why in zip(heads, whys, strict=True) if why}

    async def _judge(self, head: Head) -> str:
        """'' = the campaign is as the ledger has it, or nobody can sell it; else why that could not be had."""
        try:
            known = await self._desk.show(head.campaign)
            why = "" if known.state in ("draft", "opening") else await self._damage(known)
            head = head._replace(epoch=known.epoch, version=known.version)
            if not why and known.state == "closed" and await self._is_sold(head):
                why = "the store has it open, and the ledger closed"
        except LedgerUnavailable:
            raise
        except Exception as exc:
            if isinstance(exc, StoreUnavailable):
                await ping(self._store)
            why = f"it cannot be judged: {type(exc).__name__}: {exc}"
            facts = {"campaign": head.campaign, "why": why}
            logger.warning("campaign cannot be judged", extra=facts, exc_info=not isinstance(exc, Fault))
        if not why or await self._is_idle(head):  # somebody may be rebuilding it, and is not to be disturbed
            if why:
                self.damaged.setdefault(head.campaign, why)
            return ""
        self.damaged[head.campaign] = why
        try:
            await self._rebuilder.fence(head)
        except Refused as exc:
            logger.warning("damaged campaign not fenced", extra={"campaign": head.campaign, "why": exc.detail})
        except StoreUnavailable as exc:
            await ping(self._store)
            logger.error("damaged campaign not fenced", extra={"campaign": head.campaign, "why": exc.detail})
        return "" if await self._is_idle(head) else why

    async def _is_sold(self, head: Head) -> bool:
        """A closed campaign could be sold."""
        [here] = await read_store(self._store, [head])
        return not over(head, here)

    async def _is_idle(self, head: Head) -> bool:
        head = head._replace(epoch=await self._desk.epoch(head.campaign))
        [here] = await read_store(self._store, [head])
        return idle(head, here, await self._desk.deployment())

    def _put_off(self, campaign: str, version: int, why: str) -> None:
        tried = self._tried.get(campaign)
        pause_s = min(MAX_REFUSED_S, 2 * tried.pause_s) if tried else REFUSED_S
        self._tried[campaign] = Tried(time.monotonic(), version, pause_s, why)

    async def _restore(self, campaign: str) -> str:
        known = await self._desk.show(campaign)
        if known.state in ("draft", "opening"):
            return known.state
        why = await self._damage(known)
        if not why:
            return known.state
        tried = self._tried.get(campaign)
        if (tried and tried.waits(known)) or (known.state == "recovering" and not self._auto):
            if not (tried and tried.rests()):
                self._put_off(campaign, known.version, tried.why if tried else why)
            return "recovering"
        try:
            if self._auto:
                done = await self._rebuilder.rebuild(campaign, why, known)
                if done.state != "recovering":
                    self.rebuilt += 1
                    self.lost += sum(shard.gap for shard in done.shards)
                why = _tell(done)
            else:
                await self._rebuilder.set_aside(campaign, why)
                logger.error("campaign waits for `rushgate rebuild`", extra={"campaign": campaign, "why": why})
        except Refused as exc:
            now = await self._desk.show(campaign)
            if now.epoch > known.epoch and now.state != "recovering":
                return now.state  # somebody else has done it
            # What it had fenced stays so, whatever the ledger calls it.
            logger.warning("campaign not rebuilt", extra={"campaign": campaign, "why": exc.detail})
            self._put_off(campaign, known.version, f"{why}; not rebuilt: {exc.detail}")
            return "recovering"
        known = await self._desk.show(campaign)
        if known.state == "recovering":
            pause_s = min(MAX_RETRY_S, max(RETRY_S, 2 * tried.pause_s)) if tried else RETRY_S
            self._tried[campaign] = Tried(time.monotonic(), known.version, pause_s, why)
        return known.state

    async def _damage(self, known: Campaign) -> str:
        """Why the store does not hold the campaign as the ledger has it; '' = it does."""
        if known.state == "recovering":
            return "its rebuild was broken off"
        home, deployment = self._desk.home(known), await self._desk.deployment()
        readings = await self._scripts.audit(self._desk.keys(known))
        for shard, reading in zip(home, readings, strict=True):
            meta = reading.meta
            if reading.seq < reading.told:
                return f"shard {shard}: the store knows {reading.seq} orders, and {reading.told} were answered"
            if (meta.get("epoch"), meta.get("deployment")) != (str(known.epoch), deployment):
                found = meta.get("epoch", "nothing")
                return f"shard {shard}: epoch {known.epoch} of this deployment wanted, {found} found"
            if meta.get("layout") != LAYOUT:
                return f"shard {shard}: an older version wrote it, in another layout"
        if behind := await self._behind(known, readings):
            return behind
        try:
            if any(r.meta["state"] == "recovering" or int(r.meta["version"]) < known.version for r in readings):
                await self._desk.tell_store(known)  # the call that changed it was broken off, or the copy is older
            for _ in range(2):
                report = await self._auditor.audit(known.campaign)
                # The store knows every number that was given: orders of it that are nowhere else are the mender's.
                if sound(report, lost=True):
                    return ""
        except CampaignLost as exc:
            return exc.detail
        counts = {name: getattr(report, name) for name in ("oversold", "lost", "phantom", "duplicated")}
        return "; ".join([*(f"{count} {name}" for name, count in counts.items() if count), *report.findings[:3]])

    async def _behind(self, known: Campaign, readings: list[Reading]) -> str:
        """Where the ledger has an order with a greater number than the store has given; '' = nowhere.

        The readings are older than the ledger's answer, so a store that runs ahead of them is asked once more.
        """
        home = self._desk.home(known)
        rows = await ask(lambda: self._ledger.fetch(query("last_numbers"), home, known.campaign))
        last = {row["shard"]: row["seq"] for row in rows}
        if all(reading.seq >= last[shard] for shard, reading in zip(home, readings, strict=True)):
            return ""
        for shard, reading in zip(home, await self._scripts.audit(self._desk.keys(known)), strict=True):
            if reading.seq < last[shard]:
                return f"shard {shard}: the store knows {reading.seq} orders, the ledger {last[shard]}"
        return ""


async def _each(names: Sequence[S], call: Callable[[S], Awaitable[T]]) -> list[T]:
    """The results of `call` for all of them, at most AT_ONCE under way; all have ended before an error is raised."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: S) -> T:
        async with room:
            return await call(name)

    results = await asyncio.gather(*(one(name) for name in names), return_exceptions=True)
    found: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    return found


def _tell(done: Rebuilt) -> str:
    """Why the campaign is not back in service, for the log and for people; '' = it is."""
    if done.oversold:
        more = ", ".join(f"{-u.left} of {u.sku}" for u in done.oversold)
        logger.error("campaign oversold: not put in service", extra={"campaign": done.campaign, "units": more})
        return f"oversold: {more} more than there are; cancel so many, then `rushgate rebuild {done.campaign}`"
    if done.state == "recovering" and done.audit is not None:
        facts = {"campaign": done.campaign, "findings": done.audit.findings[:3]}
        logger.error("rebuilt campaign is not as it should be", extra=facts)
        return "; ".join(["the rebuilt campaign is not as it should be", *done.audit.findings[:3]])
    return ""
