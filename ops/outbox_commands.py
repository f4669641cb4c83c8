"""`rushgate outbox …` and `rushgate dead-letters …`: what waits, what nobody could deliver, and what becomes of it.

Dead are messages (of the outbox, after their last attempt) and orders (of the intake, that the ledger could not take).
"""

import argparse
from datetime import UTC, datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from core.errors import Invalid, StoreUnavailable
from core.flows.table import TOPICS
from core.ids import parse, shard_of
from core.ledger.pool import ask
from core.ledger.queries import query
from core.settings import Settings
from core.wire import read_hold
from lua.keys import intake_key, sale_keys
from lua.scripts import Scripts
from ops.campaign_commands import add_data_dir
from ops.desk import Desk, open_desk

PARTS = ("outbox", "dead-letters")
LIMIT = 50
ORDERS = "orders"  # in place of a topic: what the ledger could not take
MANY = 10_000  # dead orders in one call


class Which(NamedTuple):
    """What a command is about; None = all."""

    shard: int | None
    order_id: UUID | None
    topic: str | None


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of both commands."""
    for name, text, actions in (
        ("outbox", "messages that wait: list them, or try them now",
         (("list", "print them, the oldest first"), ("replay", "try at once what failed before, with all attempts"))),
        ("dead-letters", "messages that nobody could deliver, and orders that the ledger could not take",
         (("list", "print them, the oldest first"), ("replay", "put them back: into the outbox, into the intake"),
          ("drop", "give them up for good; the units of a dropped order are on sale again"))),
    ):  # fmt: skip
        part = parts.add_parser(name, help=text)
        add_data_dir(part)
        chosen = part.add_subparsers(dest="action", required=True, metavar="ACTION")
        topics = [*TOPICS, ORDERS] if name == "dead-letters" else list(TOPICS)
        for action, help_text in actions:
            one = chosen.add_parser(action, help=help_text)
            add_data_dir(one, argparse.SUPPRESS)
            one.add_argument("--order", metavar="ID", help="only of this order")
            one.add_argument("--topic", choices=topics, metavar="TOPIC", help=f"only this: {', '.join(topics)}")
            if action == "list":
                one.add_argument("--limit", type=int, default=LIMIT, help="most lines (default: %(default)s)")
                one.add_argument("--json", action="store_true", help="print JSON, a line each")
            else:
                one.add_argument("--all", action="store_true", help="all there are; otherwise name an order or a topic")


async def run(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0, or 1 if something could not be put back. Raises Fault."""
    which = _which(args)
    async with open_desk(settings) as desk:
        if args.action == "list":
            return await _list(desk, args, which)
        if args.part == "outbox":
            return _told("due now", await _fetch(desk, "hasten_outbox", *which))
        name = "replay_messages" if args.action == "replay" else "drop_messages"
        status = 0
        if which.topic != ORDERS:
            _told("back in the outbox" if args.action == "replay" else "dropped", await _fetch(desk, name, *which))
        if which.topic in (None, ORDERS):
            status = await _orders(desk, args.action, which)
        return status


def _which(args: argparse.Namespace) -> Which:
    """Raises Invalid."""
    if args.action != "list" and not (args.order or args.topic or args.all):
        raise Invalid("name an order (--order), a topic (--topic) or --all")
    if args.action == "list" and not 1 <= args.limit <= MANY:
        raise Invalid(f"must be 1 to {MANY:,}", "--limit")
    if not args.order:
        return Which(None, None, args.topic)
    order_id = parse(args.order)
    if order_id is None:
        raise Invalid("is no order id", "--order")
    return Which(shard_of(order_id), UUID(order_id), args.topic)


async def _fetch(desk: Desk, name: str, *params: Any) -> list[asyncpg.Record]:
    text = {
        "list_outbox": query("list_outbox"),
        "list_dead_messages": query("list_dead_messages"),
        "list_dead_letters": query("list_dead_letters"),
        "hasten_outbox": query("hasten_outbox"),
        "replay_messages": query("replay_messages"),
        "drop_messages": query("drop_messages"),
    }[name]
    return list(await ask(lambda: desk.ledger.fetch(text, *params)))


def _told(what: str, rows: list[asyncpg.Record]) -> int:
    print(f"{len(rows)} messages {what}")
    return 0


