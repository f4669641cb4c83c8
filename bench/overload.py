"""10 times what can be served, open loop, for 30 s: goodput, refusals, latency of the accepted, memory, recovery.

Gateway and store share core 0, the generator has core 1. No generator on one core reaches 10 times of what a gateway on
one core serves, so the store is behind a link of BYTES_S. That is the case of many gateways before one store: the
gateway has CPU to refuse with, the store is what is short.
"""

import asyncio
import contextlib
import gc
import os
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.environment import pin, spread
from bench.services import CHANNEL_KEY, Services
from gateway.process import listen
from loadtest.campaign import orders_path, request_head
from loadtest.client import Pool
from loadtest.exchange import Answer, Target

TIMES = 10
OVERLOAD_S = 30.0
CLOSED = 256  # connections of the closed loop that finds the best goodput
CLOSED_S = 6.0
ROUNDS = 3
CONNECTIONS = 8_000  # of the open loop: a request that finds all of them busy is counted as unsent
PROBES_S = 100  # a second, before and after
NORMAL_S = 5.0
AFTER_S = 10.0
WINDOW_S = 0.5  # the p99 of the probes is judged in windows
BYTES_S = 400_000  # of the link to the store
TIMEOUT_S = 10.0
NAP_S = 0.001
RSS_EVERY_S = 0.25

GOODPUT_LEAST = 0.8  # of the best
REFUSED_P99_MS = 100
ACCEPTED_P99_MS = 1_500  # docs/guarantees.md, G14
RSS_MORE_MB = 256
RECOVERED_S = 5.0
UNSENT_MOST = 0.01  # beyond it the loop was not open
NORMAL_TIMES, NORMAL_MS = 3, 50  # normal again: p99 within so many times of what it was, and so much more


class Found(msgspec.Struct):
    """What a stretch of load was answered. Latencies in seconds, from the due time."""

    seconds: float
    offered: int = 0
    unsent: int = 0
    accepted_s: "array[float]" = msgspec.field(default_factory=lambda: array("d"))
    refused_s: "array[float]" = msgspec.field(default_factory=lambda: array("d"))
    by_second: Counter[int] = msgspec.field(default_factory=Counter)  # 202s
    windows: dict[int, list[float]] = {}  # latencies of definite answers, by the window of the due time
    others: Counter[str] = msgspec.field(default_factory=Counter)

    @property
    def goodput(self) -> float:
        """202s a second, of the whole stretch; what was answered after its end is not counted."""
        return sum(n for s, n in self.by_second.items() if s < self.seconds) / self.seconds


