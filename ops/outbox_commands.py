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

from core.errors import Invalid, StoreUnavailable
from core.flows.table import TOPICS
from core.ids import parse, shard_of
from core.ledger.pool import ask
from core.ledger.queries import query
from core.settings import Settings
from core.wire import Header, read_hold, write_entry
from lua.keys import intake_key, sale_keys
from lua.scripts import Scripts
from ops.campaign_commands import add_data_dir
from ops.desk import Desk, open_desk
from ops.order_display import many
from ops.outbox_display import print_rows, row_of

PARTS = ("outbox", "dead-letters")
LIMIT = 50
ORDERS = "orders"  # in place of a topic: what the ledger could not take
AGAIN = "make due now what waits after a failed attempt, with all its attempts before it; the rest is due already"
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
         (("list", "print them, the oldest first"), ("replay", AGAIN))),
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
            return await _hasten(desk, which)
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
        raise Invalid("one of them is needed: an order, a topic, or all there are", "--order, --topic, --all")
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
        "count_outbox": query("count_outbox"),
        "hasten_outbox": query("hasten_outbox"),
        "replay_messages": query("replay_messages"),
        "drop_messages": query("drop_messages"),
    }[name]
    return list(await ask(lambda: desk.ledger.fetch(text, *params)))


def _told(what: str, rows: list[asyncpg.Record]) -> int:
    print(f"{many(len(rows), 'message')} {what}")
    return 0


async def _hasten(desk: Desk, which: Which) -> int:
    """What waited for its next attempt is due; the rest needs no help, or cannot have any, and is counted."""
    [before] = await _fetch(desk, "count_outbox", *which)
    changed = len(await _fetch(desk, "hasten_outbox", *which))
    told = [f"{many(changed, 'message')} made due now"]
    told += [f"{before['due']:,} due already"] if before["due"] else []
    told += [f"{before['taken']:,} with a relay"] if before["taken"] else []
    print(", ".join(told))
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
    now = datetime.now(UTC)
    print_rows([row_of(row, now) for row in rows], Console())
    return 0


async def _orders(desk: Desk, action: str, which: Which) -> int:
    """Dead orders go back into the intake, or are given up."""
    done = kept = 0
    for letter in await _fetch(desk, "list_dead_letters", which.shard, which.order_id, MANY):
        why = await (replay_order if action == "replay" else drop_order)(desk, letter)
        if why:
            print(f"entry {letter['entry_id']}, place {letter['place']}, of shard {letter['shard']} stays: {why}")
            kept += 1
        else:
            done += 1
    print(f"{many(done, 'order')} {'back in the intake' if action == 'replay' else 'dropped'}")
    return 1 if kept else 0


async def replay_order(desk: Desk, letter: asyncpg.Record) -> str:
    """The order stands in the intake again, with its number and its times; or why that cannot be. It may stand there
    twice: the ledger takes it once. Claimed first, so that nobody gives its units away meanwhile."""
    if letter["place"] < 0 or letter["order_id"] is None:
        return "it is no order that can be read"
    order_id, campaign = letter["order_id"].bytes, letter["campaign"]
    keys = sale_keys(letter["shard"], campaign)
    [hold] = await _tell(desk, "HGET", keys.holds, order_id)
    if hold is None:
        return "the store has no hold of it any more"
    [epoch] = await _tell(desk, "HGET", keys.meta, "epoch")
    if epoch is None:
        return f"campaign {campaign} is out of service until it is rebuilt"
    key = (letter["shard"], letter["entry_id"], letter["place"])
    if not await ask(lambda: desk.ledger.fetchrow(query("replay_dead_letter"), *key)):
        return "somebody gave it up just now"
    _, accepted_ms, pay_by_ms = read_hold(hold)
    header = Header(campaign, int(epoch), accepted_ms, pay_by_ms, letter["seq"])
    fields = write_entry(header, [(order_id, letter["payload"])])
    await _tell(desk, "XADD", intake_key(letter["shard"]), "*", *fields)
    await ask(lambda: desk.ledger.execute(query("end_dead_letter"), *key))
    return ""


async def drop_order(desk: Desk, letter: asyncpg.Record) -> str:
    """The order is given up on record, then its hold is released, if there is one; or why that cannot be."""
    key = (letter["shard"], letter["entry_id"], letter["place"])
    if not await ask(lambda: desk.ledger.fetchrow(query("drop_dead_letter"), *key)):
        return "somebody replays it, or did: `dead-letters replay` finishes that"
    if letter["order_id"] is None:
        return ""
    keys = sale_keys(letter["shard"], letter["campaign"])
    # A rebuild puts its hold under a newer epoch. Broken off here, the reconcile worker releases it.
    [epoch] = await _tell(desk, "HGET", keys.meta, "epoch")
    codes = await Scripts(desk.store).release(keys, int(epoch or 0), [letter["order_id"].bytes])
    return "" if codes is not None else f"the store does not hold {letter['campaign']}"


async def _tell(desk: Desk, *command: bytes | str | int) -> list[Any]:
    replies = await desk.store.exchange([command])
    for reply in replies:
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"the store answers {reply}")
    return list(replies)
