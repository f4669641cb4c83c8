"""What a gateway process knows of the campaigns: read from the store, so that intake needs no ledger."""

import asyncio
import re
from typing import Any

import asyncpg
import msgspec
from redis.exceptions import RedisError

from core.errors import CampaignLost, CampaignUnknown, Fault, Recovering, Refused, StoreUnavailable
from core.ids import campaign_tag
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.model import NAME, CampaignSpec
from lua.connection import Command, SharedConnection
from lua.keys import home_shards, life_key, sale_keys

LEDGER_WAIT_S = 2.0  # for a name that the store does not know
MAX_UNKNOWN = 10_000  # names remembered as unknown
LOOK_S = 1.0  # between two looks at a campaign that takes no orders here
FORGET_S = 1.0  # after so long an unknown name is asked for again

MAX_NAME = 64

decode_spec = msgspec.json.Decoder(CampaignSpec).decode
_is_name = re.compile(NAME).match


class NotOpen(Refused):
    """The campaign is defined and was not opened yet."""

    code = "not_open"


class Sale:
    """An installed campaign at one epoch and version. Immutable, but for `stale`, `looked_s` and `policies`."""

    __slots__ = ("campaign", "channels", "currency", "discounts", "epoch", "gate", "keys", "life", "looked_s", "policies", "prices", "rated", "shards", "spec", "spread", "stale", "tag", "trusted", "version")  # fmt: skip # noqa: E501

    def __init__(self, campaign: str, epoch: int, version: int, spec: CampaignSpec, shards: int) -> None:
        self.campaign = campaign
        self.epoch = epoch
        self.version = version
        self.life = (campaign, epoch)
        self.spec = spec
        self.spread = spec.spread
        self.shards = home_shards(campaign, spec.spread, shards)
        self.keys = [sale_keys(shard, campaign) for shard in self.shards]
        self.prices = {s.sku: s.price for s in spec.skus}
        self.currency = spec.currency
        # The most off first: of those that an order reaches, the first one counts.
        self.discounts = tuple(sorted(((d.off, d.min_amount) for d in spec.discounts), reverse=True))
        self.channels = None if spec.channels is None else frozenset(spec.channels)
        self.gate = "" if spec.admission == "open" else spec.admission  # what a ticket is needed for, or ""
        self.trusted = frozenset(spec.trusted_channels)
        self.rated = bool(spec.rates.given())
        self.policies: dict[str, Any] = {}  # channel -> its rate limits here; kept by gateway/rates.py
        self.tag = campaign_tag(campaign)
        self.stale = False
        self.looked_s = 0.0  # loop clock, when `look_again` was


