"""What this process was told of the store's order numbers, and says to each store that it meets.

A store that comes back as an older copy of itself may agree with the ledger, if the orders after the copy were not
drained yet. Whoever answered these orders knows better: the campaign is then out of service, and is rebuilt with the
gap known. It is memory: what only processes knew that are gone as well, nobody knows.

All is said at each new connection, and whenever a rebuild calls for it. Who is too late for the rebuild, as it stood
still meanwhile, adds to the gap in the ledger.
"""

import asyncio
import logging
from functools import partial
from itertools import islice

from core.errors import LedgerUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from gateway.catalogue import Sale
from lua.connection import Exchange, SharedConnection, StoreConnection
from lua.keys import SaleKeys
from lua.life import QUESTIONS, doubt, read
from lua.witness import AT_ONCE, Told, WitnessCode, say

logger = logging.getLogger("rushgate.gateway")

MAX_TOLD = 10_000  # shards of campaigns; those that were first sold longest ago are forgotten beyond it
AGAIN_S = 1.0  # between two questions to the ledger about what came too late
TRIES = 60

Place = tuple[str, int, int, str]  # campaign, slot, epoch, run of the server


class Word:
    """The greatest number that a run of the server told of a shard, under an epoch."""

    __slots__ = ("campaign", "epoch", "keys", "run_id", "seq", "shard")

    def __init__(self, sale: Sale, slot: int, seq: int, run_id: str) -> None:
        self.campaign = sale.campaign
        self.shard = sale.shards[slot]
        self.keys: SaleKeys = sale.keys[slot]
        self.epoch = sale.epoch
        self.seq = seq
        self.run_id = run_id


class Witness:
    """One per gateway process. `ledger`: hears of what came too late; the caller's."""

    def __init__(self, ledger: Pool | None = None) -> None:
        self._words: dict[Place, Word] = {}
        self._ledger = ledger
        self._heard = b""  # the last call of the store
        self._late: dict[Place, Word] = {}
        self._telling: asyncio.Task[None] | None = None

    def note(self, sale: Sale, slot: int, seq: int, run_id: str) -> None:
        """A store answered, at the deployment's level, that the last order of this shard has the number `seq`."""
        place = (sale.campaign, slot, sale.epoch, run_id)
        word = self._words.get(place)
        if word is None:
            self._words[place] = Word(sale, slot, seq, run_id)
            if len(self._words) > MAX_TOLD:
                del self._words[next(iter(self._words))]
        elif seq > word.seq:
            word.seq = seq

    async def meet(self, connection: StoreConnection) -> None:
        """The server behind a connection just made has heard what this process knows. Raises: StoreUnavailable."""
        # Not connection.exchange: whoever shares this connection has its turn already.
        exchange = partial(StoreConnection.exchange, connection)
        connection.run_id = read(await exchange(QUESTIONS)).run_id
        await self._say(exchange, connection.run_id)

    async def called(self, store: SharedConnection, call: bytes) -> None:
        """The store has heard all if `call` is another one than before. Raises: StoreUnavailable."""
        if call != self._heard:
            await self._say(store.exchange, store.run_id)
            self._heard = call

    async def stop(self) -> None:
        """No task of it runs."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def _say(self, exchange: Exchange, run_id: str) -> None:
        said, behind = iter(list(self._words.items())), False
        while some := list(islice(said, AT_ONCE)):
            told = [Told(w.keys, w.epoch, w.seq, w.run_id) for _, w in some]
            for (place, word), one, (code, known) in zip(some, told, await say(exchange, told), strict=True):
                if code in (WitnessCode.BEHIND, WitnessCode.KEPT):
                    behind = behind or code is WitnessCode.BEHIND
                    facts = {"sale": one.keys.meta.decode(), "told": one.seq, "known": known}
                    logger.error("store lost orders that were answered", extra=facts)
                elif code is WitnessCode.FENCED:
                    self._too_late(place, word)
                elif word.run_id != run_id and self._outdone(place, word, run_id):
                    self._words.pop(place, None)
        if behind:
            await doubt(exchange)

    def _outdone(self, place: Place, word: Word, run_id: str) -> bool:
        """This server knows the number, and has told a greater one since: that says it all."""
        newer = self._words.get((*place[:3], run_id))
        return newer is not None and newer.seq >= word.seq

    def _too_late(self, place: Place, word: Word) -> None:
        self._words.pop(place, None)
        if self._ledger is None:
            return
        self._late[place] = word
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell(self._ledger), name="late numbers")

    async def _tell(self, ledger: Pool) -> None:
        """The rebuild that ended the epoch of each late word has counted it; or it is in the log that it has not."""
        for _ in range(TRIES):
            for place, word in list(self._late.items()):
                values = (word.shard, word.campaign, word.epoch, word.seq)
                try:
                    late = await ask(partial(ledger.fetchval, query("late_number"), *values))
                except LedgerUnavailable:
                    break
                if late is None:  # the rebuild has not written down yet what it found
                    continue
                del self._late[place]
                if late:
                    facts = {"campaign": word.campaign, "shard": word.shard, "told": word.seq, "more": late}
                    logger.error("store lost orders that were answered: told late", extra=facts)
            if not self._late:
                return
            await asyncio.sleep(AGAIN_S)
        for word in self._late.values():
            facts = {"campaign": word.campaign, "shard": word.shard, "epoch": word.epoch, "told": word.seq}
            logger.error("a number of an earlier epoch is not compared with its rebuild", extra=facts)
        self._late.clear()
