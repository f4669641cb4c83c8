"""`rushgate check HISTORY`: judges a recorded run by the 12 invariants, with ledger and store as they ended."""

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from core.errors import Invalid
from core.settings import Settings
from loadtest.history import HistoryInvalid
from loadtest.history_check import Bounds, check
from loadtest.history_final import Final, read_final, write_final
from loadtest.history_gather import read_gathered
from ops.campaign_commands import add_data_dir
from ops.check_display import lines
from ops.check_facts import Collector
from ops.desk import command_place, open_desk

__all__ = ["add_arguments", "facts_of", "lines", "run"]


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of the command."""
    part = parts.add_parser("check", help="judge a recorded history by the 12 invariants, with ledger and store")
    part.add_argument("history", type=Path, help="what the clients recorded; a folder: all histories in it")
    part.add_argument("--final", type=Path, help="facts that were saved, instead of those of the running stack")
    part.add_argument("--save-final", type=Path, metavar="FILE", help="keep the facts of the running stack")
    part.add_argument(
        "--sells-out", action="store_true", help="demand exceeded the stock to the end: unsold units are wrong"
    )
    part.add_argument(
        "--refusal-ms",
        type=int,
        default=Bounds().refusal_ms,
        help="longest wait for a 429 or 503 (default: %(default)s)",
    )
    part.add_argument("--json", action="store_true", help="print JSON")
    add_data_dir(part)


def run(args: argparse.Namespace) -> int:
    """Exit status 0, or 1 if an invariant is violated. Raises Fault; Invalid names the argument whose file cannot be
    used."""
    with _argument("HISTORY", args.history):
        history = read_gathered(args.history)
    # Without partners their messages wait by design, so that what waits is not judged.
    drained = True
    if args.final is not None:
        with _argument("--final", args.final):
            final = read_final(args.final)
    else:
        place = command_place(os.environ, args.data_dir)
        drained = bool(place.settings.partners_url)
        with place.explained():
            final = asyncio.run(facts_of(place.settings, history.header.campaign))
    if args.save_final is not None:
        with _argument("--save-final", args.save_final):
            write_final(args.save_final, final)
    with _argument("HISTORY", args.history):
        verdict = check(history, final, Bounds(drained=drained, sells_out=args.sells_out, refusal_ms=args.refusal_ms))
    if args.json:
        print(msgspec.json.encode(verdict).decode())
    else:
        print("\n".join(lines(verdict, history, drained=drained, final=final)))
    return 1 if verdict.violations else 0


@contextlib.contextmanager
def _argument(name: str, path: Path) -> Iterator[None]:
    """What is wrong with a file is told with the argument that names it. Raises Invalid."""
    try:
        yield
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror or exc}", name) from exc
    except ValueError as exc:  # HistoryInvalid, and what msgspec raises, are such
        raise Invalid(str(exc) if isinstance(exc, HistoryInvalid) else f"{path}: {exc}", name) from exc


async def facts_of(settings: Settings, campaign: str) -> Final:
    """The facts of a campaign that stands still. Raises: as `Collector.collect`."""
    async with open_desk(settings) as desk:
        return await Collector(desk, campaign, settings.shards).collect()
