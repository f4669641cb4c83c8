"""The mender: looks through a campaign's holds for those that nobody would end, and mends them; likewise messages
to the store that nobody would deliver.

Never on a guess, and without a grace period: the order of the readings decides. First the holds, then the ledger, then
the intake, then the ledger again, then once more the hold. An entry leaves the intake only after its commit, so an
order that is in none of the later readings is nowhere. Likewise a message leaves the outbox only after its script was
run: a hold that outlives its message will not be ended by it.
"""

from collections import Counter

from core.desk.campaigns import Campaign
from core.ids import shard_of
from core.ledger.pool import Pool
from lua.connection import SharedConnection
from lua.keys import home_shards, sale_keys
from workers.orphans import Orphans
from workers.repairs import ENDINGS, MOST, Ended, Mended, Part, Repairs

PAGE = 500  # holds read at once
WINDOW = 50_000  # holds unknown to the ledger that are looked into at once


class Mender:
    """One per process; the store connection and the pool are the caller's."""

    def __init__(self, store: SharedConnection, ledger: Pool, shards: int) -> None:
        self._repairs = Repairs(store, ledger)
        self._orphans = Orphans(self._repairs)
        self._ledger = ledger
        self._shards = shards

    @property
    def made(self) -> Counter[str]:
        """The repairs of this process: what was done -> how often."""
        return self._repairs.made

    async def mend(self, known: Campaign) -> Mended:
        """No hold stands that nobody would end, and no order waits for a message to the store that nobody would
        deliver, but for those beyond MOST a shard, which are left for the next round.

        A hold without order is put back into the intake if its request is on record: its 202 may be out. What only the
        entry had, the address, is lost. Its time to pay may have passed: then the expiry worker ends it, and its units
        come back. Without a request nobody was promised anything, and it is released; so is that of an order that an
        operator gave up. A hold that cannot be read is left as it is, and told.

        Raises: CampaignLost, StoreUnavailable, LedgerUnavailable; what was mended stays so.
        """
        found = Mended()
        for shard in home_shards(known.campaign, known.spec.spread, self._shards):
            await self._mend(Part(known, shard, sale_keys(shard, known.campaign)), found)
        return found

    async def _mend(self, part: Part, found: Mended) -> None:
        ended: dict[str, list[Ended]] = {topic: [] for topic in ENDINGS}
        unknown: set[bytes] = set()
        given_up: set[bytes] = set()
        cursor = b"0"
        while True:
            [[cursor, pairs]] = await self._repairs.tell(("HSCAN", part.keys.holds, cursor, "COUNT", PAGE))
            ids = []
            for order_id in pairs[::2]:
                if len(order_id) == 16 and shard_of(order_id) == part.shard:
                    ids.append(order_id)
                else:
                    found.wrong.append(f"{part.keys.holds.decode()}: {order_id!r} is no order of this shard")
            found.holds += len(pairs) // 2
            if ids:
                await self._sort(part, ids, ended, unknown)
                given_up.update((await self._repairs.dropped(part.shard, ids))[: MOST - len(given_up)])
            if cursor == b"0" or len(unknown) >= WINDOW:
                await self._orphans.find(part, unknown, found)
                unknown.clear()
            if cursor == b"0":
                break
        await self._orphans.drop(part, given_up, found)
        for topic, orders in ended.items():
            await self._repairs.repeat(part, topic, orders, found)
        await self._repairs.repeat_lost(part, found)

    async def _sort(self, part: Part, ids: list[bytes], ended: dict[str, list[Ended]], unknown: set[bytes]) -> None:
        """A page of holds: unknown to the ledger, to be ended, or as they should be."""
        unknown.update(await self._repairs.unknown(part.shard, ids))
        for order in await self._repairs.ended(part, ids):
            if len(ended[order.topic]) < MOST:
                ended[order.topic].append(order)
