"""What the doctor says of the outbox: what is late on its way where, what is dead, and what will wait for ever."""

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from core.flows.table import TOPICS
from core.ledger.queries import query
from ops.order_display import duration, many, plain
from workers.letters import PARTNER_OF

STORE = "store"  # the destination of every topic that goes to no partner
LATE_S = 5.0  # a message of a sound deployment leaves the outbox in far less
STUCK_S = 60.0  # longer than the lease of a relay that died: nothing carries messages to the store
ERROR_CHARS = 200


class Found(NamedTuple):
    """One thing to say; `wrong` or to look at."""

    name: str
    wrong: bool
    words: str


async def look(connection: asyncpg.Connection, partners_url: str) -> list[Found]:
    """What there is to say, empty if all is well. Raises what asyncpg raises."""
    topics = list(TOPICS)
    destinations = [PARTNER_OF.get(topic, STORE) for topic in topics]
    rows = await connection.fetch(query("late_messages"), topics, destinations, LATE_S)
    found = [_late(row) for row in rows if partners_url or row["destination"] == STORE]
    if not partners_url:
        waiting = await connection.fetchval(query("count_topics"), list(PARTNER_OF))
        if waiting:
            words = (
                "RUSHGATE_PARTNERS_URL is empty: nothing goes to partners until a relay is given one; "
                f"{many(waiting, 'message')} for them in the outbox"
            )
            found.append(Found("partners", False, words))
    [dead] = await connection.fetch(query("count_dead"))
    return found + _dead(dead)


def _late(row: asyncpg.Record) -> Found:
    overdue = row["overdue_s"] > 0
    words = f"{many(row['messages'], 'message')} late; the oldest ({row['topic']}) came {_ago(row['waited_s'])} ago, "
    words += f"{many(row['attempts'], 'attempt')}, " if row["attempts"] else "no attempt yet, "
    words += f"overdue by {_ago(row['overdue_s'])}" if overdue else f"next within {_ago(-row['overdue_s'])}"
    if row["error"]:
        words += f"; last error: {plain(row['error'][:ERROR_CHARS]).plain}"
    # The store's topics wait for nobody but a relay, whose own worst case is the lease of one that died.
    stuck = row["destination"] == STORE and row["overdue_s"] > STUCK_S
    if overdue and not row["error"]:
        words += "; does a relay work (it may be alive and frozen)?"
    return Found(f"to {row['destination']}", stuck, words)


def _dead(row: asyncpg.Record) -> list[Found]:
    found: Sequence[tuple[int, str]] = ((row["messages"], "message"), (row["orders"], "order"))
    told = " and ".join(many(count, word) for count, word in found if count)
    if not told:
        return []
    words = f"{told} dead: `rushgate dead-letters list` says why, `replay` puts back, `drop` gives up"
    return [Found("dead letters", False, words)]


def _ago(seconds: float) -> str:
    return duration(max(0.0, seconds) * 1000)