async def _list(desk: Desk, args: argparse.Namespace, which: Which) -> int:
    rows: list[dict[str, Any]] = []
    if args.part == "outbox":
        rows = [dict(r) for r in await _fetch(desk, "list_outbox", *which, args.limit)]
    else:
        if which.topic != ORDERS:
            rows = [dict(r) for r in await _fetch(desk, "list_dead_messages", *which, args.limit)]
        if which.topic in (None, ORDERS):
            for letter in await _fetch(desk, "list_dead_letters", which.shard, which.order_id, args.limit - len(rows)):
                known = {k: letter[k] for k in ("shard", "order_id", "campaign", "seq", "entry_id", "at", "reason")}
                rows.append(known | {"topic": ORDERS})
    if args.json:
        for row in rows:
            print(msgspec.json.encode({k: str(v) if isinstance(v, UUID) else v for k, v in row.items()}).decode())
        return 0
    table = Table("order", "topic", "version", "came to be", "attempts", "next", "why", box=None, pad_edge=False)
    for row in rows:
        due = row.get("due_at")
        table.add_row(
            str(row["order_id"] or f"entry {row['entry_id']}"), row["topic"], str(row.get("version", "")),
            row["at"].astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"), str(row.get("attempts", "")),
            "" if due is None else _when(due), row.get("reason") or row.get("error") or "",
        )  # fmt: skip
    Console().print(table if rows else "none")
    return 0


def _when(due: datetime) -> str:
    wait_s = (due - datetime.now(UTC)).total_seconds()
    return "now" if wait_s <= 0 else f"in {wait_s:.0f} s"


async def _orders(desk: Desk, action: str, which: Which) -> int:
    """Dead orders go back into the intake, or are dropped."""
    done = kept = 0
    text = query("end_dead_letter") if action == "replay" else query("drop_dead_letter")
    for letter in await _fetch(desk, "list_dead_letters", which.shard, which.order_id, MANY):
        why = await (_replay if action == "replay" else _release)(desk, letter)
        if why:
            print(f"entry {letter['entry_id']}, place {letter['place']}, of shard {letter['shard']} stays: {why}")
            kept += 1
            continue
        key = (letter["shard"], letter["entry_id"], letter["place"])
        await ask(lambda key=key: desk.ledger.execute(text, *key))  # type: ignore[misc]
        done += 1
    print(f"{done} orders {'back in the intake' if action == 'replay' else 'dropped'}")
    return 1 if kept else 0


async def _replay(desk: Desk, letter: asyncpg.Record) -> str:
    """The order stands in the intake again, with its number and its times; or why that cannot be. It may stand there
    twice: the ledger takes it once."""
    if letter["place"] < 0 or letter["order_id"] is None:
        return "it is no order that can be read"
    order_id, campaign = letter["order_id"].bytes, letter["campaign"]
    keys = sale_keys(letter["shard"], campaign)
    [hold] = await _tell(desk, "HGET", keys.holds, order_id)
    if hold is None:
        return "the store has no hold of it any more"
    [epoch] = await _tell(desk, "HGET", keys.meta, "epoch")
    if epoch is None:
        return f"campaign {campaign} is being rebuilt"
    _, accepted_ms, pay_by_ms = read_hold(hold)
    header = f"1|{campaign}|{int(epoch)}|{accepted_ms}|{pay_by_ms}|{letter['seq']}"
    await _tell(desk, "XADD", intake_key(letter["shard"]), "*", "h", header, order_id, letter["payload"])
    return ""


async def _release(desk: Desk, letter: asyncpg.Record) -> str:
    """The hold of the order, if there is one, is released; or why that cannot be."""
    if letter["order_id"] is None:
        return ""
    keys = sale_keys(letter["shard"], letter["campaign"])
    [epoch] = await _tell(desk, "HGET", keys.meta, "epoch")  # a rebuild puts its hold under a newer one
    codes = await Scripts(desk.store).release(keys, int(epoch or 0), [letter["order_id"].bytes])
    return "" if codes is not None else f"the store does not hold {letter['campaign']}"


async def _tell(desk: Desk, *command: bytes | str | int) -> list[Any]:
    replies = await desk.store.exchange([command])
    for reply in replies:
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"the store answers {reply}")
    return list(replies)
