"""What each kind of worker says of itself in its sign of life, and what waits for its kind."""

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial

from redis.exceptions import RedisError

from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.settings import Settings
from lua.connection import Command, StoreConnection
from lua.keys import intake_key
from lua.registry import EVERY_S, LOOK_S, Lag, SignOfLife, Work
from lua.scripts import Scripts
from workers.destination import CONCURRENCY
from workers.expiry import ExpiryWorker
from workers.ledger import LedgerWorker
from workers.letters import PARTNER_OF
from workers.reconcile import ReconcileWorker
from workers.relay import RelayWorker
from workers.store_topics import TOPICS

SHARDS_A_SECOND = 256  # whose backlog is asked for; a deployment with more of them is asked more rarely
COUNTED = 10_000  # of what waits on one shard, in the ledger: counting more would be work that somebody waits for

AnyWorker = LedgerWorker | ExpiryWorker | RelayWorker | ReconcileWorker
AskLag = Callable[[StoreConnection], Awaitable[Lag]]


def sign_of(
    settings: Settings, worker: object, ledger: Pool, kind: str, name: str, metrics: Callable[[], str] = lambda: ""
) -> SignOfLife:
    """The sign of life of a worker, not said yet. `metrics`: where they are served.

    Raises TypeError: no worker that is known here.
    """
    shards = list(range(settings.shards))
    reads = f"intake of {settings.shards} shards"
    ask_lag: AskLag | None = None
    work: Callable[[], Work]
    if isinstance(worker, LedgerWorker):
        work, ask_lag = partial(_drained, worker), Rarely(partial(_intake, shards), len(shards) / SHARDS_A_SECOND)
    elif isinstance(worker, RelayWorker):
        topics = [*TOPICS, *(PARTNER_OF if worker.partners else [])]
        partners = worker.partners.destinations if worker.partners else {}
        reads = f"outbox: {', '.join(['store', *partners])}"
        work, ask_lag = partial(_carried, worker), partial(_outbox, ledger, shards, topics)
    elif isinstance(worker, ExpiryWorker):
        reads = f"orders that are due, {settings.shards} shards"
        work, ask_lag = partial(_moved, worker), partial(_due, ledger, shards)
    elif isinstance(worker, ReconcileWorker):
        reads, work = "all campaigns: audits, alerts, rebuilds", partial(_mended, worker)
    else:
        raise TypeError(f"a {type(worker).__name__} says nothing of itself")
    return SignOfLife(settings.store_url, kind, name, work, ask_lag, reads=reads, metrics=metrics)


class Rarely:
    """Asks when the last answer is `every_s` old and more; in between it is told again."""

    def __init__(self, asked: AskLag, every_s: float) -> None:
        self._ask = asked
        self._every_s = every_s if every_s > EVERY_S else 0.0
        self._next_s = -math.inf
        self._last = Lag()

    async def __call__(self, store: StoreConnection) -> Lag:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._last = await self._ask(store)
            self._next_s = now_s + self._every_s
        return self._last


def _drained(worker: LedgerWorker) -> Work:
    writer = worker.writer
    totals = {"transactions": float(writer.transactions), "transaction_s": writer.worked_s}
    facts = {"claimed": worker.claimed, "dead": worker.dead, "batch": worker.drain_orders}
    return Work(worker.written + worker.dead, worker.idle.seconds, totals, facts)


def _carried(worker: RelayWorker) -> Work:
    partners = worker.partners.destinations if worker.partners else {}
    totals: dict[str, float] = {}
    for name, one in partners.items():
        totals[f"{name}_sent"] = float(one.sent)
        totals[f"{name}_sending_s"] = one.sending_s
    facts = {"at_once": CONCURRENCY, "open_breakers": [name for name, one in partners.items() if one.breaker.is_open]}
    return Work(worker.delivered, worker.idle.seconds, totals, facts)


def _moved(worker: ExpiryWorker) -> Work:
    totals = {"expired": float(worker.expired), "completed": float(worker.completed)}
    return Work(worker.expired + worker.received + worker.completed, worker.idle.seconds, totals)


def _mended(worker: ReconcileWorker) -> Work:
    facts = {"rounds": worker.rounds, "mended": worker.mended, "alerts": worker.alerts}
    return Work(worker.mended, worker.idle.seconds, {"rounds": float(worker.rounds)}, facts)


async def _intake(shards: list[int], store: StoreConnection) -> Lag:
    """Of all ledger workers together: they share the streams."""
    lengths: list[Command] = [("XLEN", intake_key(shard)) for shard in shards]
    replies = await store.exchange(lengths)
    filled = [s for s, length in zip(shards, replies, strict=True) if not isinstance(length, RedisError) and length]
    found = (await Scripts(store).backlog(filled)).values()
    orders = sum(one.orders for one in found)
    age_s = max((one.age_ms for one in found), default=0) / 1000
    return Lag(orders, age_s, {"entries": sum(one.entries for one in found), "shards_behind": len(filled)})


async def _outbox(ledger: Pool, shards: list[int], topics: list[str], _: StoreConnection) -> Lag:
    fetch = partial(ledger.fetch, query("lag_outbox"), shards, topics, COUNTED)
    rows = await ask(fetch, timeout_s=LOOK_S)
    by_topic = {row["topic"]: row["waiting"] for row in rows}
    return Lag(sum(by_topic.values()), max((r["overdue_s"] for r in rows), default=0.0), {"waiting": by_topic})


async def _due(ledger: Pool, shards: list[int], _: StoreConnection) -> Lag:
    row = await ask(partial(ledger.fetchrow, query("lag_expiry"), shards, COUNTED), timeout_s=LOOK_S)
    assert row is not None  # noqa: S101 - an aggregate has a row
    return Lag(row["waiting"], row["overdue_s"])
