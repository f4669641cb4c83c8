"""Rushgate and its peers in one run: accepted orders/s on one core that gateway and store share, wrk on the other.

Rounds are interleaved and their order is turned, and a ratio is taken within a round, so that drift hits all alike.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import plot, wrk
from bench.environment import pin, spread
from bench.peers import install
from bench.peers.contestants import Contestant, ask, echo, fastapi, fastify, nginx, rushgate
from bench.processes import family_cpu_s, own_cpu_s, pids
from bench.services import CHANNEL_KEY, Services

LABELS = {
    "rushgate": "Rushgate",
    "nginx": "nginx + Lua",
    "fastify": "Fastify + ioredis",
    "fastapi": "FastAPI + redis-py",
    "echo": "bare uvicorn echo, no store",
}
CONNECTIONS = (64, 256)
ROUNDS = 7
SECONDS = 4.0
WARM_S = 1.0
FIRST_WARM_S = 5.0  # once, before the first round: a just-in-time compiler (V8) needs some seconds of load
SERVER_CORE, LOAD_CORE = 0, 1
RATE = "accepted_per_s"
SAMPLE = '{"buyer_id":"b00000000000","items":[{"sku":"phone-red","quantity":1}],"client_ip":"10.0.0.1","device_id":"d"}'


class Untrue(Exception):
    """A contestant's stream does not hold the orders that it told of."""


class Run(NamedTuple):
    """One contestant at one number of connections in one round; the warm-up counts in `told` alone."""

    told: int  # answers, those of the warm-up included
    per_s: float
    p50_ms: float
    p99_ms: float
    gateway_us: float  # CPU per answer
    store_us: float  # the same of the store
    core_share: float  # of the servers' core that gateway and store had; far below 1: somebody else ran there


async def measure(
    services: Services,
    rounds: int = ROUNDS,
    connections: Sequence[int] = CONNECTIONS,
    seconds: float = SECONDS,
    names: Sequence[str] = tuple(LABELS),
) -> dict[str, Any]:
    """Accepted/s, latency and CPU per order of each contestant, and Rushgate's ratio to each of them.

    Raises:
        Missing: a peer, or wrk, is not installed.
        LoadInvalid: an answer was not a 202, or none.
        Untrue: a stream does not hold exactly the orders that were accepted.
    """
    install.check()
    found: dict[int, dict[str, list[Run]]] = {c: {name: [] for name in names} for c in connections}
    async with machine(services), contextlib.AsyncExitStack() as stack:
        contestants = await _all(stack, services, names)
        for contestant in contestants:
            await accepted(contestant, f"peers-{contestant.name}-warm", max(connections), FIRST_WARM_S)
        for n in range(rounds):
            turn = n % len(contestants)
            for contestant in contestants[turn:] + contestants[:turn]:
                for c in connections:
                    run = await accepted(contestant, f"peers-{contestant.name}-{n}-{c}", c, seconds)
                    found[c][contestant.name].append(run)
                    print(f"  round {n + 1}  {contestant.name:9} {c:>3}  {run.per_s:>9,.0f}/s", flush=True)
            await rewrite(contestants[0])
    facts = {**install.versions(), "load": f"{rounds} rounds, {WARM_S:g} s of warm-up and {seconds:g} s a run"}
    for name, words in facts.items():
        print(f"{name:9} {words}")
    tables = {str(c): table(runs, RATE) for c, runs in found.items()}
    print(f"\naccepted orders/s, gateway and store on one core, fsync, a new buyer and key each, {seconds:g} s a run")
    show(tables, RATE)
    draw("peers", "Accepted orders, gateway and store on one core", RATE, tables)
    return {"peers": tables, "settings": facts}


async def accepted(contestant: Contestant, campaign: str, connections: int, seconds: float) -> Run:
    """A warm-up and a run on a campaign of its own; every answer is a 202, and every 202 is in the stream.

    Raises: LoadInvalid, Untrue; the message names contestant and campaign.
    """
    await contestant.open(campaign)
    try:
        run = await loaded(contestant, campaign, connections, seconds, 202)
        taken = await contestant.taken(campaign)
        if taken is not None and taken != run.told:
            raise Untrue(f"{campaign}: {run.told:,} orders were accepted, {taken:,} are in the stream")
    finally:
        await contestant.drop(campaign)
    return run


async def loaded(contestant: Contestant, campaign: str, connections: int, seconds: float, status: int) -> Run:
    """A warm-up, then the run that is measured. Raises LoadInvalid: an answer is missing, or has another status."""
    store_pid, _ = pids(contestant.services)
    try:
        warm = await wrk.load(contestant.url, campaign, CHANNEL_KEY, connections, WARM_S, LOAD_CORE)
        before = family_cpu_s(contestant.pid), own_cpu_s(store_pid)
        load = await wrk.load(contestant.url, campaign, CHANNEL_KEY, connections, seconds, LOAD_CORE)
        after = family_cpu_s(contestant.pid), own_cpu_s(store_pid)
        warm.only(status)
        load.only(status)
    except wrk.LoadInvalid as exc:
        raise wrk.LoadInvalid(f"{campaign}: {exc}") from exc
    gateway_us, store_us = ((b - a) / load.total * 1e6 for a, b in zip(before, after, strict=True))
    share = (gateway_us + store_us) * load.per_s / 1e6
    return Run(warm.total + load.total, load.per_s, load.p50_ms, load.p99_ms, gateway_us, store_us, share)


