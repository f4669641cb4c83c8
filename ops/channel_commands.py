"""`rushgate channel …`, `block`, `unblock` and `blocks`: who may call, and who may not order. Straight to the ledger;
the gateways hear of it through the store, within a second."""

import argparse
import re
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from core.desk.access_books import AccessBooks
from core.desk.blocks import MAX_FOR_S, Block, BlockDesk, BlockSpec
from core.desk.channels import MAX_KEEP_S, Channel, ChannelChange, ChannelDesk, ChannelSpec, Key, NewKey, Rotation
from core.errors import Invalid
from core.model import explain
from core.settings import Settings
from ops.campaign_commands import add_data_dir
from ops.desk import open_desk

PARTS = ("channel", "block", "unblock", "blocks")
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
LATER = "the store could not be told now: the gateways hear of it when it is back"


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of all four commands."""
    part = parts.add_parser("channel", help="add channels, give them keys, and take both away")
    add_data_dir(part)
    actions = part.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="a new channel; prints its key, once")
    change = actions.add_parser("set", help="change what a channel may do")
    rotate = actions.add_parser("rotate", help="one more key, printed once; the others end after --keep")
    revoke = actions.add_parser("revoke", help="a key, or the channel with all its keys and tickets, opens nothing")
    listed = actions.add_parser("list", help="all channels and their keys, without secrets")
    for action in (add, change, rotate, revoke):
        action.add_argument("channel", metavar="NAME")
    for action in (add, change):
        action.add_argument("--campaigns", metavar="A,B", help="names that it may sell; `all` = all of them")
        rates = "its own rate limits, such as channel=500/s:1000; `none` = those of everybody"
        action.add_argument("--rate", metavar="KIND=RATE,…", help=rates)
    for action in (add, rotate):
        action.add_argument("--signing", action="store_true", help="a key to sign requests with: it is never sent")
    rotate.add_argument("--bearer", action="store_true", help="a key to send, also if the newest one is to sign with")
    rotate.add_argument(
        "--keep",
        default="24h",
        metavar="TIME",
        help="so long the others still open (default: %(default)s; 0s = no more)",
    )
    revoke.add_argument("--key", metavar="ID", help="only this key, as `list` has it")
    for action in (add, change, rotate, revoke, listed):
        action.add_argument("--json", action="store_true", help="print JSON")
        add_data_dir(action, argparse.SUPPRESS)

    block = parts.add_parser("block", help="a buyer, an address or a network that may not order")
    block.add_argument("--for", dest="for_", metavar="TIME", help="such as 90s, 15m, 1h, 7d (default: for good)")
    block.add_argument("--reason", default="", metavar="TEXT", help="for operators; callers are not told")
    unblock = parts.add_parser("unblock", help="take a block away")
    for part in (block, unblock):
        part.add_argument("kind", choices=("buyer", "ip"))
        part.add_argument("value", metavar="VALUE", help="a buyer's id; or 192.0.2.7, 192.0.2.0/24, 2001:db8::/48")
    for part in (block, unblock, parts.add_parser("blocks", help="all blocks in force")):
        part.add_argument("--json", action="store_true", help="print JSON")
        add_data_dir(part)


async def run(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0, or 1 for a block that was to be taken away and is not there. Raises Fault."""
    async with open_desk(settings) as desk:
        books = AccessBooks(desk.store, desk.ledger)
        if args.part == "channel":
            await _channel(ChannelDesk(books, settings.signing_secrets), args)
            return 0
        return await _block(BlockDesk(books), args)


async def _channel(desk: ChannelDesk, args: argparse.Namespace) -> None:
    done: Any
    if args.action == "add":
        campaigns = _campaigns(args.campaigns)
        values = {"channel": args.channel, "campaigns": campaigns, "rates": _rates(args.rate)}
        done = await desk.add(_convert(values | {"kind": "signing" if args.signing else "bearer"}, ChannelSpec))
    elif args.action == "rotate":
        if args.signing and args.bearer:
            raise Invalid("one of them", "--signing, --bearer")
        kind = "signing" if args.signing else "bearer" if args.bearer else None
        wanted = _convert({"keep_s": seconds(args.keep, "--keep", MAX_KEEP_S), "kind": kind}, Rotation)
        done = await desk.rotate(args.channel, wanted)
    elif args.action == "revoke":
        try:
            done = await desk.revoke(args.channel, args.key)
        except Invalid as exc:
            raise Invalid(exc.detail, "--key") from exc
    elif args.action == "set":
        if args.campaigns is None and args.rate is None:
            raise Invalid("one of them is needed", "--campaigns, --rate")
        values = {} if args.campaigns is None else {"campaigns": _campaigns(args.campaigns)}
        values |= {} if args.rate is None else {"rates": _rates(args.rate)}
        done = await desk.set(args.channel, _convert(values, ChannelChange))
    else:
        done = await desk.list()
    if not getattr(done, "in_force", True):
        print(f"rushgate: {LATER}", file=sys.stderr)
    if args.json:
        print(msgspec.json.encode(done).decode())
    elif isinstance(done, NewKey):
        _print_key(done, args)
    else:
        _print_channels(done if isinstance(done, list) else [done])


