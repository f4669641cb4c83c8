"""`python -m bench [PART …]`: measures, prints with spread, keeps JSON and plots in bench/results/."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvloop

from bench import (
    batch,
    drain,
    end_to_end,
    expiry,
    footprint,
    growth,
    guards,
    intake,
    life,
    overload,
    rebuild,
    relay,
    side_by_side,
    sizing,
    sold_out,
    store,
)
from bench.environment import environment, save
from bench.services import Services, services

PARTS: dict[str, Callable[[Services], Awaitable[dict[str, Any]]]] = {
    "store": store.measure,
    "durability": store.measure_levels,
    "intake": intake.measure,
    "guards": guards.measure,
    "batch": batch.measure,
    "drain": drain.measure,
    "end_to_end": end_to_end.measure,
    "growth": growth.measure,
    "footprint": footprint.measure,
    "relay": relay.measure,
    "expiry": expiry.measure,
    "life": life.measure,
    "overload": overload.measure,
    "sizing": sizing.measure,
    "rebuild": rebuild.measure,
    "peers": side_by_side.measure,
    "sold_out": sold_out.measure,
}
WITH_OTHERS = ("peers", "sold_out")  # `make bench-peers` installs what they need


async def run(names: list[str]) -> None:
    """The parts, one after another, each on services of its own."""
    facts = environment()
    for name, words in facts.items():
        print(f"{name:9} {words}")
    for name in names:
        async with services() as found:
            result = await PARTS[name](found)
        print(f"  kept in {save(name, {'environment': facts, **result})}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    default = [name for name in PARTS if name not in WITH_OTHERS]
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all but {', '.join(WITH_OTHERS)})"
    )
    parser.add_argument("--orders", type=int, default=life.ORDERS, help="of life (default: %(default)s)")
    parser.add_argument("--away-s", type=float, default=life.AWAY_S, help="of life's warehouse (default: %(default)s)")
    parser.add_argument("--to", type=int, default=growth.TO, help="orders of growth (default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    PARTS["life"] = partial(life.measure, orders=args.orders, away_s=args.away_s)
    PARTS["growth"] = partial(growth.measure, to=args.to)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(args.parts or default))
    return 0


if __name__ == "__main__":
    sys.exit(main())
