"""`rushgate room CAMPAIGN`: looks at a waiting room, and sets how many buyers it admits."""

import argparse
import asyncio
import re
import sys

import msgspec

from core.desk.room import RoomDesk, RoomView
from core.settings import Settings
from ops.campaign_commands import add_data_dir
from ops.desk import open_desk

WATCH_S = 1.0


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of the command."""
    part = parts.add_parser("room", help="look at a campaign's waiting room, or set how many buyers it admits a second")
    part.add_argument("campaign")
    rate = part.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=_rate, metavar="N", help="admit N buyers a second")
    rate.add_argument("--auto", action="store_true", help="admit as many as the backlog allows")
    rate.add_argument("--stop", action="store_true", help="admit nobody until a rate is set")
    part.add_argument("--watch", action="store_true", help="print a line a second until Ctrl-C, or the campaign's end")
    part.add_argument("--json", action="store_true", help="print JSON")
    add_data_dir(part)


def _rate(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or (rate := int(text)) > 100_000:
        raise argparse.ArgumentTypeError("must be a whole number, 0 to 100000")
    return rate


async def run(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0. Raises Fault."""
    async with open_desk(settings) as desk:
        rooms = RoomDesk(desk.campaigns, desk.store, desk.ledger, settings.shards, settings.ticket_ttl_s)
        if args.auto:
            view = await rooms.set_rate(args.campaign, "auto", None)
        elif args.stop or args.rate is not None:
            view = await rooms.set_rate(args.campaign, "fixed", float(args.rate or 0))
        else:
            view = await rooms.show(args.campaign)
        _print(view, args.json)
        while args.watch and view.phase != "closed":
            await asyncio.sleep(WATCH_S)
            view = await rooms.show(args.campaign)
            _print(view, args.json)
    return 0


def _print(view: RoomView, as_json: bool) -> None:
    print(msgspec.json.encode(view).decode() if as_json else line(view))
    sys.stdout.flush()


def line(view: RoomView) -> str:
    """A room in a line."""
    how = "nobody is admitted" if view.mode == "fixed" and not view.rate else f"{view.rate:,.0f} a second ({view.mode})"
    drawn = f", {view.drawn:,} of them drawn by lot (seed {view.seed})" if view.drawn else ""
    return (
        f"room {view.campaign}: {view.phase}, {how}; joined {view.joined:,}{drawn}; "
        f"admitted {view.admitted:,}, waiting {view.waiting:,}, time over {view.lapsed:,}"
    )
