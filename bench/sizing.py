"""Is the advice of `rushgate tune` true? Asked during a warm-up, followed, then the spike it was asked about is sent.

The ledger is made far away, and a transaction small: a ledger worker mostly waits for answers, so that more of them
help even on a machine of two cores. `tune` knows nothing of it but what it measures; its probe adds a worker and
removes it. The spike comes through the gateway, on top of a rate that goes on. Cleared is when the intake holds no more
than it does at that rate alone.
"""

import asyncio
import json
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from bench import plot
from bench.drain import forget
from bench.environment import shown, spread
from bench.generator import Crowd, Opened, open_plan, order_wire, planned
from bench.services import Services
from core.ledger.pool import Pool, open_pool
from core.settings import Settings
from gateway.catalogue import Sale
from lua.scripts import Scripts
from ops.stack import Stack, running

ROUNDS = 3
LATE_MS = 60.0  # of each answer of the ledger
DRAIN_ORDERS = 100  # in a transaction: with LATE_MS some 1,600 orders/s a worker
RESERVE_BATCH = 32  # orders in an entry at most, so that a transaction is as large in the warm-up as in the spike
WARM_RATE = 5_000.0  # orders/s: more than two workers drain, as the probe wants work for both
WARM_S = 24.0
TUNE_AFTER_S = 3.0
BASE_RATE = 500.0  # goes on during the spike
SPIKE = 150_000
ARRIVE_RATE = 9_000.0
CLEAR_IN_S = 75.0  # what two cores can do, beside the generator
CONNECTIONS = 128
SAMPLE_S = 0.1
LONGEST_S = 240.0  # wait for a spike to be cleared
WITHIN = 0.25  # of the time said


class Asked(NamedTuple):
    """What `tune` said in the warm-up."""

    processes: dict[str, int]
    clear_s: float
    said: dict[str, Any]


class Cleared(NamedTuple):
    """What became of the spike."""

    orders: int
    clear_s: float
    samples: list[tuple[float, float]]  # seconds, orders that wait


async def measure(
    services: Services, rounds: int = ROUNDS, spike: int = SPIKE, clear_in_s: float = CLEAR_IN_S,
    warm_s: float = WARM_S,
) -> dict[str, Any]:  # fmt: skip
    """The time said and the time it took. Raises SystemExit if they differ by more than WITHIN, in the median."""
    print(f"\nsizing: the ledger answers {LATE_MS:g} ms late, {DRAIN_ORDERS} orders a transaction; `tune` is asked at "
          f"{WARM_RATE:,.0f} orders/s\n  how to clear {spike:,} orders in {clear_in_s:g} s on top of "
          f"{BASE_RATE:,.0f} orders/s")  # fmt: skip
    asked: list[Asked] = []
    found: list[Cleared] = []
    ledger = await open_pool(services.settings.ledger_dsn, "bench", 120.0, 1)
    try:
        for _ in range(rounds):
            one, cleared = await _round(services, ledger, spike, clear_in_s, warm_s)
            asked.append(one)
            found.append(cleared)
            print(f"  {one.processes['ledger']} ledger workers: said {one.clear_s:.1f} s, took {cleared.clear_s:.1f} s "
                  f"({cleared.clear_s / one.clear_s - 1:+.0%})", flush=True)  # fmt: skip
    finally:
        ledger.terminate()
    return _result(asked, found, spike)


async def _round(
    services: Services, ledger: Pool, spike: int, clear_in_s: float, warm_s: float
) -> tuple[Asked, Cleared]:  # fmt: skip
    async with _far_stack(services) as (stack, folder):
        port = urlsplit(stack.gateway).port or 0
        sale = await services.open_sale(f"sizing-{time.time_ns():x}")
        warming = asyncio.create_task(_send(port, sale, "aaaaaaaa", planned(WARM_RATE, warm_s, 1)))
        await asyncio.sleep(TUNE_AFTER_S)
        asked = await _tune(folder, spike, clear_in_s)
        warmed = await warming
        await _empty(services, sale, 0.0, time.perf_counter())
        counts = [f"{kind}={n}" for kind, n in asked.processes.items()]
        await _command("scale", *counts, "--data-dir", str(folder))
        cleared = await _spike(services, port, sale, spike, asked.clear_s)
    written = await ledger.fetchval("SELECT count(*) FROM orders WHERE campaign = $1", sale.campaign)
    taken = warmed.statuses[b"202"] + cleared.orders
    if written != taken:
        raise SystemExit(f"sizing: {taken:,} orders were accepted, {written:,} are in the ledger")
    await forget(services, [sale], ledger)
    return asked, cleared


async def _spike(services: Services, port: int, sale: Sale, spike: int, expected_s: float) -> Cleared:
    """The spike on top of the base rate; when the intake was as empty as at that rate alone."""
    burst = planned(ARRIVE_RATE, spike / ARRIVE_RATE, 2)
    base = planned(BASE_RATE, expected_s * (1 + WITHIN) + 5.0, 3)
    began_s = time.perf_counter()
    sending = asyncio.create_task(_send(port, sale, "bbbbbbbb", array("d", sorted([*burst, *base]))))
    await asyncio.sleep(burst[-1])
    clear_s, samples = await _empty(services, sale, BASE_RATE, began_s)
    sent = await sending
    await _empty(services, sale, 0.0, began_s)
    refused = {status.decode(): n for status, n in sent.statuses.items() if status != b"202"}
    if refused:
        raise SystemExit(f"sizing: not all orders of the spike were accepted: {refused}")
    return Cleared(sent.statuses[b"202"], clear_s, samples)


