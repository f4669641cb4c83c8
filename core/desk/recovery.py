"""Recovery: a store that was started anew is judged, campaign by campaign, against the ledger, and mended or fenced.

Only then it is admitted (lua/life.py), and orders are taken again. Any number of processes may do so at once: judging
changes nothing, a rebuild is one's own (core/desk/rebuild.py), and admitting twice is admitting once.
"""

import asyncio
import logging
import time

import asyncpg

from core.desk.audit import Auditor
from core.desk.campaigns import Campaign, CampaignDesk
from core.desk.rebuild import Rebuilder, Rebuilt, sound
from core.errors import CampaignLost, Refused
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from lua.connection import SharedConnection
from lua.life import admit, look
from lua.scripts import Scripts

logger = logging.getLogger("rushgate.recovery")

RETRY_S = 30.0  # after so long a campaign that could not be put in service is tried again


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
        self._judged = ""  # run of the store that was judged by this process
        self._tried: dict[str, tuple[float, int]] = {}  # campaign -> when in vain, at which version
        self.rebuilt = 0  # campaigns, by this process

    async def step(self) -> bool:
        """The store is judged if its life is not admitted, and admitted if it may be. Returns whether it is.

        Raises: StoreUnavailable, LedgerUnavailable: to be called again.
        """
        async with self._turn:
            seen, deployment = await look(self._store), await self._desk.deployment()
            if seen.admitted and (seen.deployment == deployment or self._judged == seen.run_id):
                return True
            began_s = time.monotonic()
            rows = await ask(lambda: self._ledger.fetch(query("list_campaigns")))
            wrong = [name for name in await self._selling(rows) if not await self._may_sell(name)]
            if wrong:
                logger.error("store not admitted", extra={"campaigns": wrong[:10], "count": len(wrong)})
                return False
            await admit(self._store, deployment, seen.run_id)
            self._judged = seen.run_id
            took_ms = round((time.monotonic() - began_s) * 1000)
            logger.info("store admitted", extra={"run_id": seen.run_id, "took_ms": took_ms})
            return True

    async def restore(self, campaign: str) -> str:
        """A campaign that the store does not hold as the ledger has it is rebuilt, or set aside. Returns its state:
        `recovering` if that did not succeed, or waits for a person.

        Raises: CampaignUnknown, StoreUnavailable, LedgerUnavailable.
        """
        async with self._turn:
            return await self._restore(campaign)

    async def _selling(self, rows: list[asyncpg.Record]) -> list[str]:
        """Those that may take orders, or units, the open ones first. The others are looked after later, one by one."""
        found: dict[str, list[str]] = {"open": [], "paused": []}
        for row in rows:
            name, state = row["campaign"], row["state"]
            if state == "draft" or (state == "closed" and not (await self._desk.show(name)).at_payment):
                continue
            found.setdefault(state, []).append(name)
        return [name for names in found.values() for name in names]

    async def _may_sell(self, campaign: str) -> bool:
        """The campaign is as the ledger has it, or out of service."""
        await self._restore(campaign)
        known = await self._desk.show(campaign)
        deployment = await self._desk.deployment()
        for reading in await self._scripts.audit(self._desk.keys(known)):
            here = reading.meta.get("epoch"), reading.meta.get("deployment")
            if here[0] is not None and here != (str(known.epoch), deployment):
                return False
        return True

    async def _restore(self, campaign: str) -> str:
        known = await self._desk.show(campaign)
        if known.state in ("draft", "opening"):
            return known.state
        why = await self._damage(known)
        if not why:
            self._tried.pop(campaign, None)
            return known.state
        last_s, version = self._tried.get(campaign, (-RETRY_S, 0))
        if known.state == "recovering" and (
            not self._auto or (version == known.version and time.monotonic() - last_s < RETRY_S)
        ):
            return known.state
        try:
            if self._auto:
                done = await self._rebuilder.rebuild(campaign, why)
                self.rebuilt += done.state != "recovering"
                _tell(done)
            else:
                await self._rebuilder.set_aside(campaign, why)
                logger.error("campaign waits for `rushgate rebuild`", extra={"campaign": campaign, "why": why})
        except Refused as exc:
            logger.warning("campaign not rebuilt", extra={"campaign": campaign, "why": exc.detail})
            return (await self._desk.show(campaign)).state
        known = await self._desk.show(campaign)
        if known.state == "recovering":
            self._tried[campaign] = (time.monotonic(), known.version)
        return known.state

    async def _damage(self, known: Campaign) -> str:
        """Why the store does not hold the campaign as the ledger has it; '' = it does."""
        if known.state == "recovering":
            return "its rebuild was broken off"
        home, deployment = self._desk.home(known), await self._desk.deployment()
        readings = await self._scripts.audit(self._desk.keys(known))
        rows = await ask(lambda: self._ledger.fetch(query("last_numbers"), home, known.campaign))
        last = {row["shard"]: row["seq"] for row in rows}
        for shard, reading in zip(home, readings, strict=True):
            meta = reading.meta
            if (meta.get("epoch"), meta.get("deployment")) != (str(known.epoch), deployment):
                found = meta.get("epoch", "nothing")
                return f"shard {shard}: epoch {known.epoch} of this deployment wanted, {found} found"
            if reading.seq < last[shard]:
                return f"shard {shard}: the store knows {reading.seq} orders, the ledger {last[shard]}"
        if any(r.meta["state"] == "recovering" or int(r.meta["version"]) < known.version for r in readings):
            await self._desk.tell_store(known)  # the call that changed it was broken off
        try:
            for _ in range(2):
                report = await self._auditor.audit(known.campaign)
                if sound(report):
                    return ""
        except CampaignLost as exc:
            return exc.detail
        counts = {name: getattr(report, name) for name in ("oversold", "lost", "phantom", "duplicated")}
        return "; ".join([*(f"{count} {name}" for name, count in counts.items() if count), *report.findings[:3]])


def _tell(done: Rebuilt) -> None:
    if done.oversold:
        more = [f"{-u.left} of {u.sku}" for u in done.oversold]
        logger.error("campaign oversold: not put in service", extra={"campaign": done.campaign, "units": more})
    elif done.state == "recovering" and done.audit is not None:
        facts = {"campaign": done.campaign, "findings": done.audit.findings[:3]}
        logger.error("rebuilt campaign is not as it should be", extra=facts)
