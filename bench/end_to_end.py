"""End to end on all cores: the longest rate at which 202 -> ledger row stays flat, and the latencies at parts of it.

Generator, gateway, store, ledger worker and Postgres share the cores, none is pinned: that is how a small machine runs,
and the kernel shares better than a guess. Open loop: every order has its planned time, and latency counts from then.

When an order's row came to be is read from Postgres afterwards (`track_commit_timestamp`), for every order: nothing
asks the ledger while it works, so the measurement takes no CPU from what it measures, and misses no order. The time is
that at which the transaction writes its commit record: the flush of that record, one fsync, is not in it.
"""

import asyncio
import os
import statistics
import time
from bisect import bisect
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import asyncpg

from bench import plot
from bench.drain import forget
from bench.environment import spread
from bench.generator import Crowd, Opened, key_number, open_loop, order_wire
from bench.processes import all_cores, family_cpu_s, gateway, own_cpu_s, pids, pin_family, worker
from bench.services import Services
from core.ledger.pool import Pool, open_pool
from core.settings import Settings
from gateway.catalogue import Sale

STEPS = (4_000, 6_000, 8_000, 10_000, 12_000, 14_000, 16_000)  # orders/s
STEP_S = 15.0
PROOF_S = 60.0
FINER = 500  # orders/s between two proofs
PROOFS = 6  # at most
SETTLE_S = 10.0  # what comes before is the start, and not judged; of a short stretch a third
PARTS = (0.5, 0.8)  # of the rate that was proved
PART_S = 30.0
PART_ROUNDS = 3
CONNECTIONS = 256
GROWS_S = 0.1  # flat: by the slope the lag grows by less than so many seconds' worth of orders until the end
DRAIN_S = 120.0  # longest wait for the last row
WARM_S = 3.0

WARM, MEASURED = "aaaaaaaa", "bbbbbbbb"  # begin the request keys
FIRST = 10_000_000  # number of the first measured order: other buyers than those of the first stretch

_ROWS = """
SELECT request_key, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM orders
WHERE campaign = $1 AND request_key LIKE $2
"""


class Ran(NamedTuple):
    """One stretch of load. Latencies in seconds from the planned time, by the number of the order; errors are none."""

    rate: float
    seconds: float
    answered_s: list[float]
    row_s: list[float]
    late_s: list[float]  # of the sending, in the generator
    lag: list[int]  # orders due and not in the ledger, at the end of each second
    slope: float  # orders a second, by which the lag grows after the start
    flat: bool
    errors: dict[str, int]
    cpu_us: dict[str, float]  # of an order, by process


async def measure(
    services: Services, steps: Sequence[float] = STEPS, step_s: float = STEP_S, proof_s: float = PROOF_S,
    parts: Sequence[float] = PARTS, part_s: float = PART_S, part_rounds: int = PART_ROUNDS, finer: float = FINER,
    proofs: int = PROOFS,
) -> dict[str, Any]:  # fmt: skip
    """The proved rate, its lag by second, and the latencies at `parts` of it. Raises SystemExit if no step is flat."""
    for pid in pids(services):
        pin_family(pid, all_cores())
    own = services._replace(settings=await with_commit_times(services))
    ledger = await open_pool(own.settings.ledger_dsn, "bench", 120.0, 1)
    print("\nend to end: generator, gateway, store, ledger worker and Postgres share all cores, open loop (Poisson)")
    try:
        tried = []
        for rate in steps:
            tried.append(await run(own, ledger, rate, step_s))
            _show("step", tried[-1])
            if not tried[-1].flat:
                break
        best = max((t.rate for t in tried if t.flat), default=0.0)
        if not best:
            raise SystemExit(f"end to end: not flat at {steps[0]:,.0f} orders/s; begin lower")
        proving = await _proofs(own, ledger, best, proof_s, finer, proofs)
        proved = max((p for p in proving if p.flat), key=lambda p: p.rate, default=None)
        if proved is None:
            raise SystemExit(f"end to end: no rate from {proving[-1].rate:,.0f} orders/s on was flat for {proof_s:g} s")
        at_parts = {}
        for part in parts:
            at_parts[part] = [await run(own, ledger, proved.rate * part, part_s) for _ in range(part_rounds)]
            for one in at_parts[part]:
                _show(f"{part:.0%}", one)
    finally:
        ledger.terminate()
    return result(tried, proving, proved, at_parts)


