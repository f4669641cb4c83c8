"""What the console reads again and again of ledger and store: campaigns, stock, backlog, outbox, alerts."""

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from core.desk.campaigns import Campaign
from core.ledger.pool import ask
from core.ledger.queries import query
from core.model import CampaignSpec, Loosest
from lua.keys import home_shards, sale_keys
from lua.scripts import Reading, Scripts
from ops.desk import Desk

CAMPAIGNS_MAX = 200  # listed
LIVE_MAX = 40  # whose stock is read again and again
SHARDS_MAX = 256  # read at once, of all live campaigns
COUNTED_MAX = 100_000  # messages
ALERTS_MAX = 50
LIVE = ("opening", "open", "paused", "recovering")


class Listed(NamedTuple):
    """A campaign as the ledger has it; `spec` is None, and `why` says so, if another program wrote it."""

    campaign: str
    state: str
    version: int
    epoch: int
    spec: CampaignSpec | None
    why: str
    changed_at: datetime | None

    def known(self) -> Campaign:
        """The same for the desk. Only of one with a definition."""
        assert self.spec is not None  # noqa: S101 - for mypy: the callers have looked
        return Campaign(self.campaign, self.state, self.version, self.epoch, self.spec, Loosest())


class Ledger(Struct, frozen=True):
    """One look at the ledger."""

    campaigns: list[Listed] = []
    waiting: list[dict[str, Any]] = []  # count_waiting.sql
    dead_messages: int = 0
    dead_orders: int = 0
    alerts: list[dict[str, Any]] = []  # open_alerts.sql


class Stock(Struct, frozen=True):
    """One look at the store: a reading per shard of each live campaign, and what waits for the ledger."""

    readings: dict[str, list[tuple[int, Reading]]] = {}
    waiting_orders: int = 0
    oldest_s: float = 0.0
    by_shard: dict[int, int] = {}  # orders that wait, where any do


class Books:
    """Reads both; the desk is the caller's."""

    def __init__(self, desk: Desk, shards: int) -> None:
        self._desk = desk
        self._scripts = Scripts(desk.store)
        self._shards = shards

    async def ledger(self) -> Ledger:
        """Raises LedgerUnavailable."""
        return await ask(self._ledger)

    async def _ledger(self) -> Ledger:
        async with self._desk.ledger.acquire() as connection:
            rows = await connection.fetch(query("console_campaigns"), CAMPAIGNS_MAX)
            waiting = await connection.fetch(query("count_waiting"), COUNTED_MAX)
            dead = await connection.fetchrow(query("count_dead"))
            alerts = await connection.fetch(query("open_alerts"), ALERTS_MAX)
        assert dead is not None  # noqa: S101 - a SELECT of counts has one row
        return Ledger(
            [_listed(dict(row)) for row in rows], [dict(row) for row in waiting],
            dead["messages"], dead["orders"], [dict(row) for row in alerts],
        )  # fmt: skip

    async def stock(self, campaigns: list[Listed]) -> Stock:
        """Of those campaigns that have stock in the store. Raises StoreUnavailable."""
        asked: list[tuple[str, int]] = []
        live = [c for c in campaigns if c.state in LIVE and c.spec is not None][:LIVE_MAX]
        # Those of few shards first: so of the most campaigns the units are known.
        for name, home in sorted(((one.campaign, self.home(one)) for one in live), key=lambda found: len(found[1])):
            if len(asked) + len(home) > SHARDS_MAX:
                break
            asked += [(name, shard) for shard in home]
        readings = await self._scripts.audit([sale_keys(shard, name) for name, shard in asked]) if asked else []
        found: dict[str, list[tuple[int, Reading]]] = {}
        for (name, shard), reading in zip(asked, readings, strict=True):
            found.setdefault(name, []).append((shard, reading))
        backlog = await self._scripts.backlog(range(self._shards))
        by_shard = {shard: one.orders for shard, one in backlog.items() if one.orders}
        oldest_ms = max((one.age_ms for one in backlog.values() if one.orders), default=0)
        return Stock(found, sum(by_shard.values()), oldest_ms / 1000, by_shard)

    async def readings(self, one: Listed) -> list[tuple[int, Reading]]:
        """Of one campaign, whatever its state. Raises StoreUnavailable."""
        home = self.home(one)
        return list(zip(home, await self._scripts.audit([sale_keys(s, one.campaign) for s in home]), strict=True))

    def home(self, one: Listed) -> list[int]:
        """Its shards."""
        spread = one.spec.spread if one.spec is not None else 1
        return home_shards(one.campaign, min(spread, self._shards), self._shards)


def _listed(row: dict[str, Any]) -> Listed:
    spec, why = None, ""
    try:
        spec = msgspec.json.decode(row["spec"], type=CampaignSpec)
    except msgspec.DecodeError as exc:
        why = f"its definition cannot be read by this program: {exc}"
    return Listed(row["campaign"], row["state"], row["version"], row["epoch"], spec, why, row["changed_at"])
