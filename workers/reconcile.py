"""The reconcile worker: audits every campaign all the time, mends what is surely broken, raises alerts for the rest.
Beside that it keeps the statistics of the ledger's planner from growing stale.

It takes a tenth of the time at most: the pause after a round is nine times as long as the round took. Any number of
them may run; what two of them mend at once is mended once.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.heads import ping
from core.desk.recovery import Recovery
from core.errors import CampaignLost, LedgerUnavailable, Refused, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from lua.connection import SharedConnection
from lua.life import look
from workers.access_keeper import AccessKeeper
from workers.alerts import LOST, UNCHECKED, Alerts, findings
from workers.idle import Idle
from workers.mender import Mender
from workers.metrics_audit import AuditBook
from workers.pulse import Pulse
from workers.recovery import RecoveryWatch
from workers.repairs import Mended
from workers.statistics import Statistics

logger = logging.getLogger("rushgate.reconcile")

AWAY_S = 1.0  # between two tries while store or ledger is away
REST = 9.0  # the pause after a round, in times of its length
OLD = 20  # closed campaigns at rest that one round looks at: those whose last look is longest ago
WORDS = 5  # findings of the mender in an alert's detail


class Seen(NamedTuple):
    """The last look at a campaign."""

    at_s: float  # monotonic
    at_rest: bool  # all was well, and there was no hold and nothing on its way


class ReconcileWorker:
    """Looks after all campaigns but drafts and those that are being opened. The pool is the caller's."""

    def __init__(
        self, store: SharedConnection, ledger: Pool, shards: int, lease_ms: int, every_s: float, auto: bool = True,
        name: str = "", access: AccessKeeper | None = None,
    ) -> None:  # fmt: skip
        """`every_s`: least pause between two rounds. `lease_ms`: as in CampaignDesk. `auto`, `name`: as in Recovery."""
        self._store = store
        self._ledger = ledger
        self._desk = CampaignDesk(store, ledger, shards, lease_ms)
        self._auditor = Auditor(self._desk, store, ledger, shards)
        name = name or f"reconcile-{secrets.token_hex(4)}"
        self.recovery = Recovery(self._desk, self._auditor, store, ledger, name, auto)
        self._mender = Mender(store, ledger, shards)
        self._alerts = Alerts(ledger, shards)
        self._watch = RecoveryWatch(self.recovery, self._alerts)
        self._statistics = Statistics(ledger)
        self._access = access
        self._every_s = every_s
        self._seen: dict[str, Seen] = {}
        self._logged: dict[str, type[Exception]] = {}  # campaign -> why it could not be checked; one log line for it
        self._run_id = ""
        self._stopping = asyncio.Event()
        self.idle = Idle()
        self.pulse = Pulse()
        self.audits = AuditBook()
        self.rounds = 0
        self.mended = 0  # orders, by this worker

    @property
    def alerts(self) -> int:
        """Begun by this worker."""
        return self._alerts.begun

    @property
    def repairs(self) -> Counter[str]:
        """What this worker mended: what was done -> how often."""
        return self._mender.made

    @property
    def admitted(self) -> bool:
        """Whether orders may be taken on the store, as last seen."""
        return self._watch.admitted

    def stop(self) -> None:
        """The run ends after the campaign in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until `stop`, through every absence of store and ledger."""
        async with asyncio.TaskGroup() as beside:
            beside.create_task(self._statistics.run(self._stopping))
            beside.create_task(self._watch.run(self._stopping))
            if self._access is not None:
                beside.create_task(self._access.run(self._stopping))
            await self._reconcile()
        await self._store.close()

    async def _reconcile(self) -> None:
        waits_since_s: float | None = None
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                await self.step()
                self.pulse.beat()
                pause_s = max(self._every_s, REST * (time.monotonic() - began_s))
                if waits_since_s is not None:
                    logger.info("reconcile goes on", extra={"waited_s": round(time.monotonic() - waits_since_s, 1)})
                    waits_since_s = None
            except (StoreUnavailable, LedgerUnavailable) as exc:
                if waits_since_s is None:
                    waits_since_s = began_s
                    logger.warning("reconcile waits", extra={"why": exc.detail})
                pause_s = AWAY_S
            with self.idle.waiting(), contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def step(self) -> None:
        """One round: every campaign that may have something under way, and some of those at rest.

        Raises: StoreUnavailable, LedgerUnavailable; what was mended and alerted by then stays so.
        """
        if not await self.recovery.step():
            raise StoreUnavailable("the store is not admitted: nothing is audited or mended on it")
        self._run_id = (await look(self._store)).run_id
        await self.recovery.end_closed()
        for campaign in self._chosen(await ask(lambda: self._ledger.fetch(query("list_campaigns")))):
            if self._stopping.is_set():
                return
            at_rest = await self._check(campaign)
            self._seen[campaign] = Seen(time.monotonic(), at_rest)
        self.rounds += 1

    def _chosen(self, rows: Iterable[asyncpg.Record]) -> list[str]:
        """Thousands of closed campaigns never keep the open ones waiting: at most OLD of those at rest are looked at,
        and one that this worker has never seen is taken to be at rest until its turn comes."""
        busy: list[str] = []
        old: list[str] = []
        unseen = Seen(0.0, True)
        for row in rows:
            if row["state"] in ("draft", "opening"):
                continue
            at_rest = row["state"] == "closed" and self._seen.get(row["campaign"], unseen).at_rest
            (old if at_rest else busy).append(row["campaign"])
        old.sort(key=lambda name: self._seen.get(name, unseen).at_s)
        return busy + old[:OLD]

    async def _check(self, campaign: str) -> bool:
        """Audited, mended, its alerts as they should be. Returns whether it is closed and at rest.

        A campaign that cannot be checked although store and ledger are there does not keep the others waiting.
        """
        why, kind = "", UNCHECKED
        for n in range(2):
            try:
                at_rest = await self._judge(campaign)
            except CampaignLost as exc:
                why = exc.detail
                if self._watch.runs:  # it rebuilds beside the rounds, which do not wait for it
                    if n:
                        kind = LOST
                        self.recovery.damaged.setdefault(campaign, why)
                        why = self.recovery.why(campaign) or why
                elif await self.recovery.restore(campaign) == "recovering":
                    why, kind = self.recovery.why(campaign) or why, LOST
                    break
            except StoreUnavailable as exc:
                await ping(self._store)
                why = exc.detail
            except LedgerUnavailable:
                raise
            except Exception as exc:
                # Its definition is of another program, or what it has in the store is: nobody knows what else.
                why = f"{type(exc).__name__}: {exc}"
                if self._logged.get(campaign) is not type(exc):
                    self._logged[campaign] = type(exc)
                    logger.exception("campaign cannot be checked", extra={"campaign": campaign})
                break
            else:
                self._logged.pop(campaign, None)
                self.recovery.well(campaign)
                return at_rest
        if campaign in self.recovery.damaged:  # and out of service, or another deployment's
            kind = LOST
        await self._alerts.tell(campaign, {kind: why}, (LOST, UNCHECKED))
        return False

    async def _judge(self, campaign: str) -> bool:
        began_s = time.monotonic()
        known = await self._desk.show(campaign)
        if known.state == "recovering":
            raise CampaignLost(f"campaign {campaign} is out of service until it is rebuilt")
        await self.recovery.catch_up(known)
        report = await self._auditor.audit(campaign)
        mended = await self._mender.mend(known)
        self.mended += mended.done
        wrong: dict[str, str] = {}
        last = report
        if not report.ok:
            # What stands after mending, and was seen twice.
            last = await self._auditor.audit(campaign)
            wrong = {kind: detail for kind, detail in findings(last).items() if kind in findings(report)}
        if mended.wrong:
            wrong["unmended"] = _words(mended)
        if wrong and (await look(self._store)).run_id != self._run_id:
            raise StoreUnavailable("the store was started anew meanwhile: what was read of it counts for nothing")
        self.audits.note(campaign, known.state, last, wrong, len(mended.wrong))
        self.audits.took(time.monotonic() - began_s)
        if "phantom" in wrong and await self.recovery.behind(campaign):
            raise CampaignLost(f"the ledger has orders of {campaign} that the store never heard of")
        await self._alerts.tell(campaign, wrong)
        if "oversold" in wrong:
            await self._close(campaign)
        return report.ok and not wrong and not mended.holds and not report.in_flight

    async def _close(self, campaign: str) -> None:
        """Nothing more is sold of an oversold campaign. Again in each round: a call that broke off is finished."""
        try:
            await self._desk.close(campaign)
        except Refused as exc:  # somebody changes it at this moment; the next round tries again
            logger.warning("oversold campaign not closed yet", extra={"campaign": campaign, "why": exc.detail})


def _words(mended: Mended) -> str:
    more = len(mended.wrong) - WORDS
    return "; ".join(mended.wrong[:WORDS]) + (f"; and {more} more" if more > 0 else "")
