"""The command line of a rush, for `rushgate rush`."""

import argparse
import os
import resource
import sys
from datetime import datetime
from pathlib import Path

import uvloop
from rich.console import Console

from loadtest import hdr, rush_charts, rush_html
from loadtest.campaign import RushError
from loadtest.display import RushDisplay, print_report
from loadtest.exchange import Target
from loadtest.options import RushOptions
from loadtest.plan import Mix
from loadtest.report import RushReport
from loadtest.rush import measured_rush
from loadtest.samples import Samples

CHANNEL_KEY_ENV = "RUSHGATE_CHANNEL_KEY"
SPARE_FILES = 64  # file descriptors beside the connections

EXIT_OK, EXIT_WRONG, EXIT_NOT_RUN, EXIT_INTERRUPTED = 0, 1, 2, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a rush; defaults are those of `RushOptions`."""
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the gateway (default: %(default)s)")
    parser.add_argument("--campaign", required=True, help="the campaign to buy from")
    parser.add_argument(
        "--channel-key",
        help=f"the channel's key; better in the environment, as {CHANNEL_KEY_ENV}: "
        "what is on a command line, every user of the machine can read in the process list",
    )
    parser.add_argument("--buyers", type=int, default=20_000, help="1 to 1,000,000 (default: %(default)s)")
    parser.add_argument(
        "--spread-s", type=float, default=2.0, help="they come within so many seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="N",
        help="N requests a second instead of a crowd: open loop, one each 1/N s",
    )
    parser.add_argument(
        "--for-s", type=float, default=10.0, metavar="S", help="of a rate: for so many seconds (default: %(default)s)"
    )
    parser.add_argument("--poisson", action="store_true", help="of a rate: come as independent people do, not evenly")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="each request is a new buyer's only order: no repeats, nothing greedy or wrong",
    )
    parser.add_argument("--connections", type=int, default=256, help="1 to 4096 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same plan (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report, with every order, as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="also write the report, with plots, as HTML")
    parser.add_argument(
        "--hdr", type=Path, metavar="FILE", action="append", default=[],
        help="also write the latencies: a log (.hlog, can be merged) or a distribution (.hgrm); may be repeated",
    )  # fmt: skip


def run_from_args(args: argparse.Namespace) -> int:
    """Run the rush, print it, and return the exit status.

    Returns:
        0; 1 when answers were unexpected, inconsistent or denied (401, 403, 404, 413), or the JSON could not
        be written; 2 when the rush could not be run; 130 when it was interrupted.
    """
    console = Console()
    try:
        options = RushOptions(
            url=args.url,
            campaign=args.campaign,
            channel_key=_channel_key(args.channel_key),
            buyers=args.buyers,
            spread_s=args.spread_s,
            connections=args.connections,
            seed=args.seed,
            rate=args.rate,
            for_s=args.for_s,
            poisson=args.poisson,
            mix=Mix(0.0, 0.0, 0.0, 0.0) if args.plain else Mix(),
        )
        _can_write(args)
        _allow_files(options.connections + SPARE_FILES)
        _warn(options)
        report, samples = uvloop.run(_shown_rush(options, console))
    except (ValueError, RushError) as exc:
        print(f"rush: {exc}", file=sys.stderr)
        return EXIT_NOT_RUN
    except KeyboardInterrupt:
        print("rush: interrupted; what was sent may have been accepted", file=sys.stderr)
        return EXIT_INTERRUPTED
    print_report(report, console)
    try:
        _write(args, report, samples)
    except OSError as exc:
        print(f"rush: the report could not be written: {exc}", file=sys.stderr)
        return EXIT_WRONG
    return EXIT_OK if report.ok else EXIT_WRONG


def _can_write(args: argparse.Namespace) -> None:
    """Raises ValueError, before anything is sent, for files that cannot be made."""
    for path in args.hdr:
        if path.suffix not in (".hlog", ".hgrm"):
            raise ValueError(f"hdr: {path} ends neither with .hlog nor with .hgrm")
    try:
        if args.hdr:
            hdr.new_histogram()
        if args.report is not None:
            rush_charts.ready()
    except (hdr.HdrUnusable, rush_charts.ChartsUnusable) as exc:
        raise ValueError(f"{'hdr' if isinstance(exc, hdr.HdrUnusable) else 'report'}: {exc}") from exc


def _write(args: argparse.Namespace, report: RushReport, samples: Samples) -> None:
    """All files that were asked for. Raises OSError."""
    if args.json is not None:
        report.write_json(args.json)
    if args.report is not None:
        rush_html.write(args.report, report, samples)
    if args.hdr:
        intervals = hdr.intervals_of(samples, datetime.fromisoformat(report.started_at).timestamp())
        for path in args.hdr:
            if path.suffix == ".hlog":
                hdr.write_log(path, intervals, f"rush {report.run_id} on {report.campaign}, from due time, in ns")
            else:
                hdr.write_distribution(path, hdr.added(intervals))


def _warn(options: RushOptions) -> None:
    """Whoever does not test on the own machine is told what is about to happen."""
    host = Target.from_url(options.url).host
    if host not in ("127.0.0.1", "::1", "localhost"):
        count = f"{options.requests or options.buyers:,}"
        words = f"rush: buys for real from {options.campaign} at {host}: about {count} orders. Ctrl-C stops it."
        print(words, file=sys.stderr)


async def _shown_rush(options: RushOptions, console: Console) -> tuple[RushReport, Samples]:
    with RushDisplay(console, f"Rush on {options.campaign} at {options.url}") as display:
        return await measured_rush(options, display.update)


def _channel_key(given: str | None) -> str:
    key = given or os.environ.get(CHANNEL_KEY_ENV, "")
    if not key:
        raise ValueError(f"channel-key: set {CHANNEL_KEY_ENV}, or give --channel-key")
    return key


def _allow_files(needed: int) -> None:
    """Raise this process's limit of open files where it is too low for the connections.

    Raises:
        ValueError: the hard limit is below it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(f"connections: needs {needed:,} open files, and the system allows {hard:,}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