async def with_commit_times(services: Services) -> Settings:
    """Postgres keeps the time of each commit, from a restart on. The settings with its address."""
    connection = await asyncpg.connect(services.settings.ledger_dsn)
    try:
        if await connection.fetchval("SHOW track_commit_timestamp") == "on":
            return services.settings
        await connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    finally:
        await connection.close()
    await services.ledger_process.stop()
    return services.settings.with_values(ledger_dsn=await services.ledger_process.start())


async def _proofs(services: Services, ledger: Pool, rate: float, seconds: float, finer: float, most: int) -> list[Ran]:
    """From `rate` up until one is not flat, or down until one is; at most `most`."""
    done: list[Ran] = []
    while len(done) < most and rate > 0:
        done.append(await run(services, ledger, rate, seconds))
        _show("proof", done[-1])
        if done[-1].flat != done[0].flat:
            break
        rate += finer if done[-1].flat else -finer
    return done


async def run(
    services: Services,
    ledger: Pool,
    rate: float,
    seconds: float,
    connections: int = CONNECTIONS,
    warm_s: float = WARM_S,
) -> Ran:
    """`rate` orders a second for so long, on a campaign and processes of its own; then all is forgotten again.

    Raises: SystemExit, if an order that was answered 202 is not in the ledger after DRAIN_S.
    """
    name = f"e2e-{time.time_ns():x}"
    sale = await services.open_sale(name)
    store_pid, ledger_pid = pids(services)
    async with gateway(services, all_cores()) as front, worker(services, "ledger", all_cores()) as drainer:
        # A first stretch that is not counted: connections, plans and files are made.
        with Crowd(front.port, connections) as crowd:
            open_loop(crowd, order_wire(name, WARM), rate, warm_s)
        await _drained(services, sale)
        pid_of = {"gateway": front.pid, "store": store_pid, "worker": drainer, "generator": os.getpid()}
        before = {who: own_cpu_s(pid) for who, pid in pid_of.items()} | {"postgres": family_cpu_s(ledger_pid)}
        wire = order_wire(name, MEASURED)
        with Crowd(front.port, connections) as crowd:
            opened = open_loop(crowd, lambda n: wire(FIRST + n), rate, seconds)
        await _drained(services, sale)
        after = {who: own_cpu_s(pid) for who, pid in pid_of.items()} | {"postgres": family_cpu_s(ledger_pid)}
    found = await ledger.fetch(_ROWS, name, f"{MEASURED}-%")
    await forget(services, [sale], ledger)
    rows = {key_number(key) - FIRST: at - opened.began_wall_s for key, at in found}
    if len(rows) != opened.statuses[b"202"]:
        raise SystemExit(
            f"end to end: {opened.statuses[b'202']:,} orders were accepted, {len(rows):,} are in the ledger"
        )
    used = {who: (after[who] - before[who]) / len(opened.due_s) * 1e6 for who in before}
    return judged(rate, seconds, opened, rows, used)


async def _drained(services: Services, sale: Sale) -> None:
    """The intake is empty, or DRAIN_S are over."""
    until_s = time.monotonic() + DRAIN_S
    while any(await services.store.exchange([("XLEN", sale.keys[0].intake)])):
        if time.monotonic() > until_s:
            return
        await asyncio.sleep(0.1)


def judged(rate: float, seconds: float, opened: Opened, rows: dict[int, float], cpu_us: dict[str, float]) -> Ran:
    """What the times say. `rows`: number of the order -> when its row was committed, seconds from the beginning."""
    committed_s = sorted(rows.values())
    lag = [bisect(opened.due_s, s) - bisect(committed_s, s) for s in range(1, int(seconds) + 1)]
    begins = int(min(SETTLE_S, seconds / 3))
    slope = slope_of(lag[begins:])
    errors = {status.decode(): n for status, n in opened.statuses.items() if status != b"202"}
    return Ran(
        rate,
        seconds,
        opened.latency_s,
        [at - opened.due_s[n] for n, at in rows.items()],
        opened.late_s,
        lag,
        slope,
        not errors and slope * (seconds - begins) <= GROWS_S * rate,
        errors,
        cpu_us,
    )


