"""The cost model: what an order costs in CPU and bytes, as measured, and from it the machines for a rate, on paper."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

RATES = (10_000, 100_000, 583_000)  # orders/s; the last is what Double 11 of 2020 told of everything together
UTILISATION = 0.6  # of a core that serves: the rest is for peaks and for the kernel's share of the network
CORES = 16  # of a machine
TURN_MS = 20.0  # a store's turn may take so long: the longest wait for a place in a batch and its answer
SYNC_MS = 0.3  # one fdatasync of the append-only file, a data centre's SSD

Results = Mapping[str, Mapping[str, Any]]
MEMORY = ("growth", "memory")  # where the results have the memory of an order: open, ended


class Missing(Exception):
    """A result that the model needs has not been measured."""


class Costs(NamedTuple):
    """Of one order; CPU in microseconds."""

    gateway_us: float
    store_order_us: float  # an order's own part of a call
    store_call_us: float  # what a call costs whatever is in it
    worker_us: float
    postgres_us: float
    relay_us: float  # of one message to a partner over HTTP, the dearest
    messages: float  # of an order until its end
    http_bytes: float  # request and answer
    aof_bytes: float
    wal_bytes: float
    open_bytes: float  # memory of the store while the order waits for its payment
    ended_bytes: float  # and after its end, as long as its campaign


class Need(NamedTuple):
    """For one rate; processes are single-threaded, one core each, Postgres is counted in cores."""

    rate: float
    gateways: int
    stores: int
    turn_ms: float
    workers: int
    postgres_cores: int
    relays: int
    machines: int
    http_mb_s: float
    aof_mb_s: float  # of each store
    wal_mb_s: float  # of all ledgers
    memory_gb: float  # of all stores after an hour of which all orders are open


def need(costs: Costs, rate: float, utilisation: float = UTILISATION, cores: int = CORES) -> Need:
    """What serves `rate` orders/s with no process busier than `utilisation` by the orders' own cost.

    A store's calls are few and large when it is busy: each gateway has one call under way for each store, and what
    came meanwhile is the next. So a store's turn is `(sync + gateways * call) / (1 - rate of the store * order)`;
    stores are added until the orders alone take at most `utilisation` of one and the turn at most TURN_MS.
    """
    gateways = math.ceil(rate * costs.gateway_us / 1e6 / utilisation)
    stores = max(1, math.ceil(rate * costs.store_order_us / 1e6 / utilisation))
    while (turn_ms := _turn_ms(costs, rate / stores, gateways)) > TURN_MS:
        stores += 1
        if stores > 10_000:
            raise ValueError("the calls of so many gateways alone fill a turn")
    workers = math.ceil(rate * costs.worker_us / 1e6 / utilisation)
    postgres = math.ceil(rate * costs.postgres_us / 1e6 / utilisation)
    relays = math.ceil(rate * costs.messages * costs.relay_us / 1e6 / utilisation)
    return Need(
        rate, gateways, stores, turn_ms, workers, postgres, relays,
        machines=math.ceil((gateways + stores + workers + postgres + relays) / cores),
        http_mb_s=rate * costs.http_bytes / 1e6,
        aof_mb_s=rate / stores * costs.aof_bytes / 1e6,
        wal_mb_s=rate * costs.wal_bytes / 1e6,
        memory_gb=rate * 3_600 * costs.open_bytes / 1e9,
    )  # fmt: skip


def _turn_ms(costs: Costs, rate: float, gateways: int) -> float:
    busy = rate * costs.store_order_us / 1e6
    return (SYNC_MS + gateways * costs.store_call_us / 1000) / (1 - busy) if busy < 1 else math.inf


def costs(results: Results) -> Costs:
    """The costs, from results by the name of their file; medians. Raises Missing."""
    order_us, call_us = _line(_value(results, "store", "store"))
    worker_us, postgres_us = _drain(_value(results, "drain", "drain"))
    footprint = _value(results, "footprint", "footprint")
    memory = _value(results, *MEMORY)
    return Costs(
        gateway_us=_number(results, "intake", "intake", "256", "gateway_us"),
        store_order_us=order_us,
        store_call_us=call_us,
        worker_us=worker_us,
        postgres_us=postgres_us,
        relay_us=_number(results, "relay", "relay", "payment", "relay_cpu_us_per_message"),
        messages=_number(results, "life", "life", "relayed", "messages") / _number(results, "life", "life", "accepted"),
        http_bytes=_number(footprint, "request_bytes") + _number(footprint, "answer_bytes"),
        aof_bytes=_number(footprint, "aof_bytes"),
        wal_bytes=_number(footprint, "wal_bytes"),
        open_bytes=_number(memory, "open", "bytes"),
        ended_bytes=_number(memory, "ended", "bytes"),
    )


def _value(results: Mapping[str, Any], *path: str) -> Any:
    found: Any = results
    for part in path:
        if not isinstance(found, Mapping) or part not in found:
            raise Missing(".".join(path))
        found = found[part]
    return found


def _number(results: Mapping[str, Any], *path: str) -> float:
    """A number or the median of a `spread`."""
    found = _value(results, *path)
    return float(found["median"] if isinstance(found, Mapping) else found)


def _line(batches: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """CPU of an order and of a call: the line `order + call / batch` through what was measured from 16 orders on.

    Smaller batches are left out: a store that is short of CPU makes none.
    """
    points = [(1 / int(b), _number(found, "cpu_us_per_order")) for b, found in batches.items() if int(b) >= 16]
    if len(points) < 2:
        raise Missing("store.store: two batch sizes of 16 or more")
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, max(slope, 0.0)


def _drain(settings: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """CPU of worker and Postgres in the setting with the most orders/s of one worker process."""
    alone = [found for name, found in settings.items() if name.startswith("1 worker")]
    if not alone:
        raise Missing("drain.drain: one worker")
    best = max(alone, key=lambda found: _number(found, "orders_per_s"))
    return _number(best, "worker_cpu_us_per_order"), _number(best, "postgres_cpu_us_per_order")


def costs_table(found: Costs) -> str:
    """The costs as a Markdown table."""
    rows = [
        ("gateway, 256 connections", f"{found.gateway_us:.1f} us"),
        ("store, the order itself", f"{found.store_order_us:.1f} us"),
        ("store, a call, whatever is in it", f"{found.store_call_us:.0f} us"),
        ("ledger worker", f"{found.worker_us:.1f} us"),
        ("Postgres, 4 rows", f"{found.postgres_us:.1f} us"),
        (f"relay, {found.messages:.1f} messages until its end, each", f"{found.relay_us:.1f} us"),
        ("request and answer", f"{found.http_bytes:,.0f} bytes"),
        ("append-only file of the store", f"{found.aof_bytes:,.0f} bytes"),
        ("write-ahead log of the ledger", f"{found.wal_bytes:,.0f} bytes"),
        ("memory of the store, open", f"{found.open_bytes:,.0f} bytes"),
        ("memory of the store, ended", f"{found.ended_bytes:,.0f} bytes"),
    ]
    return "\n".join(["| of one order | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])


def needs_table(found: Costs, rates: tuple[int, ...] = RATES) -> str:
    """What each rate needs, as a Markdown table."""
    all_needs = [need(found, rate) for rate in rates]

    def row(what: str, form: str, name: str) -> str:
        return f"| {what} | {' | '.join(form.format(getattr(one, name)) for one in all_needs)} |"

    return "\n".join(
        [
            f"| orders/s | {' | '.join(f'{one.rate:,.0f}' for one in all_needs)} |",
            "|---|" + "---|" * len(all_needs),
            row("gateway processes", "{:,}", "gateways"),
            row("stores (shards on as many cores)", "{:,}", "stores"),
            row("a store's turn", "{:.1f} ms", "turn_ms"),
            row("ledger workers", "{:,}", "workers"),
            row("cores of Postgres", "{:,}", "postgres_cores"),
            row("relays that keep pace", "{:,}", "relays"),
            row(f"machines of {CORES} cores", "**{:,}**", "machines"),
            row("HTTP", "{:,.0f} MB/s", "http_mb_s"),
            row("append-only file of each store", "{:,.0f} MB/s", "aof_mb_s"),
            row("write-ahead logs", "{:,.0f} MB/s", "wal_mb_s"),
            row("memory of the stores after an hour at this rate, all open", "{:,.0f} GB", "memory_gb"),
        ]
    )


def section(results: Results) -> str:
    """Both tables and what they assume, as Markdown. Raises Missing."""
    found = costs(results)
    assumed = (
        f"Assumed: no process busier than {UTILISATION:.0%} of its core, a store's turn at most {TURN_MS:g} ms with an "
        f"fsync of {SYNC_MS:g} ms, {CORES} cores a machine as fast as the one measured on, costs that stay as they are "
        "with more processes, every message as dear as one over HTTP. Not counted: the store's part of the drain and "
        "of the settlement, replicas and standbys (twice the stores and the Postgres cores), load "
        "balancers, the network's own CPU beyond what loopback costs. Relays need not keep pace with a rush: messages "
        "wait in the outbox."
    )
    return f"{costs_table(found)}\n\n{needs_table(found)}\n\n{assumed}"
