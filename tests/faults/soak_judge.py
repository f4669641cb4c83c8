"""Whether a soak was flat: the samples after the drains, the first against the last. Pure."""

from collections.abc import Iterator, Sequence

from tests.faults.soak_samples import Sample

MB = 1_000_000
RSS_MB = 8.0  # a process may grow by so much, or by
RSS_SHARE = 0.10  # this part of what it had: allocators keep what they once needed
# Of handles, threads, clients and sessions the last drain may have so many more than the fullest one before: pools open
# connections when they first need them and keep them, a leak goes on.
HANDLES = 8
THREADS = 2
SESSIONS = 6
PARTNERS_BYTES = 15_000  # an order: the played partners remember what they were sent, up to a bound of their own
OLDEST_S = 60.0  # a transaction that is older keeps dead rows alive
STORE_BYTES = 700  # an ended order: its key stays as long as its campaign, 59 bytes a field and the record
RECORDS_TIMES = 1.5  # bytes an order takes in the ledger, of what the first ones took
QUEUE_TIMES, QUEUE_MB = 1.5, 4.0  # of tables that are empty after a drain
QUEUES = ("outbox",)
DEAD_SHARE, DEAD_LEAST = 0.4, 20_000  # autovacuum's own mark is 0.2


def judge(samples: Sequence[Sample]) -> list[str]:
    """What was not flat, in words; that there is nothing to compare is not flat either."""
    drained = [s for s in samples if s.drained]
    if len(drained) < 3:
        return [f"{len(drained)} samples after a drain: three are needed"]
    first, before, last = drained[0], drained[:-1], drained[-1]
    if last.orders <= first.orders:
        return [f"no order came between the first drain and the last: {first.orders}, {last.orders}"]
    found = [*_processes(first, last), *_store(first, last), *_ledger(first, last)]
    return [*found, *_counts(before, last)]


def _processes(first: Sample, last: Sample) -> Iterator[str]:
    for name in sorted(first.processes.keys() | last.processes.keys()):
        before, now = first.processes.get(name), last.processes.get(name)
        if before is None or now is None:
            yield f"{name} ran {'before' if before else 'afterwards'} only"
            continue
        if name != "store":  # its memory is judged by the order
            room = max(RSS_MB * MB, before.rss_bytes * RSS_SHARE)
            if name == "partners":
                room += PARTNERS_BYTES * (last.orders - first.orders)
            if now.rss_bytes - before.rss_bytes > room:
                yield f"{name}: memory {before.rss_bytes / MB:.1f} -> {now.rss_bytes / MB:.1f} MB"


def _counts(before: Sequence[Sample], last: Sample) -> Iterator[str]:
    """What is opened and must be closed, against the fullest drain before the last."""

    def more(what: str, counts: list[int], now: int, room: int) -> Iterator[str]:
        if counts and now > max(counts) + room:
            yield f"{what} {', '.join(map(str, counts))} -> {now}"

    for name, now in sorted(last.processes.items()):
        lives = [s.processes[name] for s in before if name in s.processes]
        yield from more(f"{name}: file handles", [p.fds for p in lives], now.fds, HANDLES)
        yield from more(f"{name}: threads", [p.threads for p in lives], now.threads, THREADS)
    yield from more("store: clients", [s.store_clients for s in before], last.store_clients, HANDLES)
    yield from more("ledger: sessions", [s.sessions for s in before], last.sessions, SESSIONS)


def _store(first: Sample, last: Sample) -> Iterator[str]:
    each = store_bytes_an_order(first, last)
    if each > STORE_BYTES:
        yield f"store: {each:,.0f} bytes for each ended order, {STORE_BYTES} are the bound"


def _ledger(first: Sample, last: Sample) -> Iterator[str]:
    if last.oldest_s > OLDEST_S:
        yield f"ledger: a transaction is {last.oldest_s:.0f} s old after the drain"
    for name, now in sorted(last.tables.items()):
        before = first.tables.get(name)
        if before is None:
            continue
        if now.dead > DEAD_LEAST and now.dead > now.live * DEAD_SHARE:
            yield f"ledger: {name} has {now.dead:,} dead rows for {now.live:,} live ones"
        if name in QUEUES:
            if now.bytes > before.bytes * QUEUE_TIMES + QUEUE_MB * MB:
                yield f"ledger: {name} {before.bytes / MB:.1f} -> {now.bytes / MB:.1f} MB, though it is empty"
        elif (now.bytes - before.bytes) / (last.orders - first.orders) > RECORDS_TIMES * (before.bytes / first.orders):
            was, each = before.bytes / first.orders, (now.bytes - before.bytes) / (last.orders - first.orders)
            yield f"ledger: {name} {was:,.0f} bytes an order in the first part, {each:,.0f} since"


def store_bytes_an_order(first: Sample, last: Sample) -> float:
    """What each order that came and ended between them left in the store."""
    return (last.store_bytes - first.store_bytes) / (last.orders - first.orders)


def table(samples: Sequence[Sample]) -> list[str]:
    """The samples after the drains, side by side, and the growth of memory by the million orders."""
    drained = [s for s in samples if s.drained]
    if not drained:
        return []
    first, last = drained[0], drained[-1]
    rows = [("after the drain of part", [str(s.part) for s in drained])]
    rows += [("orders", [f"{s.orders:,}" for s in drained])]
    for name in sorted(first.processes):
        shown = [s.processes.get(name) for s in drained]
        rows += [(f"{name}: MB/handles/threads", [_shown(p.rss_bytes, p.fds, p.threads) if p else "-" for p in shown])]
    rows += [("store: MB used", [f"{s.store_bytes / MB:.1f}" for s in drained])]
    rows += [("store: clients, keys", [f"{s.store_clients}, {s.store_keys}" for s in drained])]
    rows += [("ledger: sessions, oldest s", [f"{s.sessions}, {s.oldest_s:g}" for s in drained])]
    biggest = sorted(last.tables, key=lambda n: -last.tables[n].bytes)[:8]
    for name in dict.fromkeys([*biggest, *QUEUES]):
        found = [s.tables.get(name) for s in drained]
        rows += [(f"{name}: MB, dead rows", [f"{t.bytes / MB:.1f}, {t.dead:,}" if t else "-" for t in found])]
    lines = [f"{what:<30} " + " ".join(f"{cell:>18}" for cell in cells) for what, cells in rows]
    if last.orders > first.orders:
        lines.append(f"store: {store_bytes_an_order(first, last):,.0f} bytes for each ended order")
        same = [n for n, p in last.processes.items() if n in first.processes and first.processes[n].pid == p.pid]
        for name in sorted(same):
            grown = last.processes[name].rss_bytes - first.processes[name].rss_bytes
            lines.append(f"{name}, one life: {grown / (last.orders - first.orders):+,.0f} MB by the million orders")
    return lines


def _shown(rss_bytes: int, fds: int, threads: int) -> str:
    return f"{rss_bytes / MB:.1f}/{fds}/{threads}"