async def _block(desk: BlockDesk, args: argparse.Namespace) -> int:
    if args.part == "blocks":
        blocks = await desk.list()
        if args.json:
            print(msgspec.json.encode(blocks).decode())
        else:
            _print_blocks(blocks)
        return 0
    if args.part == "block":
        for_s = None if args.for_ is None else seconds(args.for_, "--for", MAX_FOR_S)
        values = {"kind": args.kind, "value": args.value, "for_s": for_s, "reason": args.reason}
        block = await desk.put(_convert(values, BlockSpec))
        told, status, in_force = f"{block.kind} {block.value} is blocked{_end(block)}", 0, block.in_force
        answer: Any = block
    else:
        was, in_force = await desk.drop(args.kind, args.value)
        told = f"{args.kind} {args.value} is not blocked" + (" any more" if was else "; it was not before")
        status = 0 if was else 1
        answer = {"kind": args.kind, "value": args.value, "was": was, "in_force": in_force}
    if not in_force:
        print(f"rushgate: {LATER}", file=sys.stderr)
    print(msgspec.json.encode(answer).decode() if args.json else told)
    return status


def seconds(text: str, field: str, most_s: float) -> float:
    """The seconds of `90s`, `15m`, `24h` or `7d`. Raises Invalid."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text, re.ASCII)
    if not found:
        raise Invalid("must be a whole number and s, m, h or d, such as 24h", field)
    value = float(int(found[1]) * UNITS[found[2]])
    if value > most_s:
        raise Invalid(f"at most {most_s / UNITS['d']:g}d", field)
    return value


def _campaigns(text: str | None) -> list[str] | None:
    return None if text in (None, "all") else [name.strip() for name in str(text).split(",")]


def _rates(text: str | None) -> dict[str, str]:
    if text in (None, "none"):
        return {}
    pairs = [part.strip().partition("=") for part in str(text).split(",")]
    return {kind: rate for kind, _, rate in pairs}


def _convert(values: dict[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as exc:
        field, why = explain(exc)
        names = {"channel": "NAME", "value": "VALUE", "keep_s": "--keep", "for_s": "--for", "reason": "--reason"}
        raise Invalid(why, names.get(field, "--campaigns" if field.startswith("campaigns") else field)) from exc


def _print_key(new: NewKey, args: argparse.Namespace) -> None:
    what = "signing key" if new.kind == "signing" else "key"
    print(f"{what} {new.key_id} of channel {new.channel}; it is shown this once:")
    print(new.key)
    if args.action == "rotate":
        ends = "is over now" if args.keep.strip("0") in ("s", "m", "h", "d") else f"still opens for {args.keep}"
        print(f"every other key of the channel {ends}")


def _print_channels(channels: list[Channel]) -> None:
    if not channels:
        print("no channel was added; those of RUSHGATE_CHANNEL_KEYS are not listed")
        return
    for one in channels:
        campaigns = "all campaigns" if one.campaigns is None else f"campaigns: {', '.join(one.campaigns) or 'none'}"
        rates = ", ".join(f"{kind}={rate}" for kind, rate in sorted(one.rates.items()))
        print(f"{one.channel}: {one.state}; {campaigns}{f'; rates: {rates}' if rates else ''}")
        for key in one.keys:
            print(f"    {key.key_id}  {key.kind:7}  made {_time(key.created_at)} UTC  {_state(key)}")


def _print_blocks(blocks: list[Block]) -> None:
    if not blocks:
        print("nobody is blocked")
        return
    table = Table("kind", "value", "until (UTC)", "since (UTC)", "reason")
    for one in blocks:
        until = "for good" if one.until_at is None else _time(one.until_at)
        table.add_row(one.kind, one.value, until, _time(one.created_at), one.reason or "-")
    Console().print(table)


def _state(key: Key) -> str:
    return f"until {_time(key.expires_at)}" if key.state == "expiring" and key.expires_at else key.state


def _end(block: Block) -> str:
    return "" if block.until_at is None else f" until {_time(block.until_at)} UTC"


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
