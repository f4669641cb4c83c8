"""The outbox as a relay uses it: claims, and what became of them. Every call is one statement, and none waits for
anybody but the ledger."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from asyncpg.pgproto.pgproto import UUID

from core.ledger.pool import Pool, ask
from core.ledger.queries import query
from core.metrics import Buckets
from core.metrics_table import LONG_S

BACKOFF_S = (0.2, 30.0)  # of a message: first wait, longest wait
REASON_CHARS = 1_000


class Message(NamedTuple):
    """A claimed message of one shard and topic."""

    order_id: UUID
    version: int
    attempts: int
    waited_ms: int
    campaign: str
    epoch: int


def backoff_s(attempts: int, draw: float, longest_s: float = BACKOFF_S[1]) -> float:
    """The wait before the next attempt: doubling, bounded, between half and the whole of it as `draw` (0 to 1) says."""
    whole = min(longest_s, BACKOFF_S[0] * 2.0 ** min(attempts - 1, 30))
    return float(whole * (0.5 + draw / 2))


class Outbox:
    """One per relay. Every method raises LedgerUnavailable."""

    def __init__(self, ledger: Pool) -> None:
        self.ledger = ledger
        self.told: Counter[tuple[str, str]] = Counter()  # topic, what became of its messages -> how many
        self.took_s: defaultdict[str, Buckets] = defaultdict(partial(Buckets, LONG_S))  # topic -> attempts that did it

    async def due(self, shards: list[int], topics: list[str]) -> list[tuple[str, int]]:
        """Topics and shards with something due, in the order of the topics."""
        rows = await ask(lambda: self.ledger.fetch(query("outbox_shards"), shards, topics))
        return [(row["topic"], row["shard"]) for row in rows]

    async def claim(self, shard: int, topic: str, most: int, lease_s: float) -> list[Message]:
        """Messages that are this relay's until the lease has passed."""
        rows = await ask(lambda: self.ledger.fetch(query("claim_messages"), shard, topic, most, lease_s))
        return [Message(**dict(row)) for row in rows]

    async def finish(
        self, shard: int, topic: str, messages: Sequence[Message], worked_ms: Sequence[int], outcomes: Sequence[str]
    ) -> None:
        """Delivered: off the outbox, and on record."""
        waited_ms, attempts = [m.waited_ms for m in messages], [m.attempts for m in messages]
        columns = (*_ids(messages), waited_ms, attempts, worked_ms, outcomes)
        await ask(lambda: self.ledger.execute(query("finish_messages"), shard, topic, *columns))
        self.told[topic, "done"] += len(messages)
        took_s = self.took_s[topic]
        for ms in worked_ms:
            took_s.add(ms / 1000)

    async def put_off(
        self, shard: int, topic: str, messages: Sequence[Message], waits_s: Sequence[float],
        errors: Sequence[str | None],
    ) -> None:  # fmt: skip
        """Due again after these waits. An error of None: it was not tried, and the attempt does not count."""
        columns = (*_ids(messages), [m.attempts for m in messages], waits_s, [e and text(e) for e in errors])
        await ask(lambda: self.ledger.execute(query("retry_messages"), shard, topic, *columns))
        tried = sum(error is not None for error in errors)
        self.told[topic, "later"] += tried
        self.told[topic, "returned"] += len(messages) - tried

    async def bury(self, shard: int, topic: str, messages: Sequence[Message], reasons: Sequence[str]) -> None:
        """Never to be delivered unless a person says so."""
        columns = (*_ids(messages), [m.attempts for m in messages], [text(r) for r in reasons])
        await ask(lambda: self.ledger.execute(query("bury_messages"), shard, topic, *columns))
        self.told[topic, "dead"] += len(messages)


def _ids(messages: Sequence[Message]) -> tuple[list[UUID], list[int]]:
    return [m.order_id for m in messages], [m.version for m in messages]


def text(reason: str) -> str:
    """A reason as Postgres text: without NUL, of bounded length."""
    return reason.replace("\0", "\\0")[:REASON_CHARS]
