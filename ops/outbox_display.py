"""How messages and dead orders are listed: on a terminal readable from 80 columns on, elsewhere one plain line each.

An order id is never cut: it is what the next command takes.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ops.order_display import how_it_waits, many, plain

WIDE = 120  # columns from which `how it stands` has a column of its own
ID_CHARS = 36


class Row(NamedTuple):
    """One message or dead order, in words."""

    order: str
    topic: str
    version: str
    at: str
    stands: str


def row_of(found: dict[str, Any], now: datetime) -> Row:
    """A row of list_outbox.sql, list_dead_messages.sql or list_dead_letters.sql."""
    return Row(
        order=str(found["order_id"] or f"entry {found['entry_id']}"),
        topic=found["topic"],
        version=str(found.get("version", "")),
        at=_time(found["at"]),
        stands=plain(_stands(found, now)).plain,
    )


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """All rows; `none` if there are none."""
    if not rows:
        console.print("none")
    elif not console.is_terminal:
        for row in rows:
            line = f"{row.order:{ID_CHARS}}  {row.topic:11}  {row.version:>3}  {row.at}  {row.stands}"
            console.file.write(line.rstrip() + "\n")
    elif console.width >= WIDE:
        table = _table()
        table.add_column("how it stands", overflow="fold")
        for row in rows:
            table.add_row(*row[:4], plain(row.stands))
        console.print(table)
    else:
        heads = ("order", "topic", "version", "came to be (UTC)")
        widths = [max(len(cells[n]) for cells in (heads, *(row[:4] for row in rows))) for n in range(4)]
        console.print(plain(_line(heads, widths), "dim"), soft_wrap=True)
        for row in rows:
            console.print(plain(_line(row[:4], widths)), soft_wrap=True)
            console.print(Padding(plain(row.stands, "dim"), (0, 0, 0, 2)))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    order, topic, version, at = (f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{order}  {topic}  {version.strip():>{widths[2]}}  {at}".rstrip()


def _table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("order", no_wrap=True, min_width=ID_CHARS)
    table.add_column("topic", no_wrap=True)
    table.add_column("version", no_wrap=True, justify="right")
    table.add_column("came to be (UTC)", no_wrap=True)
    return table


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _stands(found: dict[str, Any], now: datetime) -> str:
    if "due_at" in found:
        return how_it_waits(found["due_at"], found["attempts"], found["error"], now)
    if "dead_at" not in found:
        return str(found["reason"])  # an order: it has no attempts
    return f"dead since {_time(found['dead_at'])}, {many(found['attempts'], 'attempt')}: {found['reason']}"