def percentile_ms(values: "array[float] | list[float]", share: float) -> float:
    """Milliseconds; 0.0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000 if values else 0.0


def recovered_s(windows: dict[int, list[float]], seconds: float, limit_ms: float) -> float:
    """When the p99 of the probes was within `limit_ms` for good: the end of the last window that was not, seconds.

    A window without any answer is not normal.
    """
    last = 0
    for n in range(int(seconds / WINDOW_S)):
        taken = windows.get(n)
        if not taken or percentile_ms(taken, 0.99) > limit_ms:
            last = n + 1
    return last * WINDOW_S


class Generator:
    """Orders of new buyers with new keys, from one pool of connections."""

    def __init__(self, target: Target, campaign: str, mark: str, connections: int) -> None:
        self._head = request_head("POST", orders_path(campaign), target, CHANNEL_KEY)
        self._mark = mark
        self._next = 0
        self._most = connections
        self._found = Found(1.0)
        self._began_s = 0.0
        self._again = False  # a closed loop
        self._pool: Pool[float] = Pool(target, connections, TIMEOUT_S, self._done)

    async def warm(self) -> None:
        """All connections are open. Raises SystemExit if they cannot be had."""
        opened = await self._pool.warm()
        if opened < self._most:
            raise SystemExit(f"overload: {opened} of {self._most} connections could be opened: raise `ulimit -n`")

    async def closed(self, seconds: float) -> Found:
        """Each connection has its next request as soon as it has an answer."""
        self._begin(seconds)
        self._again = True
        for _ in range(self._most):
            self._submit(time.monotonic())
        await asyncio.sleep(seconds)
        self._again = False
        await self._quiet()
        return self._found

    async def open(self, rate: float, seconds: float) -> Found:
        """`rate` a second, each at its time, whatever was answered. What is under way at the end is left under way."""
        self._begin(seconds)
        total, offered = int(rate * seconds), 0
        while offered < total:
            due = min(total, int((time.monotonic() - self._began_s) * rate) + 1)
            for n in range(offered, due):
                if self._pool.in_flight < self._most:
                    self._submit(self._began_s + n / rate)
                else:
                    self._found.unsent += 1
            offered = due
            await asyncio.sleep(NAP_S)
        self._found.offered = total
        return self._found

    async def close(self) -> None:
        """Every request has an answer or its time was over; no connection is open."""
        await self._quiet()
        await self._pool.close()

    def _begin(self, seconds: float) -> None:
        self._found, self._began_s = Found(seconds), time.monotonic()

    async def _quiet(self) -> None:
        while self._pool.in_flight or self._pool.waiting:  # noqa: ASYNC110  each ends by itself within TIMEOUT_S
            await asyncio.sleep(0.01)

    def _submit(self, due_s: float) -> None:
        n = self._next
        self._next += 1
        body = (
            f'{{"buyer_id":"{self._mark}{n:08d}","items":[{{"sku":"phone-red","quantity":1}}],'
            f'"client_ip":"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}","device_id":"{self._mark}-device-{n:08d}"}}'
        ).encode()
        key = b"%b-%08d" % (self._mark.encode(), n)
        self._pool.submit(
            due_s, self._head + b"Idempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (key, len(body), body)
        )

    def _done(self, due_s: float, answer: Answer) -> None:
        found, took_s = self._found, answer.answered_s - due_s
        if answer.status == 202:
            found.accepted_s.append(took_s)
            found.by_second[int(answer.answered_s - self._began_s)] += 1
            found.windows.setdefault(int((due_s - self._began_s) / WINDOW_S), []).append(took_s)
        elif answer.status == 503 and b'"overloaded"' in answer.body:
            found.refused_s.append(took_s)
        else:
            found.others[str(answer.status or answer.failure)] += 1
        if self._again:
            self._submit(time.monotonic())


async def measure(services: Services) -> dict[str, Any]:
    """The figures, and what of them is out of its bounds."""
    store_pid = services.store_process.pid
    assert store_pid is not None
    pin(store_pid, [0])
    os.sched_setaffinity(0, [1])
    sock = listen("127.0.0.1", 0, reuse_port=False)
    target = Target.from_url(f"http://127.0.0.1:{sock.getsockname()[1]}", True)
    gc.collect()
    gc.disable()  # a collection would stop the clock of every request at once
    try:
        await services.open_sale("overload")
        async with _slowed(services.settings.store_url) as store_url, _gateway(services, store_url, sock) as pid:
            result = await _course(target, pid)
    finally:
        gc.enable()
        sock.close()
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    show(result)
    return {"overload": result}


@contextlib.asynccontextmanager
async def _gateway(services: Services, store_url: str, sock: socket.socket) -> AsyncIterator[int]:
    """A gateway's process id, on core 0."""
    env = {**os.environ, **services.settings.with_values(store_url=store_url).to_env()}
    args = ["-m", "ops.cli", "gateway", "--fd", str(sock.fileno())]
    process = await asyncio.create_subprocess_exec(sys.executable, *args, env=env, pass_fds=[sock.fileno()])
    os.sched_setaffinity(process.pid, [0])
    try:
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def _slowed(url: str) -> AsyncIterator[str]:
    """The URL of the same store behind a link of BYTES_S."""
    parts = urlsplit(url)
    link = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.slow_link", str(parts.hostname), str(parts.port), str(BYTES_S),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert link.stdin is not None
    assert link.stdout is not None
    try:
        port = int(await link.stdout.readline())
        yield f"redis://:{parts.password}@127.0.0.1:{port}{parts.path}"
    finally:
        link.stdin.close()
        await link.wait()


