"""Results as Markdown tables: any nested dict of figures, and what each figure looks like."""

from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[str, ...]
Rows = dict[Path, dict[str, Any]]  # path to a row -> column -> figure

MOST_COLUMNS = 8

# Words of result keys that read better otherwise.
WORDS = {"us": "us", "cpu": "CPU", "p50": "p50", "ms": "ms", "http": "HTTP", "aof": "AOF", "wal": "WAL", "rss": "RSS"}
UNITS = {
    "_us_per_order": ", us per order",
    "_us_per_message": ", us per message",
    "_per_s": "/s",
    "_us": ", us",
    "_ms": ", ms",
    "_s": ", s",
    "_bytes": ", bytes",
    "_mb": ", MB",
    "_mib": ", MiB",
}


def is_spread(value: Any) -> bool:
    """Whether it is what `bench.environment.spread` makes."""
    return isinstance(value, Mapping) and {"median", "min", "max"} <= value.keys()


def figure(value: Any) -> str:
    """`12,743 (12,403–13,768)` of a spread, `12,743` of a number, words as they are."""
    if is_spread(value):
        digits = _digits(value["median"])
        median, low, high = (f"{value[k]:,.{digits}f}" for k in ("median", "min", "max"))
        return median if low == high else f"{median} ({low}–{high})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.{_digits(value)}f}"
    return "" if value is None else str(value)


def heading(key: str) -> str:
    """A key in words, its unit last: `cpu_us_per_order` -> `CPU, us per order`."""
    unit = next((u for u in UNITS if key.endswith(u)), "")
    words = key.removesuffix(unit) if unit and key != unit.lstrip("_") else key
    return " ".join(WORDS.get(w, w) for w in words.split("_") if w) + (UNITS[unit] if words != key else "")


def tables(value: Mapping[str, Any], first: str = "") -> str:
    """The figures of a nested dict: the innermost keys are columns, those above them rows; a flat dict is one column.

    Rows of another depth, or without a column in common, make a table of their own; what would be wider than
    MOST_COLUMNS is turned on its side. Lists (samples for a plot) are left out.

    Args:
        value: dicts of dicts of figures: spreads, numbers, words.
        first: heading of the first column.
    """
    found: list[Rows] = []
    for path, row in _rows(value, ()).items():
        like = (rows for rows in found if len(next(iter(rows))) == len(path) and row.keys() & _columns(rows))
        if (rows := next(like, None)) is None:
            found.append({path: row})
        else:
            rows[path] = row
    return "\n\n".join(_table(rows, first) for rows in found)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _rows(value: Mapping[str, Any], path: Path) -> Rows:
    found: Rows = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and not is_spread(inner):
            found |= _rows(inner, (*path, key))
        elif not isinstance(inner, list | tuple):
            found.setdefault(path, {})[key] = inner
    return found


def _columns(rows: Rows) -> dict[str, None]:
    return dict.fromkeys(column for row in rows.values() for column in row)


def _table(rows: Rows, first: str) -> str:
    columns = list(_columns(rows))
    names = [" ".join(map(_label, path)) for path in rows]
    if list(rows) == [()] or len(columns) > MOST_COLUMNS or (len(rows) == 1 and len(columns) > 2):
        turned = [[heading(c), *(figure(row.get(c)) for row in rows.values())] for c in columns]
        return markdown([first, *names], turned)
    made: list[list[str]] = []
    above: Path = ()
    for path, row in rows.items():
        # A label stands once, above the rows it holds for.
        shown = ["" if above[: n + 1] == path[: n + 1] and n < len(path) - 1 else _label(p) for n, p in enumerate(path)]
        made.append([*shown, *(figure(row.get(c)) for c in columns)])
        above = path
    depth = len(next(iter(rows)))
    return markdown([first, *[""] * (depth - 1), *map(heading, columns)], made)


def _label(key: str) -> str:
    return f"{int(key):,}" if key.isdigit() else key.replace("_", " ")


def _digits(value: float) -> int:
    return 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