@contextlib.asynccontextmanager
async def machine(services: Services) -> AsyncIterator[None]:
    """The store on the servers' core, this process on the load's; the store rewrites its file only when told.

    A rewrite is a second process on the servers' core: it would hit whoever runs when the file happens to be large.
    """
    store_pid, _ = pids(services)
    everywhere = os.sched_getaffinity(0)
    pin(store_pid, [SERVER_CORE])
    os.sched_setaffinity(0, [LOAD_CORE])
    [(_, percentage)] = await services.store.exchange([("CONFIG", "GET", "auto-aof-rewrite-percentage")])
    await services.store.exchange([("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)])
    try:
        yield
    finally:
        await services.store.exchange([("CONFIG", "SET", "auto-aof-rewrite-percentage", percentage)])
        os.sched_setaffinity(0, everywhere)


async def rewrite(contestant: Contestant) -> None:
    """The store's append-only file holds only what the store holds."""
    await contestant.tell(("BGREWRITEAOF",))
    while True:
        [info] = await contestant.tell(("INFO", "persistence"))
        if b"aof_rewrite_in_progress:0" in info and b"aof_rewrite_scheduled:0" in info:
            return
        await asyncio.sleep(0.1)


async def _all(stack: contextlib.AsyncExitStack, services: Services, names: Sequence[str]) -> list[Contestant]:
    """The contestants, running and ready, all on the servers' core. The echo says what Rushgate says to an order."""
    ours = await stack.enter_async_context(rushgate(services, SERVER_CORE))
    await ours.open("sample")
    sample = await ask(ours.port, "sample", "sample-key", SAMPLE)
    await ours.drop("sample")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rushgate-nginx-")))
    starts = {
        "nginx": lambda: nginx(services, SERVER_CORE, folder),
        "fastify": lambda: fastify(services, SERVER_CORE),
        "fastapi": lambda: fastapi(services, SERVER_CORE),
        "echo": lambda: echo(services, SERVER_CORE, sample),
    }
    return [ours, *[await stack.enter_async_context(starts[name]()) for name in names if name != "rushgate"]]


def table(runs: Mapping[str, Sequence[Run]], rate: str) -> dict[str, dict[str, dict[str, float]]]:
    """Contestant -> figure -> spread; `ratio` is Rushgate's rate to this contestant's, taken round by round."""
    ours = runs["rushgate"]
    return {
        name: {
            rate: spread([r.per_s for r in theirs]),
            "ratio": spread([a.per_s / b.per_s for a, b in zip(ours, theirs, strict=True)]),
            "p50_ms": spread([r.p50_ms for r in theirs]),
            "p99_ms": spread([r.p99_ms for r in theirs]),
            "gateway_us": spread([r.gateway_us for r in theirs]),
            "store_us": spread([r.store_us for r in theirs]),
            "core_share": spread([r.core_share for r in theirs]),
        }
        for name, theirs in runs.items()
    }


Table = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]  # connections -> contestant -> figure -> spread


def show(found: Table, rate: str) -> None:
    """The table as lines of a terminal."""
    for connections, rows in found.items():
        print(f"  {connections} connections")
        for name, row in rows.items():
            speed, ratio = row[rate], row["ratio"]
            print(
                f"    {LABELS[name]:28} {speed['median']:>8,.0f}/s ({speed['min']:,.0f} to {speed['max']:,.0f})   "
                f"Rushgate is {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})   "
                f"p50 {row['p50_ms']['median']:.1f} ms, p99 {row['p99_ms']['median']:.1f} ms   "
                f"CPU {row['gateway_us']['median']:.1f} + {row['store_us']['median']:.1f} us, "
                f"{row['core_share']['median']:.0%} of the core"
            )


def markdown(found: Table, rate: str = "accepted_per_s") -> list[str]:
    """The same as the lines of a Markdown table, a table for each number of connections."""
    lines: list[str] = []
    for connections, rows in found.items():
        lines += [
            "",
            f"| {connections} connections | {rate.removesuffix('_per_s').replace('_', ' ')}/s | Rushgate is "
            "| p50 | p99 | CPU per order: gateway | store |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            speed, ratio = row[rate], row["ratio"]
            factor = "" if name == "rushgate" else f"{ratio['median']:.2f}x ({ratio['min']:.2f}–{ratio['max']:.2f})"
            store = "none" if name == "echo" else f"{row['store_us']['median']:.1f} us"
            lines.append(
                f"| {LABELS[name]} | {speed['median']:,.0f} ({speed['min']:,.0f}–{speed['max']:,.0f}) | {factor} "
                f"| {row['p50_ms']['median']:.1f} ms | {row['p99_ms']['median']:.1f} ms "
                f"| {row['gateway_us']['median']:.1f} us | {store} |"
            )
    return lines[1:]


def draw(name: str, title: str, rate: str, found: Table) -> None:
    """Bars of the rates in bench/results/NAME.svg."""
    groups = {f"{c} connections": {LABELS[n]: row[rate] for n, row in rows.items()} for c, rows in found.items()}
    plot.bars(name, title, rate.replace("_per_s", "/s").replace("_", " "), groups)