class Catalogue:
    """Campaigns by name; each is read once and again when the store names another version or epoch."""

    def __init__(self, store: SharedConnection, ledger: Pool, shards: int) -> None:
        self.sales: dict[str, Sale] = {}
        self.shards = shards
        self._store = store
        self._ledger = ledger
        self._unknown: dict[str, float] = {}
        self._loading: dict[str, asyncio.Task[Sale]] = {}
        self._refreshing: set[asyncio.Task[None]] = set()

    async def get(self, campaign: str) -> Sale:
        """The campaign as last read.

        Raises:
            CampaignUnknown, NotOpen: what the ledger says of a campaign that the store does not hold.
            CampaignLost: the ledger says that the store should hold it.
            Recovering: it is out of service until it is rebuilt.
            StoreUnavailable, LedgerUnavailable: nobody can tell now.
        """
        sale = self.sales.get(campaign)
        if sale is not None:
            return sale
        return await self.reload(campaign)

    async def reload(self, campaign: str) -> Sale:
        """The campaign as the store has it now; concurrent calls share one read. Raises: as `get`."""
        if len(campaign) > MAX_NAME or not _is_name(campaign):
            # Nobody need be asked, and what is no name never reaches the ledger as text (a NUL cannot).
            raise CampaignUnknown("no campaign has such a name")
        task = self._loading.get(campaign)
        if task is None:
            task = self._loading[campaign] = asyncio.get_running_loop().create_task(self._read(campaign))
            task.add_done_callback(lambda t: (self._loading.pop(campaign, None), t.cancelled() or t.exception()))
        return await asyncio.shield(task)

    def note_version(self, sale: Sale, version: int) -> None:
        """Reads the campaign again in the background if the store has a newer version than this one."""
        if version > sale.version and not sale.stale:  # a shard that lags behind is no news
            sale.stale = True
            task = asyncio.get_running_loop().create_task(self._refresh(sale))
            self._refreshing.add(task)  # the loop itself keeps no hold of a task
            task.add_done_callback(self._refreshing.discard)

    def look_again(self, sale: Sale) -> None:
        """Reads a campaign again in the background, once a second at most: of one whose orders are all refused before
        the store is asked, no answer of the store tells that this is over."""
        loop = asyncio.get_running_loop()
        if not sale.stale and loop.time() - sale.looked_s >= LOOK_S:
            sale.looked_s = loop.time()
            task = loop.create_task(self._refresh(sale))
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)

    async def _refresh(self, sale: Sale) -> None:
        try:
            await self.reload(sale.campaign)
        except Fault:
            sale.stale = False  # the older version stays; the next answer of the store asks for the newer one again

    def forget(self, campaign: str) -> None:
        """The next `get` asks the store."""
        self.sales.pop(campaign, None)
        self._unknown.pop(campaign, None)

    async def _read(self, campaign: str) -> Sale:
        # Built, not looked up: callers choose this name, and it shall not stay in memory before it is known.
        keys = sale_keys.__wrapped__(home_shards(campaign, 1, self.shards)[0], campaign)
        asks: list[Command] = [
            ("HMGET", keys.meta, "epoch", "version", "config", "state", "deployment"), ("GET", life_key()),
        ]  # fmt: skip
        replies = await self._store.exchange(asks)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
        [epoch, version, config, state, deployment], life = replies
        if state == b"recovering":
            self.sales.pop(campaign, None)
            raise Recovering(f"campaign {campaign} is out of service until it is rebuilt")
        if epoch is None or config is None:
            self.sales.pop(campaign, None)
            raise await self._why_absent(campaign)
        # The store was judged by a deployment, which leaves another one's campaigns in it alone: they are not ours.
        if deployment and life and not life.startswith(deployment + b" "):
            self.sales.pop(campaign, None)
            raise CampaignLost(f"the store holds campaign {campaign} of another deployment")
        sale = Sale(campaign, int(epoch), int(version), decode_spec(config), self.shards)
        sale.looked_s = asyncio.get_running_loop().time()
        self.sales[campaign] = sale
        return sale

    async def _why_absent(self, campaign: str) -> Exception:
        # The store was asked; the ledger is not asked again and again for a name that it does not know.
        if self._unknown.get(campaign, 0.0) > asyncio.get_running_loop().time():
            return CampaignUnknown(f"no campaign is called {campaign}")
        shard = home_shards(campaign, 1, self.shards)[0]
        row = await ask(lambda: self._fetch(shard, campaign), timeout_s=LEDGER_WAIT_S)
        if row is None:
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[campaign] = asyncio.get_running_loop().time() + FORGET_S
            return CampaignUnknown(f"no campaign is called {campaign}")
        if row["state"] in ("draft", "opening"):
            return NotOpen(f"campaign {campaign} is defined and not opened yet")
        if row["state"] == "recovering":
            return Recovering(f"campaign {campaign} is out of service until it is rebuilt")
        return CampaignLost(f"the store does not hold campaign {campaign}, which the ledger calls {row['state']}")

    async def _fetch(self, shard: int, campaign: str) -> asyncpg.Record | None:
        return await self._ledger.fetchrow(query("get_campaign"), shard, campaign)
