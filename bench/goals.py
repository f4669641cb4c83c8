"""The goals of issue 5 and what was measured for each, as a table."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.tables import markdown


class Goal(NamedTuple):
    """A bound for every figure at `path`; `*` in it stands for all keys there."""

    what: str
    path: str  # file / key / key / ...
    bound: float
    at_least: bool = True
    unit: str = ""
    digits: int = 0

    def shown(self, value: float) -> str:
        """A measured value with its unit."""
        return f"{value:,.{self.digits}f}{self.unit}"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


GOALS = (
    Goal("accepted/s against Fastify + ioredis", "peers/peers/*/fastify/ratio", 1.5, unit="x", digits=2),
    Goal("accepted/s against nginx + Lua", "peers/peers/*/nginx/ratio", 1.5, unit="x", digits=2),
    Goal("accepted/s against FastAPI + redis-py", "peers/peers/*/fastapi/ratio", 10, unit="x", digits=2),
    Goal("accepted/s against the bare echo, which has no store", "peers/peers/*/echo/ratio", 0.6, unit="x", digits=2),
    Goal("sold-out/s against the bare echo", "sold_out/sold_out/*/echo/ratio", 0.85, unit="x", digits=2),
    Goal("store CPU per order, batch 64, `fsync`", "store/store/64/cpu_us_per_order", 7, False, " us", 1),
    Goal("`orders:batch`, 100 lines, one core", "batch/batch/100/orders_per_s", 60_000, unit=" orders/s"),
    Goal("ledger, one worker process, 1,000 a batch", "drain/drain/1 worker, 1,000 a batch/rows_per_s", 40_000,
         unit=" rows/s"),
    Goal("end to end on 2 cores, flat for 60 s", "end_to_end/end_to_end/flat/orders_per_s", 10_000,
         unit=" orders/s"),
    Goal("request to 202 at 50 % load, p99", "end_to_end/end_to_end/50%/to_202_p99_ms", 10, False, " ms", 1),
    Goal("request to 202 at 50 % load, p99.9", "end_to_end/end_to_end/50%/to_202_p999_ms", 30, False, " ms", 1),
    Goal("store memory of an open order", "growth/memory/open/bytes", 350, False, " B"),
    Goal("store memory of an ended order", "growth/memory/ended/bytes", 120, False, " B"),
)  # fmt: skip


def table(results: Mapping[str, Any]) -> str:
    """Goal, bound, what was measured (medians, by key where there are several), and whether all of it meets it."""
    rows = []
    for goal in GOALS:
        found = dict(_find(results, goal.path.split("/"), ""))
        measured = ", ".join(f"{goal.shown(v)}{f' at {k}' if k else ''}" for k, v in found.items())
        reached = "yes" if all(map(goal.met, found.values())) else "**no**"
        sign = ">=" if goal.at_least else "<="
        bound = f"{sign} {f'{goal.bound:,}'.removesuffix('.0')}{goal.unit}"
        rows.append([goal.what, bound, measured or "not measured", reached if found else ""])
    return markdown(["goal", "", "measured", "reached"], rows)


def _find(value: Any, path: list[str], star: str) -> Iterator[tuple[str, float]]:
    """What the star stood for, and the figure or its median."""
    if not path:
        yield star, float(value["median"] if isinstance(value, Mapping) else value)
    elif isinstance(value, Mapping):
        for key in value if path[0] == "*" else [path[0]] if path[0] in value else []:
            yield from _find(value[key], path[1:], key if path[0] == "*" else star)
