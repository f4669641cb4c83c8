"""`rushgate rush-merge`: the latencies of several generators as those of one, from their histogram logs."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest import hdr

EXIT_OK, EXIT_WRONG, EXIT_NOT_RUN = 0, 1, 2
SHOWN = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="FILE.hlog", help="what `rushgate rush --hdr` wrote")
    parser.add_argument("--hlog", type=Path, metavar="FILE", help="also write them as one log")
    parser.add_argument("--hgrm", type=Path, metavar="FILE", help="also write their distribution")


def run_from_args(args: argparse.Namespace) -> int:
    """Print the percentiles of each log and of all. Returns 0; 1: a file cannot be written; 2: one cannot be read."""
    try:
        logs = {path: hdr.read_log(path) for path in args.logs}
        intervals = hdr.by_second([interval for log in logs.values() for interval in log])
        whole = hdr.added(intervals)
        columns = [(path.name, hdr.added(log)) for path, log in logs.items()]
    except (OSError, hdr.HdrUnusable) as exc:
        print(f"rush-merge: {exc}", file=sys.stderr)
        return EXIT_NOT_RUN
    if len(columns) > 1:
        columns.append(("all", whole))
    table = Table(box=None, pad_edge=False)
    table.add_column("ms")
    for name, _ in columns:
        table.add_column(name, justify="right")
    table.add_row("count", *(f"{histogram.get_total_count():,}" for _, histogram in columns))
    for percentile in SHOWN:
        name = "max" if percentile == 100 else f"p{percentile:g}"
        table.add_row(name, *(f"{hdr.at_percentile(histogram, percentile):,.2f}" for _, histogram in columns))
    Console().print(table, highlight=False)
    try:
        if args.hlog is not None:
            hdr.write_log(args.hlog, intervals, f"{len(logs)} logs of rushgate rush, merged, in ns")
        if args.hgrm is not None:
            hdr.write_distribution(args.hgrm, whole)
    except OSError as exc:
        print(f"rush-merge: {exc}", file=sys.stderr)
        return EXIT_WRONG
    return EXIT_OK
