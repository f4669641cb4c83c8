"""`rushgate metrics`: all metrics of the deployment as they are now, in a terminal or for a scraper's file."""

import argparse
import sys

from core.settings import Settings
from lua.connection import StoreConnection
from lua.registry import Sign, read_signs
from ops.campaign_commands import add_data_dir
from ops.metrics_gather import UP, ask_all, merged, targets

NAME = "metrics"


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags."""
    part = parts.add_parser(NAME, help="print the metrics of all living processes, as Prometheus reads them")
    add_data_dir(part)
    part.add_argument("--targets", action="store_true", help="print where each process is scraped: http_sd JSON")
    part.add_argument("--kind", help="only processes of this kind: gateway, ledger, expiry, relay, reconcile, console")
    part.add_argument("--only", metavar="TEXT", help="only metrics whose name contains TEXT")


async def run(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 1 if no process gives metrics, or one of them did not answer. Raises StoreUnavailable."""
    store = StoreConnection(settings.store_url, "memory", settings.store_timeout_s, "command-metrics")
    try:
        signs, _ = await read_signs(store.exchange)
    finally:
        await store.close()
    chosen: list[Sign] = [sign for sign in signs if args.kind in (None, sign.kind)]
    if args.targets:
        print(targets(chosen).decode())
        return 0
    told = await ask_all(chosen)
    print("\n".join(_only(merged(told).decode().splitlines(), args.only or "")))
    if not told:
        print("rushgate: no process of this deployment gives metrics", file=sys.stderr)
    for one in told:
        if not one.text:
            print(f"rushgate: {one.sign.id} did not answer at {one.sign.metrics}", file=sys.stderr)
    return 0 if told and all(one.text for one in told) else 1


def _only(lines: list[str], text: str) -> list[str]:
    """The lines of metrics whose name contains the text; and of all whether their process answered, if it is asked."""
    found, wanted = [], text in UP.name
    for line in lines:
        if line.startswith("# HELP "):
            wanted = text in line.split(" ", 3)[2]
        if wanted:
            found.append(line)
    return found
