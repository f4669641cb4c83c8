"""Pages of orders, by shard and id: on the primary key, where no page costs more than a bounded look, however few fit;
those of a buyer on an index of their own, where a page may cost a look at all orders of this buyer.
"""

from functools import partial

from asyncpg.pgproto.pgproto import UUID
from msgspec import Struct

from core.desk.campaigns import CampaignDesk
from core.errors import CampaignUnknown
from core.ids import shard_of
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from lua.keys import buyer_slot, home_shards

MAX_PAGE = 100  # orders
LOOKED_AT = 20_000  # rows, for one page


class Filter(Struct, frozen=True):
    """What orders must be; None = anything."""

    buyer_id: str | None = None
    channel: str | None = None
    campaign: str | None = None
    state: str | None = None


class Listing:
    """One per process; the pool is the caller's."""

    def __init__(self, ledger: Pool, campaigns: CampaignDesk, shards: int) -> None:
        self._ledger = ledger
        self._campaigns = campaigns
        self._shards = shards

    async def page(self, wanted: Filter, after: bytes | None, limit: int) -> tuple[list[bytes], bytes | None]:
        """The ids of at most `limit` orders beyond `after`, and where to go on; None: there are no more.

        There may be fewer, even none, and a place to go on: then the look was over before the page was full.

        Raises: LedgerUnavailable.
        """
        shards = await self._home(wanted)
        start = (-1, UUID(bytes(16))) if after is None else (shard_of(after), UUID(after))
        fields = wanted.campaign, wanted.channel, wanted.buyer_id, wanted.state
        text = query("list_orders") if wanted.buyer_id is None else query("list_buyer_orders")
        rows = await ask(partial(self._ledger.fetch, text, shards, *start, LOOKED_AT, limit, *fields))
        fit = [r["order_id"].bytes for r in rows if not r["ends"]]
        if len(fit) == limit:
            return fit, fit[-1]
        return fit, rows[-1]["order_id"].bytes if rows and rows[-1]["ends"] else None

    async def _home(self, wanted: Filter) -> list[int]:
        """The shards that orders of the filter can be on."""
        if wanted.campaign is None:
            return list(range(self._shards))
        try:
            spread = (await self._campaigns.show(wanted.campaign)).spec.spread
        except CampaignUnknown:
            return []
        home = home_shards(wanted.campaign, spread, self._shards)
        return home if wanted.buyer_id is None else [home[buyer_slot(wanted.buyer_id, spread)]]
