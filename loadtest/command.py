"""The command line of a rush, for `rushgate rush`."""

import argparse
import os
import resource
import sys
from pathlib import Path

import uvloop
from rich.console import Console

from loadtest.campaign import RushError
from loadtest.display import RushDisplay, print_report
from loadtest.options import RushOptions
from loadtest.report import RushReport
from loadtest.rush import rush

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
    parser.add_argument("--connections", type=int, default=256, help="1 to 4096 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same plan (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report, with every order, as JSON")


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
        )
        _allow_files(options.connections + SPARE_FILES)
        report = uvloop.run(_shown_rush(options, console))
    except (ValueError, RushError) as exc:
        print(f"rush: {exc}", file=sys.stderr)
        return EXIT_NOT_RUN
    except KeyboardInterrupt:
        print("rush: interrupted; what was sent may have been accepted", file=sys.stderr)
        return EXIT_INTERRUPTED
    print_report(report, console)
    if args.json is not None:
        try:
            report.write_json(args.json)
        except OSError as exc:
            print(f"rush: the report could not be written: {exc}", file=sys.stderr)
            return EXIT_WRONG
    return EXIT_OK if report.ok else EXIT_WRONG


async def _shown_rush(options: RushOptions, console: Console) -> RushReport:
    with RushDisplay(console, f"Rush on {options.campaign} at {options.url}") as display:
        return await rush(options, display.update)


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
