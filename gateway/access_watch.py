"""Keeps a gateway's copy of channels, keys and blocks as new as the store's, and gives the store one if it has none."""

import asyncio
import contextlib
import logging
import time

from core.desk.access_books import AccessBooks
from core.errors import Fault, LedgerUnavailable
from gateway.access import Access
from lua.access import published, published_version
from lua.connection import StoreConnection

logger = logging.getLogger("rushgate.gateway")

POLL_S = 0.4  # between two looks: a change works within a second, one look that fails included
RENEW_S = 1.0  # between two tries to give the store its copy again
RENEW_WAIT_S = 2.0  # for the ledger in such a try: the store is looked at again after it
FIRST_S = 2.0  # longest wait of a gateway that starts


class AccessWatch:
    """One per process. While the store is away the last copy is in force."""

    def __init__(self, access: Access, store: StoreConnection, books: AccessBooks) -> None:
        self._access = access
        self._store = store
        self._books = books
        self._task: asyncio.Task[None] | None = None
        self._renew_after_s = 0.0
        self._told = ""  # of what went wrong last: one line in the log

    async def start(self) -> None:
        """A first look was tried; more follow until `stop`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                await self.look()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="access watch")

    async def stop(self) -> None:
        """No task of it runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """The copy in force is the store's as of now, without what is over; nothing is raised."""
        try:
            await self._look()
            self._told = ""
        except Fault as exc:
            if type(exc).__name__ != self._told:
                self._told = type(exc).__name__
                logger.warning("channels not read", extra={"code": exc.code, "why": exc.detail})
        self._access.expire(int(time.time() * 1000))

    async def _look(self) -> None:
        version, mine = await published_version(self._store), self._access.version
        if version is None or (mine is not None and version < mine):
            # Lost, or an older copy of the store came back: what was revoked since must not open again meanwhile.
            if not await self._renew():
                return
            version = await published_version(self._store)
        if version is None or version == mine:
            return
        copy = await published(self._store)
        if copy is None:
            return
        self._access.install(copy)
        facts = {"version": copy.version, "channels": len(copy.channels), "blocks": len(copy.blocks)}
        logger.info("channels read", extra=facts)
        if self._access.unusable:
            why = "made with a secret that RUSHGATE_SIGNING_SECRETS does not have"
            logger.error("signing keys cannot be used", extra={"keys": ",".join(self._access.unusable), "why": why})

    async def _renew(self) -> bool:
        """The store's copy is as new as the ledger; False: that was tried a moment ago. Our own stays in force
        meanwhile. Raises: as AccessBooks.renew."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._renew_after_s:
            return False
        self._renew_after_s = loop.time() + RENEW_S
        try:
            async with asyncio.timeout(RENEW_WAIT_S):
                await self._books.renew()
        except TimeoutError as exc:
            raise LedgerUnavailable("the ledger did not say in time what channels there are") from exc
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.look()
            except Exception:
                logger.exception("access watch failed")  # and goes on: whom we know must not grow old