async def _course(target: Target, pid: int) -> dict[str, Any]:
    best = []
    for n in range(ROUNDS):
        crowd = Generator(target, "overload", f"c{n}", CLOSED)
        await crowd.warm()
        best.append((await crowd.closed(CLOSED_S)).goodput)
        await crowd.close()
    few = Generator(target, "overload", "n", CLOSED)
    normal = await few.open(PROBES_S, NORMAL_S)
    await few.close()
    normal_ms = percentile_ms(normal.accepted_s, 0.99)
    many = Generator(target, "overload", "o", CONNECTIONS)
    await many.warm()
    rate = TIMES * max(best)
    memory = [rss_mb(pid)]
    watch = asyncio.create_task(_watched(pid, memory))
    overload = await many.open(rate, OVERLOAD_S)
    after = Generator(target, "overload", "a", CLOSED)
    probes = await after.open(PROBES_S, AFTER_S)
    await after.close()  # first: closing thousands of connections takes the gateway a moment
    await many.close()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    result = {
        "best_per_s": spread(best),
        "offered_per_s": rate,
        "offered": overload.offered,
        "unsent": overload.unsent,
        "goodput_per_s": overload.goodput,
        "goodput_of_best": overload.goodput / max(best),
        "least_second": min((overload.by_second[s] for s in range(int(OVERLOAD_S))), default=0),
        "accepted_p50_ms": percentile_ms(overload.accepted_s, 0.5),
        "accepted_p99_ms": percentile_ms(overload.accepted_s, 0.99),
        "accepted_max_ms": percentile_ms(overload.accepted_s, 1.0),
        "refused": len(overload.refused_s),
        "refused_p50_ms": percentile_ms(overload.refused_s, 0.5),
        "refused_p99_ms": percentile_ms(overload.refused_s, 0.99),
        "refused_max_ms": percentile_ms(overload.refused_s, 1.0),
        "others": dict(overload.others),
        "rss_before_mb": memory[0],
        "rss_most_mb": max(memory),
        "normal_p99_ms": normal_ms,
        "after_p99_ms": percentile_ms(probes.accepted_s, 0.99),
        "recovered_s": recovered_s(probes.windows, AFTER_S, NORMAL_TIMES * normal_ms + NORMAL_MS),
    }
    return {**result, "wrong": judged(result)}


def rss_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def _watched(pid: int, memory: list[float]) -> None:
    while True:
        await asyncio.sleep(RSS_EVERY_S)
        memory.append(rss_mb(pid))


def judged(result: dict[str, Any]) -> list[str]:
    """What is out of its bounds, in words."""
    bounds = (
        ("goodput, of the best", 1 - result["goodput_of_best"], 1 - GOODPUT_LEAST),
        ("refused p99, ms", result["refused_p99_ms"], REFUSED_P99_MS),
        ("accepted p99, ms", result["accepted_p99_ms"], ACCEPTED_P99_MS),
        ("memory more than before, MB", result["rss_most_mb"] - result["rss_before_mb"], RSS_MORE_MB),
        ("recovered after, s", result["recovered_s"], RECOVERED_S),
        ("unsent, share", result["unsent"] / max(1, result["offered"]), UNSENT_MOST),
        ("answers that are neither 202 nor overloaded", sum(result["others"].values()), 0),
    )
    return [f"{what}: {value:,.2f}, the bound is {bound:,.2f}" for what, value, bound in bounds if value > bound]


def show(result: dict[str, Any]) -> None:
    """The figures as lines."""
    r = result
    print(f"\noverload: {TIMES} times the best of a slowed store, open loop, {OVERLOAD_S:g} s")
    best = r["best_per_s"]
    print(f"  best, closed loop, {CLOSED} connections: {best['median']:,.0f} 202/s "
          f"({best['min']:,.0f} to {best['max']:,.0f}, {best['rounds']} rounds)")  # fmt: skip
    print(f"  offered {r['offered']:,} ({r['offered_per_s']:,.0f}/s), {r['unsent']:,} found no connection")
    print(f"  goodput {r['goodput_per_s']:,.0f} 202/s = {r['goodput_of_best']:.0%} of the best; "
          f"least second {r['least_second']:,}")  # fmt: skip
    for kind in ("accepted", "refused"):
        print(f"  {kind}: p50 {r[kind + '_p50_ms']:,.0f} ms, p99 {r[kind + '_p99_ms']:,.0f} ms, "
              f"max {r[kind + '_max_ms']:,.0f} ms")  # fmt: skip
    print(f"  {r['refused']:,} refused with 503 overloaded; other answers: {r['others'] or 'none'}")
    print(f"  memory of the gateway: {r['rss_before_mb']:,.0f} MB before, {r['rss_most_mb']:,.0f} MB at most")
    print(
        f"  p99 of {PROBES_S} a second: {r['normal_p99_ms']:,.0f} ms before; normal again {r['recovered_s']:g} s after"
    )
    print("  within its bounds" if not r["wrong"] else "  OUT OF BOUNDS: " + "; ".join(r["wrong"]))
