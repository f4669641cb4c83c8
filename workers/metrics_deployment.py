"""What is true of the whole deployment, looked at by a reconcile worker: intake, outbox, what stands, the store.

Beside its audits, and never in their way: a look that fails or is slow is the last one's answer for a while longer.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable

import asyncpg
from redis.exceptions import RedisError

from core.errors import LedgerUnavailable, StoreUnavailable
from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.metrics import Row
from lua.connection import Command, Reply, StoreConnection
from lua.keys import intake_key
from lua.scripts import Scripts
from workers.alerts import KINDS
from workers.ledger import GROUP
from workers.letters import PARTNER_OF

logger = logging.getLogger("rushgate.metrics")

STORE_S = 1.0  # between two looks at the store
LEDGER_S = 2.0  # likewise, at the ledger
REST = 20.0  # the pause after a look, in times of its length
STORE = "store"  # the destination of every topic that goes to no partner
STATES = ("draft", "open", "paused", "closed", "recovering")
DESTINATIONS = (STORE, *dict.fromkeys(PARTNER_OF.values()))


def destination(topic: str) -> str:
    """Where messages of a topic go."""
    return PARTNER_OF.get(topic, STORE)


class Deployment:
    """Made for a reconcile worker; the pool is the caller's, the connection is its own."""

    def __init__(self, connection: StoreConnection, ledger: Pool, shards: int) -> None:
        self._connection = connection
        self._ledger = ledger
        self._shards = range(shards)
        self._of_store: list[Row] = []
        self._of_ledger: list[Row] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """It looks until `stop`."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._watch_store(), name="metrics of the store"),
            loop.create_task(self._watch_ledger(), name="metrics of the ledger"),
        ]

    async def stop(self) -> None:
        """No task and no connection of it is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.close()

    def rows(self) -> Iterable[Row]:
        """As last seen; nothing of what cannot be seen now."""
        return [*self._of_store, *self._of_ledger]

    async def _watch_store(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                self._of_store = await self.look_at_store()
            except StoreUnavailable as exc:
                self._of_store = []
                logger.debug("store not seen", extra={"why": exc.detail})
            await asyncio.sleep(max(STORE_S, REST * (time.monotonic() - began_s)))

    async def _watch_ledger(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                self._of_ledger = await self.look_at_ledger()
            except (LedgerUnavailable, asyncpg.PostgresError) as exc:
                self._of_ledger = []
                logger.debug("ledger not seen", extra={"why": str(exc)})
            await asyncio.sleep(max(LEDGER_S, REST * (time.monotonic() - began_s)))

    async def look_at_store(self) -> list[Row]:
        """Raises: StoreUnavailable."""
        lengths: list[Command] = [("XLEN", intake_key(shard)) for shard in self._shards]
        memory, debug, *replies = await self._connection.exchange([("INFO", "memory"), ("INFO", "debug"), *lengths])
        filled = [shard for shard, reply in zip(self._shards, map(_sound, replies), strict=True) if reply]
        waiting = (await Scripts(self._connection).backlog(filled)).values()
        asked: list[Command] = [("XPENDING", intake_key(shard), GROUP) for shard in filled]
        pending = 0
        for reply in await self._connection.exchange(asked) if asked else []:
            # Without a group nobody has read anything yet.
            pending += 0 if isinstance(reply, RedisError) else reply[0]
        facts = _facts(memory) | _facts(debug)
        rows: list[Row] = [
            ("rushgate_intake_orders", (), sum(one.orders for one in waiting)),
            ("rushgate_intake_entries", (), sum(one.entries for one in waiting)),
            ("rushgate_intake_age_seconds", (), max((one.age_ms for one in waiting), default=0) / 1000),
            ("rushgate_intake_pending_entries", (), pending),
            ("rushgate_store_memory_bytes", (), _number(facts, b"used_memory")),
            ("rushgate_store_memory_limit_bytes", (), _number(facts, b"maxmemory")),
        ]
        if b"eventloop_duration_aof_sum" in facts:  # microseconds; Valkey, and Redis from 7.2 on
            synced_s = _number(facts, b"eventloop_duration_aof_sum") / 1e6
            rows.append(("rushgate_store_aof_seconds_total", (), synced_s))
        return rows

    async def look_at_ledger(self) -> list[Row]:
        """Raises: LedgerUnavailable; asyncpg.PostgresError if the ledger does not let us."""
        waits = await ask(lambda: self._ledger.fetch(query("metrics_outbox")))
        stands = await ask(lambda: self._ledger.fetch(query("metrics_standing")))
        messages: Counter[str] = Counter()
        oldest_s: dict[str, float] = {}
        for row in waits:
            to = destination(row["topic"])
            messages[to] += row["messages"]
            oldest_s[to] = max(oldest_s.get(to, 0.0), row["oldest_s"])
        counted = ("dead_message", "dead_letter", "alert", "campaign")
        numbers: dict[str, Counter[str]] = {what: Counter() for what in counted}
        for row in stands:
            name = destination(row["name"]) if row["what"] == "dead_message" else row["name"]
            numbers[row["what"]][name] += row["number"]
        rows: list[Row] = [("rushgate_dead_letters", (), numbers["dead_letter"][""])]
        for to in DESTINATIONS:
            rows.append(("rushgate_outbox_messages", (to,), messages[to]))
            rows.append(("rushgate_outbox_age_seconds", (to,), oldest_s.get(to, 0.0)))
            rows.append(("rushgate_dead_messages", (to,), numbers["dead_message"][to]))
        rows += [("rushgate_alerts", (kind,), numbers["alert"][kind]) for kind in KINDS]
        rows += [("rushgate_campaigns", (state,), numbers["campaign"][state]) for state in STATES]
        return rows


def _sound(reply: Reply) -> Reply:
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
    return reply


def _facts(info: Reply) -> dict[bytes, bytes]:
    """The lines of an INFO; nothing if the store does not give this section."""
    if isinstance(info, RedisError):
        return {}
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def _number(facts: dict[bytes, bytes], name: bytes) -> float:
    with contextlib.suppress(ValueError):
        return float(facts.get(name, 0))
    return 0.0
