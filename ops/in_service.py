"""The start of a stack: the store is judged where no reconcile worker does it, and campaigns come back into service."""

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator

from core.desk.heads import read_heads, read_store
from core.desk.recovery import Recovery
from core.errors import LedgerUnavailable, StoreUnavailable
from core.settings import Settings
from ops.desk import Desk, open_desk

logger = logging.getLogger("rushgate.ops")

IN_SERVICE_S = 10.0  # longest wait for campaigns that are being rebuilt; most take three seconds
AGAIN_S = 0.1  # between two looks


class FirstLook:
    """What a reconcile worker does first with a store that was started anew. `why`: what keeps it from being
    admitted."""

    def __init__(self, desk: Desk, auto: bool) -> None:
        who = f"up-{os.getpid()}-{secrets.token_hex(4)}"
        self._recovery = Recovery(desk.campaigns, desk.auditor, desk.store, desk.ledger, who, auto)
        self.why = ""

    async def run(self) -> None:
        """The store is judged and admitted, and what it lost was rebuilt, or set aside, as far as that can be: once."""
        while True:
            try:
                if await self._recovery.step():
                    await self._recovery.mend()
                    return
                self.why = "; ".join(f"campaign {name}: {why}" for name, why in self._recovery.blocking.items())
            except (StoreUnavailable, LedgerUnavailable) as exc:
                self.why = exc.detail
            except Exception as exc:
                self.why = f"{type(exc).__name__}: {exc}"
                logger.exception("the store could not be judged")
                return
            await asyncio.sleep(AGAIN_S)


@contextlib.asynccontextmanager
async def first_look(settings: Settings) -> AsyncIterator[FirstLook]:
    """It works while inside, beside the caller."""
    async with open_desk(settings) as desk:
        look = FirstLook(desk, settings.recovery == "auto")
        task = asyncio.create_task(look.run(), name="first look")
        try:
            yield look
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def out_of_service(settings: Settings) -> list[str]:
    """The campaigns that the store does not hold as the ledger has them, by name: none, or what is left of them after
    IN_SERVICE_S. Those that wait for a person are not waited for."""
    until_s = asyncio.get_running_loop().time() + IN_SERVICE_S
    found: dict[str, bool] = {}  # campaign -> it may come back by itself
    async with open_desk(settings) as desk:
        while True:
            with contextlib.suppress(StoreUnavailable, LedgerUnavailable):  # the next look tells
                found = await _look(desk, settings)
            if not any(found.values()) or asyncio.get_running_loop().time() > until_s:
                return sorted(found)
            await asyncio.sleep(AGAIN_S)


async def _look(desk: Desk, settings: Settings) -> dict[str, bool]:
    heads = [h for h in await read_heads(desk.ledger, settings.shards) if h.state != "closed"]
    deployment, manual, found = await desk.campaigns.deployment(), settings.recovery == "manual", {}
    for head, here in zip(heads, await read_store(desk.store, heads), strict=True):
        wanted = str(head.epoch), deployment
        held = all((one.epoch, one.deployment) == wanted and one.state != "recovering" for one in here)
        if head.state == "recovering" or not held:
            found[head.campaign] = not (manual and head.state == "recovering")
    return found
