"""Batch intake: orders/s through `orders:batch`, gateway and store on one core, the generator on the other."""

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from bench import plot
from bench.environment import shown, spread
from bench.generator import Crowd, batch_wire, body_of, closed_loop
from bench.processes import Gateway, all_cores, gateway, own_cpu_s, pids, pin_family
from bench.services import Services

LINES = (10, 100, 1_000)  # of one request
ORDERS = 60_000  # a round, at every number of lines
WARM_ORDERS = 5_000
CONNECTIONS = 8  # keep-alive: that many requests under way
ROUNDS = 7


class _Line(msgspec.Struct):
    http_status: int


_decode = msgspec.json.Decoder(_Line).decode


async def measure(
    services: Services, lines: Sequence[int] = LINES, orders: int = ORDERS, rounds: int = ROUNDS,
    connections: int = CONNECTIONS,
) -> dict[str, Any]:  # fmt: skip
    """Orders/s of a closed loop, the time of a request, CPU per order of gateway and store, by lines of a request."""
    store_pid, ledger_pid = pids(services)
    pin_family(store_pid, [0])
    pin_family(ledger_pid, [1])
    os.sched_setaffinity(0, [1])
    found: dict[int, list[dict[str, float]]] = {n: [] for n in lines}
    try:
        async with gateway(services, [0]) as running:
            for n in range(rounds):
                for one in (*lines[n % len(lines) :], *lines[: n % len(lines)]):
                    found[one].append(await _round(services, running, n, one, orders, connections))
    finally:
        os.sched_setaffinity(0, all_cores())
    _show(found, orders, connections)
    result = {str(one): {k: spread([r[k] for r in of]) for k in of[0]} for one, of in found.items()}
    groups = {f"{one} lines": {"orders/s": figures["orders_per_s"]} for one, figures in result.items()}
    plot.bars("batch", "Batch intake at fsync, one core for gateway and store", "orders/s", groups)
    return {"batch": result, "settings": {"orders": orders, "connections": connections}}


async def _round(
    services: Services, running: Gateway, n: int, lines: int, orders: int, connections: int
) -> dict[str, float]:
    store_pid, _ = pids(services)
    name = f"batch-{n}-{lines}-{time.time_ns():x}"
    sale = await services.open_sale(name)
    warm = [batch_wire(name, "aaaaaaaa", k, lines) for k in range(0, min(WARM_ORDERS, orders), lines)]
    wires = [batch_wire(name, "bbbbbbbb", k, lines) for k in range(orders, 2 * orders, lines)]
    with Crowd(running.port, connections) as crowd:
        _check(closed_loop(crowd, warm).answers, lines)
        before = own_cpu_s(running.pid), own_cpu_s(store_pid)
        done = closed_loop(crowd, wires)
        used = own_cpu_s(running.pid) - before[0], own_cpu_s(store_pid) - before[1]
    _check(done.answers, lines)
    took_s = sorted(done.took_s)
    keys = sale.keys[0]
    await services.store.exchange([("UNLINK", keys.intake, keys.requests, keys.holds, keys.used)])
    count = len(wires) * lines
    return {
        "orders_per_s": count / done.seconds,
        "request_p50_ms": took_s[len(took_s) // 2] * 1000,
        "request_p99_ms": took_s[len(took_s) * 99 // 100] * 1000,
        "gateway_us": used[0] / count * 1e6,
        "store_us": used[1] / count * 1e6,
    }


def _check(answers: Sequence[bytes], lines: int) -> None:
    """Every line of every answer is a 202. Raises SystemExit with the first one that is not."""
    for answer in answers:
        found = body_of(answer).splitlines()
        wrong = next((line for line in found if _decode(line).http_status != 202), None)
        if answer[9:12] != b"200" or len(found) != lines or wrong:
            raise SystemExit(f"batch: {answer[:15]!r}, {len(found)} of {lines} lines, not accepted: {wrong!r}")


def _show(found: dict[int, list[dict[str, float]]], orders: int, connections: int) -> None:
    print(f"\norders:batch, fsync, {orders:,} orders a round, {connections} requests under way, new buyers and keys")
    for lines, rounds in found.items():
        print(f"  {lines:>5} lines  {shown([r['orders_per_s'] for r in rounds], 'orders/s')}")
        print(f"      a request  p50 {shown([r['request_p50_ms'] for r in rounds], 'ms', 1)}")
        print(f"                 p99 {shown([r['request_p99_ms'] for r in rounds], 'ms', 1)}")
        print(
            f"      CPU: gateway {shown([r['gateway_us'] for r in rounds], 'us/order', 1)}, "
            f"store {shown([r['store_us'] for r in rounds], 'us/order', 1)}"
        )
