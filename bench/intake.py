"""Accepted orders/s over HTTP at level fsync: gateway and store share one core, the generator has the other."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from bench.environment import cpu_s, pin, shown, spread
from bench.services import CHANNEL_KEY, Services
from core.settings import Settings
from gateway.catalogue import Sale
from gateway.process import listen
from loadtest.campaign import orders_path, request_head
from loadtest.client import Pool
from loadtest.exchange import Answer, Target

CONNECTIONS = (64, 256)
ORDERS = 60_000  # a round
ROUNDS = 5


class Gateway(NamedTuple):
    """A gateway process on the first core, beside the store; the generator, this process, has the other."""

    pid: int
    store_pid: int
    target: Target

    def cpu_s(self) -> tuple[float, float]:
        """Of gateway and store."""
        return cpu_s(self.pid), cpu_s(self.store_pid)


@asynccontextmanager
async def gateway_beside_store(services: Services, settings: Settings) -> AsyncIterator[Gateway]:
    """It runs, and nothing of it afterwards."""
    store_pid = services.store_process.pid
    assert store_pid is not None
    pin(store_pid, [0])
    os.sched_setaffinity(0, [1])
    sock = listen("127.0.0.1", 0, reuse_port=False)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", "gateway", "--fd", str(sock.fileno()),
        env={**os.environ, **settings.to_env()}, pass_fds=[sock.fileno()],
    )  # fmt: skip
    os.sched_setaffinity(process.pid, [0])
    try:
        yield Gateway(process.pid, store_pid, Target.from_url(f"http://127.0.0.1:{sock.getsockname()[1]}", True))
    finally:
        process.terminate()
        await process.wait()
        sock.close()
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


async def measure(services: Services) -> dict[str, Any]:
    """Accepted/s and latency of a closed loop, and CPU per order of gateway and store, by connections."""
    found: dict[int, list[dict[str, float]]] = {c: [] for c in CONNECTIONS}
    async with gateway_beside_store(services, services.settings) as gateway:
        for n in range(ROUNDS):
            for connections in CONNECTIONS:
                name = f"http-{n}-{connections}"
                sale = await services.open_sale(name)
                head = request_head("POST", orders_path(name), gateway.target, CHANNEL_KEY)
                await closed_loop(gateway, connections, 2_000, partial(request_of, head, "w"))
                found[connections].append(
                    await closed_loop(gateway, connections, ORDERS, partial(request_of, head, "m"))
                )
                await drop(services, sale)
    print(f"\naccepted orders over HTTP, fsync, {ORDERS:,} orders a round, a new buyer and key each")
    for c, rounds in found.items():
        print(f"  {c:>3} connections  {shown([r['accepted_per_s'] for r in rounds], 'accepted/s')}")
        print(f"      p50  {shown([r['p50_ms'] for r in rounds], 'ms', 1)}")
        print(f"      p99  {shown([r['p99_ms'] for r in rounds], 'ms', 1)}")
        print(
            f"      CPU: gateway {shown([r['gateway_us'] for r in rounds], 'us/order', 1)}, "
            f"store {shown([r['store_us'] for r in rounds], 'us/order', 1)}"
        )
    return {"intake": {str(c): {k: spread([r[k] for r in rounds]) for k in rounds[0]} for c, rounds in found.items()}}


async def drop(services: Services, sale: Sale) -> None:
    """Its orders are gone from the store: the next campaign finds it as empty."""
    await services.store.exchange([("DEL", sale.keys[0].intake, sale.keys[0].requests, sale.keys[0].holds)])


def body_of(mark: str, n: int) -> bytes:
    """The n-th order of a series: another buyer, address and device each."""
    return (
        f'{{"buyer_id":"{mark}{n:08d}","items":[{{"sku":"phone-red","quantity":1}}],'
        f'"client_ip":"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}","device_id":"{mark}-device-{n:08d}"}}'
    ).encode()


def key_of(mark: str, n: int) -> str:
    """Its request key."""
    return f"{mark}-{n:08d}"


def request_of(head: bytes, mark: str, n: int) -> bytes:
    """The n-th request, whole, behind its request line and what makes its caller known."""
    body = body_of(mark, n)
    return head + b"Idempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (key_of(mark, n).encode(), len(body), body)


async def closed_loop(
    gateway: Gateway, connections: int, orders: int, wire: Callable[[int], bytes]
) -> dict[str, float]:  # fmt: skip
    """Each connection has its next request as soon as it has an answer. All must be accepted."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    sent_s: dict[int, float] = {}
    took_s: list[float] = []
    accepted = 0
    following = 0

    def on_done(ticket: int, answer: Answer) -> None:
        nonlocal accepted, following
        took_s.append(time.perf_counter() - sent_s.pop(ticket))
        accepted += answer.status == 202
        if following < orders:
            submit()
        elif len(took_s) == orders and not done.done():
            done.set_result(None)

    def submit() -> None:
        nonlocal following
        n = following
        following += 1
        request = wire(n)
        sent_s[n] = time.perf_counter()
        pool.submit(n, request)

    pool = Pool(gateway.target, connections, 30.0, on_done)
    await pool.warm()
    before, began_s = gateway.cpu_s(), time.perf_counter()
    for _ in range(min(connections, orders)):
        submit()
    await asyncio.wait_for(done, 120)
    elapsed_s, after = time.perf_counter() - began_s, gateway.cpu_s()
    await pool.close()
    assert accepted == orders, f"{accepted} of {orders} accepted"
    took_s.sort()
    return {
        "accepted_per_s": orders / elapsed_s,
        "p50_ms": took_s[orders // 2] * 1000,
        "p99_ms": took_s[orders * 99 // 100] * 1000,
        "gateway_us": (after[0] - before[0]) / orders * 1e6,
        "store_us": (after[1] - before[1]) / orders * 1e6,
    }
