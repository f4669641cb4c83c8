"""Accepted orders/s over HTTP at level fsync: gateway and store share one core, the generator has the other."""

import asyncio
import os
import sys
import time
from typing import Any

from bench.environment import cpu_s, pin, shown, spread
from bench.services import CHANNEL_KEY, Services
from gateway.process import listen
from loadtest.campaign import request_head
from loadtest.client import Pool
from loadtest.exchange import Answer, Target

CONNECTIONS = (64, 256)
ORDERS = 60_000  # a round
ROUNDS = 5


async def measure(services: Services) -> dict[str, Any]:
    """Accepted/s and latency of a closed loop, and CPU per order of gateway and store, by connections."""
    store_pid = services.store_process.pid
    assert store_pid is not None
    pin(store_pid, [0])
    os.sched_setaffinity(0, [1])
    sock = listen("127.0.0.1", 0, reuse_port=False)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", "gateway", "--fd", str(sock.fileno()),
        env={**os.environ, **services.settings.to_env()}, pass_fds=[sock.fileno()],
    )  # fmt: skip
    os.sched_setaffinity(process.pid, [0])
    target = Target.from_url(f"http://127.0.0.1:{sock.getsockname()[1]}", True)
    found: dict[int, list[dict[str, float]]] = {c: [] for c in CONNECTIONS}
    try:
        for n in range(ROUNDS):
            for connections in CONNECTIONS:
                name = f"http-{n}-{connections}"
                sale = await services.open_sale(name)
                await _round(target, name, connections, 2_000, "w")
                before = cpu_s(process.pid), cpu_s(store_pid)
                result = await _round(target, name, connections, ORDERS, "m")
                result["gateway_us"] = (cpu_s(process.pid) - before[0]) / ORDERS * 1e6
                result["store_us"] = (cpu_s(store_pid) - before[1]) / ORDERS * 1e6
                found[connections].append(result)
                await services.store.exchange([("DEL", sale.keys[0].intake, sale.keys[0].requests, sale.keys[0].holds)])
    finally:
        process.terminate()
        await process.wait()
        sock.close()
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
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


async def _round(target: Target, campaign: str, connections: int, orders: int, mark: str) -> dict[str, float]:
    """A closed loop: each connection has its next request as soon as it has an answer."""
    loop = asyncio.get_running_loop()
    head = request_head("POST", f"/v1/campaigns/{campaign}/orders", target, CHANNEL_KEY)
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
        body = (
            f'{{"buyer_id":"{mark}{n:08d}","items":[{{"sku":"phone-red","quantity":1}}],'
            f'"client_ip":"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}","device_id":"{mark}-device-{n:08d}"}}'
        ).encode()
        sent_s[n] = time.perf_counter()
        pool.submit(
            n, head + b"Idempotency-Key: %b-%08d\r\nContent-Length: %d\r\n\r\n%b" % (mark.encode(), n, len(body), body)
        )

    pool = Pool(target, connections, 30.0, on_done)
    await pool.warm()
    began_s = time.perf_counter()
    for _ in range(min(connections, orders)):
        submit()
    await asyncio.wait_for(done, 120)
    elapsed_s = time.perf_counter() - began_s
    await pool.close()
    assert accepted == orders, f"{accepted} of {orders} accepted"
    took_s.sort()
    return {
        "accepted_per_s": orders / elapsed_s,
        "p50_ms": took_s[orders // 2] * 1000,
        "p99_ms": took_s[orders * 99 // 100] * 1000,
    }
