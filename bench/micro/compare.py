"""Ratios of this session against the stored ones: what became slower than it may."""

from collections.abc import Mapping
from typing import Any, NamedTuple

ALLOWED = 1.20  # of the stored ratio; beyond it is a regression


class Timing(NamedTuple):
    """The least time of a function, and of the calibrating loop beside it, in microseconds."""

    us: float
    calibrating_us: float

    @property
    def ratio(self) -> float:
        return self.us / self.calibrating_us


class Row(NamedTuple):
    """One function: now against stored. `stored` is None for a new one; `now` for one that is no more."""

    name: str
    now: Timing | None
    stored: float | None

    @property
    def change(self) -> float | None:
        """0.25 = a quarter slower than stored; None: nothing to compare."""
        return self.now.ratio / self.stored - 1 if self.now is not None and self.stored else None

    @property
    def regressed(self) -> bool:
        return self.change is not None and self.change > ALLOWED - 1 + 1e-9


def timings(session: Mapping[str, Any]) -> dict[str, Timing]:
    """What pytest-benchmark wrote, by function; the least of the rounds, as other work moves it least."""
    return {
        benchmark["name"].removeprefix("test_").replace("_", " "): Timing(
            benchmark["stats"]["min"] * 1e6, benchmark["extra_info"]["calibrating_us"]
        )
        for benchmark in session["benchmarks"]
    }


def best(sessions: list[dict[str, Timing]]) -> dict[str, Timing]:
    """Of each function the session with the least ratio: noise adds time and never takes any."""
    names = dict.fromkeys(name for session in sessions for name in session)
    return {name: min((s[name] for s in sessions if name in s), key=lambda t: t.ratio) for name in names}


def compared(now: Mapping[str, Timing], stored: Mapping[str, float]) -> list[Row]:
    """A row for each function of either side, those of now first."""
    return [Row(name, now.get(name), stored.get(name)) for name in dict.fromkeys([*now, *stored])]


def table(rows: list[Row]) -> str:
    """The rows as text, and in words what regressed."""
    lines = [f"{'':<22}{'us':>10}{'ratio':>10}{'stored':>10}{'change':>9}"]
    for row in rows:
        us, ratio = (f"{row.now.us:,.2f}", f"{row.now.ratio:.3f}") if row.now else ("gone", "")
        stored = f"{row.stored:.3f}" if row.stored is not None else "new"
        change = f"{row.change:+.0%}" if row.change is not None else ""
        lines.append(f"{row.name:<22}{us:>10}{ratio:>10}{stored:>10}{change:>9}")
    lines += [
        f"REGRESSION: {row.name} takes {row.change:.0%} more than stored, beside the calibrating loop "
        f"(allowed: {ALLOWED - 1:.0%})"
        for row in rows
        if row.change is not None and row.regressed
    ]
    return "\n".join(lines)