async def _send(port: int, sale: Sale, mark: str, due_s: "array[float]") -> Opened:
    """All sent at their times and answered, by a thread of its own: the event loop goes on."""

    def send() -> Opened:
        wire = order_wire(sale.campaign, mark)
        first = 10_000_000 if mark == "bbbbbbbb" else 0  # other buyers than those of the warm-up
        with Crowd(port, CONNECTIONS) as crowd:
            return open_plan(crowd, lambda n: wire(first + n), due_s)

    return await asyncio.to_thread(send)


async def _empty(
    services: Services, sale: Sale, rate: float, began_s: float
) -> tuple[float, list[tuple[float, float]]]:  # fmt: skip
    """Waits until no more waits than half a second of `rate` brings; how long after `began_s` that was."""
    scripts, samples = Scripts(services.store), list[tuple[float, float]]()
    while True:
        [waits] = (await scripts.backlog(sale.shards)).values()
        at_s = time.perf_counter() - began_s
        samples.append((at_s, float(waits.orders)))
        if waits.orders <= rate / 2:
            return at_s, samples
        if at_s > LONGEST_S:
            raise SystemExit(f"sizing: {waits.orders:,} orders still wait after {LONGEST_S:g} s")
        await asyncio.sleep(SAMPLE_S)


async def _tune(folder: Path, spike: int, clear_in_s: float) -> Asked:
    wish = "--rate", f"{BASE_RATE:g}", "--spike", str(spike), "--clear-in", f"{clear_in_s:g}"
    said = json.loads(await _command("tune", *wish, "--probe", "--over", "3", "--json", "--data-dir", str(folder)))
    if not said["fits"]:
        raise SystemExit(f"sizing: tune says that it cannot be done: {said['bounds'][0]}")
    return Asked(said["processes"], said["clear_s"], said)


async def _command(*args: str) -> bytes:
    """What a command of rushgate prints. Raises SystemExit if it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", *args, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"sizing: rushgate {args[0]} ended with {process.returncode}: {out.decode()}")
    return out


@asynccontextmanager
async def _far_stack(services: Services) -> AsyncIterator[tuple[Stack, Path]]:
    """A stack with one worker of each kind on the services, and its folder; the ledger is LATE_MS away from it."""
    parts = urlsplit(services.settings.ledger_dsn)
    where = parse_qs(parts.query)
    target = f"{where['host'][0]}/.s.PGSQL.{where['port'][0]}"
    link = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.late_link", target, f"{LATE_MS:g}", stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert link.stdout is not None
    assert link.stdin is not None
    try:
        port = int(await link.stdout.readline())
        dsn = f"postgresql://{parts.username or 'postgres'}@127.0.0.1:{port}{parts.path}?sslmode=disable"
        with tempfile.TemporaryDirectory(prefix="rushgate-sizing-") as folder:
            settings: Settings = services.settings.with_values(
                ledger_dsn=dsn, drain_orders=DRAIN_ORDERS, reserve_batch=RESERVE_BATCH, data_dir=folder, port=0,
                console="off",
            )  # fmt: skip
            async with running(settings) as stack:
                yield stack, Path(folder)
    finally:
        link.stdin.close()
        await link.wait()


def _result(asked: list[Asked], found: list[Cleared], spike: int) -> dict[str, Any]:
    ratios = [c.clear_s / a.clear_s for a, c in zip(asked, found, strict=True)]
    gains = [a.said["probe"]["share"] * 100 for a in asked]
    figures = {
        "said_s": [a.clear_s for a in asked],
        "took_s": [c.clear_s for c in found],
        "took_to_said": ratios,
        "ledger_workers": [float(a.processes["ledger"]) for a in asked],
        "one_more_percent": gains,
    }
    print(f"  said   {shown(figures['said_s'], 's', 1)}")
    print(f"  took   {shown(figures['took_s'], 's', 1)}, {shown(ratios, 'times as long', 2)}")
    print(f"  advised {shown(figures['ledger_workers'], 'ledger workers')}; the second one brings {shown(gains, '%')}")
    series = {f"round {n}": one.samples for n, one in enumerate(found, 1)}
    title = f"The intake after {spike:,} orders on top of {BASE_RATE:,.0f}/s, as many ledger workers as advised"
    plot.lines("sizing", title, "seconds after the first order", "orders that wait", series)
    median = spread(ratios)["median"]
    if abs(median - 1) > WITHIN:
        raise SystemExit(f"sizing: it took {median:.2f} times as long as said")
    return {
        "sizing": {name: spread(values) for name, values in figures.items()},
        "advice": asked[-1].said,
        "settings": {
            "late_ms": LATE_MS, "drain_orders": DRAIN_ORDERS, "reserve_batch": RESERVE_BATCH, "spike": spike,
            "warm_rate": WARM_RATE, "base_rate": BASE_RATE, "arrive_rate": ARRIVE_RATE,
        },
    }  # fmt: skip
