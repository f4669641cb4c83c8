"""Watches over the life of the store beside the audits: one started anew is judged at once, what it lost is rebuilt."""

import asyncio
import logging
import time

from core.desk.recovery import Recovery
from core.errors import LedgerUnavailable, StoreUnavailable
from workers.alerts import LOST, SHUT, Alerts

logger = logging.getLogger("rushgate.recovery")

LOOK_S = 0.1  # between two looks at the store
AGAIN_S = 1.0  # after a rebuild that store or ledger broke off; each one that had begun has used up an epoch
LONG_S = 10.0  # a store that answers and is not admitted after so long is alerted


class RecoveryWatch:
    """Runs within the reconcile worker."""

    def __init__(self, recovery: Recovery, alerts: Alerts) -> None:
        self._recovery = recovery
        self._alerts = alerts
        self._waits_since_s: float | None = None  # store or ledger is away
        self._shut_since_s: float | None = None  # a campaign keeps the store from being admitted
        self._failed_s: float | None = None
        self._told: dict[tuple[str, str], str] = {}  # campaign, kind -> detail of the alerts that stand by our word
        self.runs = False
        self.admitted = False  # the store, when it was last looked at

    async def run(self, stopping: asyncio.Event) -> None:
        """A store that may be admitted is, soon after it answers, and then what it had damaged is rebuilt.

        Ends when `stopping` is set; a rebuild in hand is broken off, and is anybody's to begin again.
        """
        mending: asyncio.Task[None] | None = None
        self.runs = True
        try:
            while not stopping.is_set():
                pause_s = await self._look()
                # Beside the looks: a store that is started anew during a long rebuild is judged without delay.
                if self._recovery.due() and (mending is None or mending.done()) and not self._rests():
                    mending = asyncio.get_running_loop().create_task(self._mend(), name="mending")
                try:
                    await asyncio.wait_for(stopping.wait(), pause_s)
                except TimeoutError:
                    continue
        finally:
            self.runs = False
            if mending is not None:
                mending.cancel()
                await asyncio.gather(mending, return_exceptions=True)

    async def _look(self) -> float:
        """Returns the pause until the next look, seconds. Whatever goes wrong, there is a next one."""
        try:
            admitted = self.admitted = await self._recovery.step()
            self._note(admitted)
            await self._tell()
        except (StoreUnavailable, LedgerUnavailable) as exc:
            self.admitted = False
            if self._waits_since_s is None:
                self._waits_since_s = time.monotonic()
                logger.warning("recovery waits", extra={"why": exc.detail})
        except Exception:
            logger.exception("the store could not be judged")
            return AGAIN_S
        return LOOK_S

    def _note(self, admitted: bool) -> None:
        now_s = time.monotonic()
        if not admitted:
            self._shut_since_s = self._shut_since_s or now_s
            return
        self._shut_since_s = None
        if self._waits_since_s is not None:
            logger.info("store is served again", extra={"waited_s": round(now_s - self._waits_since_s, 2)})
            self._waits_since_s = None

    async def _tell(self) -> None:
        """Whatever is out of service is alerted, at once; and what keeps the store shut, after a while."""
        found = {(name, LOST): why for name, why in self._recovery.damaged.items()}
        if self._shut_since_s is not None and time.monotonic() - self._shut_since_s > LONG_S:
            found |= {(name, SHUT): why for name, why in self._recovery.blocking.items()}
        for (name, kind), why in found.items():
            if (name, kind) not in self._told:
                await self._alerts.tell(name, {kind: why}, (kind,))
                self._told[name, kind] = why
        for name, kind in self._told.keys() - found.keys():
            await self._alerts.tell(name, {}, (kind,))
            del self._told[name, kind]

    def _rests(self) -> bool:
        return self._failed_s is not None and time.monotonic() - self._failed_s < AGAIN_S

    async def _mend(self) -> None:
        try:
            await self._recovery.mend()
        except (StoreUnavailable, LedgerUnavailable) as exc:
            self._failed_s = time.monotonic()
            logger.warning("rebuild broken off", extra={"why": exc.detail})
        except Exception:
            self._failed_s = time.monotonic()
            logger.exception("rebuild failed")
        else:
            self._failed_s = None
