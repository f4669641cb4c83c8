"""The parts of `rushgate` that are processes: begun in half the time, as they load nothing of the other parts."""

import argparse
import os
from typing import TYPE_CHECKING

from core.metrics_table import WORKERS
from core.settings import Settings
from ops import logs

if TYPE_CHECKING:
    Parts = argparse._SubParsersAction[argparse.ArgumentParser]

PARTS = ("gateway", "worker", "console")


def add_arguments(parts: "Parts") -> None:
    """The parts `gateway`, `worker` and `console`."""
    part = parts.add_parser("gateway", help="one gateway process")
    part.add_argument("--fd", type=int, help="a listening socket that was inherited, instead of host and port")
    part = parts.add_parser("worker", help="one worker process")
    part.add_argument(
        "kind",
        choices=WORKERS,
        help="ledger: drains the intake into the ledger; expiry: what time brings about (orders not paid, receipts not "
        "confirmed, after-sales windows); relay: carries messages from the outbox to the store and to partners; "
        "reconcile: audits all the time, mends, raises alerts",
    )
    part = parts.add_parser("console", help="the operators' web page, as a process of its own (RUSHGATE_CONSOLE_PORT)")
    part.add_argument("--fd", type=int, help="a listening socket that was inherited, instead of host and port")


def parser() -> argparse.ArgumentParser:
    """A command line of these parts alone; `ops.commands.parser` has them too."""
    top = argparse.ArgumentParser(prog="rushgate")
    add_arguments(top.add_subparsers(dest="part", required=True, metavar="PART"))
    return top


def run(args: argparse.Namespace) -> int:
    """The process, from start to end. Raises Fault."""
    settings = Settings.from_env(os.environ)
    logs.set_up(settings.log_level, settings.log_format)
    if args.part == "gateway":
        import gateway.process

        gateway.process.run(settings, args.fd)
    elif args.part == "console":
        import ops.console.process

        ops.console.process.run(settings, args.fd)
    else:
        import workers.process

        workers.process.run(settings, args.kind)
    return 0
