"""`rushgate order …`: one order's story, and its steps by an operator, straight to the ledger."""

import argparse

import msgspec
from rich.console import Console

from core.desk.moves import Moved
from core.desk.orders import OrderDesk
from core.desk.refunds import RefundDesk
from core.errors import Invalid, OrderUnknown
from core.ids import parse, text_of
from core.model import Refund, RefundRequest, explain
from core.settings import Settings
from gateway.replies import encode_json
from ops.campaign_commands import add_data_dir
from ops.desk import Desk, open_desk
from ops.order_display import plain, print_story
from ops.order_story import explain_unknown, read_story, where_now

WHO = "operator"  # the actor of the event
SIMPLE = {
    "cancel": "cancel an order; what was paid goes back",
    "suspend": "stop a paid order before it is picked",
    "resume": "let a suspended order go on",
}

DECISIONS = {
    "approve-refund": "approve a refund under review: it is asked of the payment centre",
    "reject-refund": "reject a refund under review",
    "confirm-refund": "the payment centre has paid back and never said so: take it as done",
}


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of the command."""
    part = parts.add_parser("order", help="show the whole story of an order, cancel, suspend, resume or refund it")
    add_data_dir(part)
    actions = part.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("show", help="print all there is of an order")
    action.add_argument("order", metavar="ID")
    action.add_argument("--json", action="store_true", help="print JSON")
    for name, text in SIMPLE.items():
        actions.add_parser(name, help=text).add_argument("order", metavar="ID")
    action = actions.add_parser("refund", help="pay money back; without an amount or lines: all that is left")
    action.add_argument("order", metavar="ID")
    of = action.add_mutually_exclusive_group()
    of.add_argument("--amount", type=int, metavar="N", help="minor units")
    of.add_argument("--line", action="append", metavar="SKU=QTY", help="units of a line; may be given again")
    action.add_argument("--reason", default="", metavar="TEXT", help="goes on record with the refund")
    for name, text in DECISIONS.items():
        action = actions.add_parser(name, help=text)
        action.add_argument("order", metavar="ID")
        action.add_argument("number", metavar="REFUND_NO", help="as `order show` has it")
    action = actions.add_parser("do", help="any other step that the order's flow gives an operator")
    action.add_argument("order", metavar="ID")
    action.add_argument("step", metavar="STEP", help="e.g. complete_early, reject_return, lost: docs/flows.md")
    for action in actions.choices.values():
        # Without a default: it would take the place of the value that stood before the action.
        add_data_dir(action, argparse.SUPPRESS)


async def run(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0. Raises Fault, e.g. NotAllowed with what is."""
    order_id = parse(args.order)
    if order_id is None:
        raise Invalid(f"{args.order!r} is no order id: 36 characters, as a 202 gave it", "ID")
    wanted = _wanted(args) if args.action == "refund" else None
    async with open_desk(settings) as desk:
        if args.action == "show":
            story = await read_story(desk, settings.shards, order_id)
            if args.json:
                print(encode_json(story).decode())
            else:
                print_story(story, Console())
            return 0
        try:
            done: Moved | Refund
            refunds = RefundDesk(desk.ledger, settings.shards)
            if wanted is not None:
                done = await refunds.grant(order_id, wanted, WHO)
            elif args.action in DECISIONS:
                decide = {
                    "approve-refund": refunds.approve,
                    "reject-refund": refunds.reject,
                    "confirm-refund": refunds.confirm,
                }[args.action]
                done = await decide(order_id, args.number, WHO)
            else:
                step = args.step if args.action == "do" else args.action
                done = await OrderDesk(desk.ledger, settings.shards).operate(order_id, step, WHO)
        except OrderUnknown as exc:
            raise await explain_unknown(desk, settings.shards, order_id) from exc
        await _tell(desk, order_id, done)
    return 0


def _wanted(args: argparse.Namespace) -> RefundRequest:
    """Raises Invalid."""
    values: dict[str, object] = {"amount": args.amount, "reason": args.reason}
    if args.line:
        values["lines"] = [_line(text) for text in args.line]
    try:
        return msgspec.convert(values, RefundRequest)
    except msgspec.ValidationError as exc:
        field, why = explain(exc)
        raise Invalid(why, f"--{field.partition('[')[0].removesuffix('s')}") from exc  # --amount, --line, --reason


def _line(text: str) -> dict[str, object]:
    sku, _, quantity = text.partition("=")
    if not (quantity.isascii() and quantity.isdigit() and len(quantity) < 10):
        raise Invalid(f"{text!r} must be SKU=QTY, e.g. phone-red=1", "--line")
    return {"sku": sku, "quantity": int(quantity)}


async def _tell(desk: Desk, order_id: bytes, done: Moved | Refund) -> None:
    """What was done, and where the order has come to."""
    now, flow = await where_now(desk, order_id)
    hint = ""
    if isinstance(done, Refund):
        reason = f" ({plain(done.reason).plain})" if done.reason else ""
        print(f"refund {done.refund_no} of {done.amount:,} {done.currency} in minor units: {done.state}{reason}")
        if done.repeated:
            hint = "it was asked for before, nothing more is paid back: with another --reason it is another refund"
        elif done.state == "approved" and "cancel" in flow.allowed(now.state, "operator"):
            hint = "the order goes on all the same: `rushgate order cancel` would stop it"
    else:
        now = done  # others may have moved it on meanwhile
    print(f"order {text_of(order_id)}: {now.state}, version {now.version} ({flow.name(now.state, 'operator')})")
    if hint:
        print(hint)
