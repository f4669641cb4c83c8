"""`rushgate rebuild CAMPAIGN`: a campaign is installed in the store again from the ledger, by an operator's hand."""

import argparse
import os
import secrets

import msgspec
from rich.console import Console
from rich.table import Table

from core.desk.rebuild import Rebuilder
from core.desk.rebuilt import Rebuilt
from core.desk.recovery import Recovery
from core.settings import Settings
from ops.campaign_commands import add_data_dir, audit_line
from ops.desk import open_desk

WHY = "by an operator"


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of the command."""
    part = parts.add_parser("rebuild", help="install a campaign that the store lost again, from the ledger")
    part.add_argument("campaign")
    part.add_argument("--dry-run", action="store_true", help="print what it would come to, and change nothing")
    part.add_argument("--json", action="store_true", help="print JSON")
    add_data_dir(part)


async def run(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0, or 1 if the campaign stays out of service. Raises Fault."""
    async with open_desk(settings) as desk:
        who = f"command-{os.getpid()}-{secrets.token_hex(4)}"
        rebuilder = Rebuilder(desk.campaigns, desk.auditor, desk.store, desk.ledger, who)
        if args.dry_run:
            found = await rebuilder.plan(args.campaign)
        else:
            found = await rebuilder.rebuild(args.campaign, WHY)
        if args.json:
            print(msgspec.json.encode(found).decode())
        else:
            print_rebuilt(found, args.dry_run, Console())
        if args.dry_run:
            return 0
        # Where no reconcile worker runs, orders wait for somebody who admits the store.
        recovery = Recovery(desk.campaigns, desk.auditor, desk.store, desk.ledger, who, auto=False)
        await recovery.step()
        await recovery.mend()
        return 0 if found.state != "recovering" else 1


def print_rebuilt(found: Rebuilt, planned: bool, console: Console) -> None:
    """The balance before and after, the numbers that are missing, and what came of it."""
    after = "the ledger says" if planned else "now"
    table = Table(title="Units", title_justify="left", title_style="bold")
    for heading in ("SKU", "", "allocation", "left", "held", "sold"):
        table.add_column(heading, justify="right" if heading in ("allocation", "left", "held", "sold") else "left")
    for old, new in zip(found.before, found.after, strict=True):
        for sku, when, units in ((old.sku, "the store said", old), ("", after, new)):
            numbers = (units.allocation, units.left, units.held, units.sold)
            table.add_row(sku, when, *(f"{n:,}" for n in numbers))
    console.print(table)
    for shard in found.shards:
        gap = f"gap of {shard.gap:,}, the numbers {shard.missing}" if shard.gap else "no gap"
        console.print(
            f"  shard {shard.shard}: {shard.orders:,} orders, numbered up to {shard.base:,}; {gap}", markup=False
        )
    if any(shard.gap for shard in found.shards):
        print("  gap: order numbers that were given and that nobody knows any more: the store lost these orders")
    for units in found.oversold:
        console.print(
            f"  oversold: {-units.left:,} units of {units.sku} more than there are", style="red", markup=False
        )
    if found.oversold:
        print(
            "  It is not put in service: cancel orders of so many units (`rushgate order cancel`), or let unpaid ones"
        )
        print("  expire, then rebuild it again. A reconcile worker tries again by itself, ever more seldom.")
    if planned:
        console.print(f"nothing was changed: {found.campaign} is at epoch {found.epoch}", markup=False)
        return
    if found.audit is not None:
        for finding in found.audit.findings:
            console.print(f"  finding: {finding}", style="red", markup=False, highlight=False)
        print(audit_line(found.audit), flush=True)
    print(f"campaign {found.campaign}: {found.state}, epoch {found.epoch}", flush=True)