def slope_of(values: Sequence[float]) -> float:
    """The median slope of all pairs (Theil and Sen): one pause of the disk does not turn it. 0.0 of fewer than two."""
    slopes = [(values[b] - values[a]) / (b - a) for a, b in combinations(range(len(values)), 2)]
    return statistics.median(slopes) if slopes else 0.0


def percentiles_ms(values_s: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and the most, in ms."""
    ordered = sorted(values_s)
    last = len(ordered) - 1
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: ordered[min(last, int(len(ordered) * share))] * 1000 for name, share in shares.items()}


def _show(what: str, one: Ran) -> None:
    to_202, to_row = percentiles_ms(one.answered_s), percentiles_ms(one.row_s)
    said = "flat" if one.flat else f"NOT FLAT{f', errors {one.errors}' if one.errors else ''}"
    print(f"  {what:5} {one.rate:>6,.0f}/s for {one.seconds:g} s: {said}; lag grows by {one.slope:+,.1f} orders/s, "
          f"{one.lag[-1]:,} at the end, {max(one.lag):,} at most")  # fmt: skip
    for name, values in (("202", to_202), ("row", to_row)):
        print(f"        to {name}  " + ", ".join(f"{k} {v:,.1f}" for k, v in values.items()) + " ms")
    print("        CPU us/order: " + ", ".join(f"{who} {us:.1f}" for who, us in one.cpu_us.items())
          + f"; sent late p99 {percentiles_ms(one.late_s)['p99']:.1f} ms", flush=True)  # fmt: skip


def _figures(rounds: Sequence[Ran]) -> dict[str, Any]:
    to_202 = [percentiles_ms(r.answered_s) for r in rounds]
    to_row = [percentiles_ms(r.row_s) for r in rounds]
    return {
        "orders_per_s": spread([r.rate for r in rounds]),
        **{f"to_202_{k}_ms": spread([one[k] for one in to_202]) for k in to_202[0]},
        **{f"to_row_{k}_ms": spread([one[k] for one in to_row]) for k in to_row[0]},
        **{f"{who}_cpu_us": spread([r.cpu_us[who] for r in rounds]) for who in rounds[0].cpu_us},
        "lag_most_orders": spread([max(r.lag) for r in rounds]),
    }


def result(
    steps: Sequence[Ran], proofs: Sequence[Ran], proved: Ran, at_parts: dict[float, list[Ran]]
) -> dict[str, Any]:  # fmt: skip
    """The figures as they are kept, with their plots and a last line."""
    series = {
        f"{one.rate:,.0f}/s{'' if one.flat else ', not flat'}": [(n, float(lag)) for n, lag in enumerate(one.lag, 1)]
        for one in sorted(proofs, key=lambda p: p.rate)
    }
    plot.lines("end_to_end_lag", "202 to ledger row: orders on the way", "seconds", "orders", series)
    at = {f"{part:.0%}": _figures(rounds) for part, rounds in at_parts.items()}
    words = {"p50": "p50", "p99": "p99", "p999": "p99.9"}
    groups = {
        f"{part}, to {end}": {word: figures[f"to_{end}_{k}_ms"] for k, word in words.items()}
        for part, figures in at.items()
        for end in ("202", "row")
    }
    if groups:
        title = f"Latency at parts of {proved.rate:,.0f} orders/s, open loop, all on the same cores"
        plot.bars("end_to_end_latency", title, "ms", groups, more_is_better=False)
    runs = [{"rate": r.rate, "seconds": r.seconds, "flat": r.flat, "slope": r.slope, "lag": r.lag, "errors": r.errors}
            for r in (*steps, *proofs)]  # fmt: skip
    print(f"  flat for {proved.seconds:g} s: {proved.rate:,.0f} orders/s")
    return {"end_to_end": {"flat": _figures([proved]), **at}, "runs": runs}
