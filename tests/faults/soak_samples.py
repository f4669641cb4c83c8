"""What a soak looks at: memory, handles and threads of every process, what store and ledger hold."""

import os
from pathlib import Path

from msgspec import Struct

from tests.faults.nemesis.stack import Stack

PAGE = os.sysconf("SC_PAGE_SIZE")

_TABLES = """
SELECT relname, pg_total_relation_size(relid) AS bytes, pg_indexes_size(relid) AS index_bytes, n_live_tup, n_dead_tup
FROM pg_stat_user_tables
"""
_SESSIONS = """
SELECT count(*) AS sessions, coalesce(extract(epoch FROM max(now() - xact_start)), 0)::float8 AS oldest_s
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class OfProcess(Struct, frozen=True):
    """A process at one time; another pid is another life."""

    pid: int
    rss_bytes: int
    fds: int
    threads: int


class OfTable(Struct, frozen=True):
    """A table with its indexes; tuples as the ledger's statistics have them."""

    bytes: int
    index_bytes: int
    live: int
    dead: int


class Sample(Struct, frozen=True):
    """One look at everything. `drained`: nothing moved any more; `orders`: on the ledger, of all parts."""

    at_s: float
    part: int
    drained: bool
    orders: int
    processes: dict[str, OfProcess]
    store_bytes: int
    store_clients: int
    store_keys: int
    sessions: int
    oldest_s: float
    tables: dict[str, OfTable]


def of_process(pid: int) -> OfProcess | None:
    """None of a process that is gone."""
    place = Path(f"/proc/{pid}")
    try:
        pages = int((place / "statm").read_text().split()[1])
        return OfProcess(pid, pages * PAGE, len(os.listdir(place / "fd")), len(os.listdir(place / "task")))
    except (OSError, IndexError):
        return None


async def look(stack: Stack, at_s: float, part: int, drained: bool) -> Sample:
    """The sample of now. Raises what store and ledger raise when they are away."""
    assert stack.desk is not None
    pids = {name: part.pid for name, part in stack.parts.items()} | {"store": stack.store.pid}
    processes = {name: found for name, pid in pids.items() if pid and (found := of_process(pid))}
    memory, clients, keys = await stack.desk.store.exchange([("INFO", "memory"), ("INFO", "clients"), ("DBSIZE",)])
    ledger = stack.desk.ledger
    [sessions] = await ledger.fetch(_SESSIONS)
    tables = {
        row["relname"]: OfTable(row["bytes"], row["index_bytes"], row["n_live_tup"], row["n_dead_tup"])
        for row in await ledger.fetch(_TABLES)
    }
    return Sample(
        at_s=round(at_s, 1),
        part=part,
        drained=drained,
        orders=await ledger.fetchval("SELECT count(*) FROM orders"),
        processes=processes,
        store_bytes=_told(memory, b"used_memory"),
        store_clients=_told(clients, b"connected_clients"),
        store_keys=int(keys),
        sessions=sessions["sessions"],
        oldest_s=round(sessions["oldest_s"], 1),
        tables=tables,
    )


def _told(info: bytes, name: bytes) -> int:
    facts = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    return int(facts[name])
