"""`rushgate campaign …` and `rushgate audit`: an operator's commands, straight to ledger and store."""

import argparse
import tomllib
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from core.desk.campaigns import Campaign
from core.errors import CampaignLost, ConfigInvalid, Invalid, Refused, StoreUnavailable
from core.flows import FLOWS
from core.model import AuditReport, CampaignName, CampaignSpec, Restock, explain
from core.settings import Settings
from lua.keys import home_shards, sale_keys
from lua.scripts import Scripts
from ops.desk import Desk, open_desk


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of both commands."""
    part = parts.add_parser("campaign", help="define, open, pause, close, restock or show a campaign")
    add_data_dir(part)
    actions = part.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("apply", help="define a campaign from a TOML file, or change one")
    action.add_argument("file", type=Path, help="TOML; its key `campaign` names the campaign")
    action.add_argument("--name", help="another name than the file's")
    for name, text in (
        ("open", "put a campaign on sale, or resume a paused one"),
        ("pause", "take no orders until it is opened again"),
        ("close", "end a campaign for good and withdraw what is left"),
        ("show", "print a campaign"),
    ):
        actions.add_parser(name, help=text).add_argument("campaign")
    action = actions.add_parser("restock", help="add units of a SKU, or withdraw unsold ones")
    action.add_argument("campaign")
    action.add_argument("sku", metavar="SKU")
    action.add_argument("units", metavar="UNITS", type=int, help="negative withdraws")
    action.add_argument("--id", help="the same id changes stock once, however often it is sent (default: a new one)")
    for action in actions.choices.values():
        # Without a default: it would take the place of the value that stood before the action.
        add_data_dir(action, argparse.SUPPRESS)
    part = parts.add_parser("audit", help="judge the balance of a campaign over store, intake and ledger")
    add_data_dir(part)
    part.add_argument("campaign")
    part.add_argument("--json", action="store_true", help="print JSON")


def add_data_dir(part: argparse.ArgumentParser, default: str | None = None) -> None:
    """The flag that says where the stack of a command runs."""
    part.add_argument("--data-dir", default=default, help="folder of the stack to work on (RUSHGATE_DATA_DIR)")


async def run(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0, or 1 if an audit is not ok. Raises Fault."""
    async with open_desk(settings) as desk:
        if args.part == "audit":
            try:
                report = await desk.auditor.audit(args.campaign)
            except CampaignLost as exc:
                raise CampaignLost(out_of_service(args.campaign, settings)) from exc
            if args.json:
                print(msgspec.json.encode(report).decode())
            else:
                print_audit(report, Console())
            return 0 if report.ok else 1
        await _campaign(desk, args, settings.shards)
    return 0


def out_of_service(campaign: str, settings: Settings) -> str:
    """Why there is nothing to audit, and what to do."""
    why = "the store does not hold it as the ledger has it"
    return f"campaign {campaign} is out of service: {why}; {remedy(campaign, settings)}"


def remedy(campaign: str, settings: Settings) -> str:
    """How a campaign that the store lost comes back, as settings and workers are."""
    by_hand = f"`rushgate rebuild {campaign}`"
    if settings.recovery == "auto" and settings.reconcile_workers:
        return f"a reconcile worker rebuilds it by itself; if that takes long: {by_hand}"
    return f"it waits for {by_hand}"


async def _campaign(desk: Desk, args: argparse.Namespace, shards: int) -> None:
    if args.action == "apply":
        name, spec = read_campaign(args.file, args.name)
        _print(await desk.campaigns.put(name, spec))
    elif args.action == "restock":
        values = {"id": args.id or uuid.uuid4().hex, "sku": args.sku, "units": args.units}
        try:
            change = msgspec.convert(values, Restock)
        except msgspec.ValidationError as exc:
            field, why = explain(exc)
            raise Invalid(why, "--id" if field == "id" else field.upper()) from exc
        if not change.units:
            raise Invalid("must not be 0", "UNITS")
        await _refuse_draft(desk, args.campaign)
        done = await desk.campaigns.restock(args.campaign, change)
        print(f"{done.units:+d} units of {done.sku} (id {done.id}{', repeated' if done.repeated else ''})")
    else:
        if args.action in ("pause", "close"):
            await _refuse_draft(desk, args.campaign)
        call = {
            "open": desk.campaigns.open,
            "pause": desk.campaigns.pause,
            "close": desk.campaigns.close,
            "show": desk.campaigns.show,
        }[args.action]
        campaign = await call(args.campaign)
        _print(campaign)
        if args.action == "show" and campaign.state != "draft":
            print("\n".join(await _stock_now(desk, campaign, shards)))


async def _refuse_draft(desk: Desk, campaign: str) -> None:
    if (await desk.campaigns.show(campaign)).state == "draft":
        raise Refused(f"campaign {campaign} is a draft: open it first")


def read_campaign(path: Path, name: str | None) -> tuple[str, CampaignSpec]:
    """The name and definition of a campaign file. Raises Invalid or ConfigInvalid, naming file and field."""
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigInvalid(f"{path} cannot be read: {exc}") from exc
    named = values.pop("campaign", None)
    try:
        name = msgspec.convert(name or named, CampaignName)
    except msgspec.ValidationError as exc:
        why = "1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit"
        raise (Invalid(why, "--name") if name else Invalid(f"{path}: campaign: {why}")) from exc
    try:
        return name, msgspec.convert(values, CampaignSpec)
    except msgspec.ValidationError as exc:
        field, why = explain(exc)
        if not field:  # said of the whole by CampaignSpec, whose sentences begin with the field
            field, _, why = why.partition(" ")
        raise Invalid(f"{path}: {field}: {why}") from exc


def _print(campaign: Campaign) -> None:
    spec = campaign.spec
    print(
        f"campaign {campaign.campaign}: {campaign.state}, version {campaign.version}, epoch {campaign.epoch}\n"
        f"  type     {_type(spec)}\n"
        f"  window   {spec.opens_at.isoformat()} to {spec.closes_at.isoformat()}, pay within {spec.pay_within_s} s\n"
        f"  limits   {_limits(spec)}\n"
        f"  rates    {', '.join(f'{text} per {kind}' for kind, text in spec.rates.given().items()) or 'as deployed'}\n"
        f"  channels {', '.join(spec.channels) if spec.channels else 'all'}; spread {spec.spread}\n"
        f"  admits   {_admission(spec)}"
    )
    for discount in spec.discounts:
        print(f"  discount {discount.off:,} off orders of {discount.min_amount:,} and more, in minor units")
    for sku in spec.skus:
        price = f"{sku.price:,} minor units of {spec.currency} each"
        print(f"  sku      {sku.sku}: {sku.name}, {sku.stock:,} units at first, {price}")


def _type(spec: CampaignSpec) -> str:
    """The order type; and, if its orders are shipped, the times after which they go on by themselves."""
    if not any(step.to == "shipped" for step in FLOWS[spec.order_type].steps):
        return spec.order_type
    return (
        f"{spec.order_type}; taken as received {spec.delivery_within_s:,} s after it was shipped,\n"
        f"           completed {spec.after_sales_s:,} s after it was received"
    )


async def _stock_now(desk: Desk, campaign: Campaign, shards: int) -> list[str]:
    """Lines on the units as the store has them now, or on why it does not say."""
    keys = [sale_keys(s, campaign.campaign) for s in home_shards(campaign.campaign, campaign.spec.spread, shards)]
    try:
        readings = await Scripts(desk.store).audit(keys)
    except StoreUnavailable as exc:
        return [f"  now      not known: {exc.detail}"]
    if any(r.meta.get("epoch") != str(campaign.epoch) for r in readings):
        return ["  now      not known: the store does not hold this campaign as the ledger has it"]
    lines = []
    for sku in campaign.spec.skus:
        units: Counter[str] = Counter()
        for r in readings:
            for word, found in (("left", r.left), ("held", r.held), ("sold", r.sold), ("allocation", r.allocation)):
                units[word] += found.get(sku.sku, 0)
        lines.append(f"  now      {sku.sku}: " + ", ".join(f"{word} {count:,}" for word, count in units.items()))
    return lines


def _admission(spec: CampaignSpec) -> str:
    """Who may order, by `admission`, `room` and `trusted_channels`."""
    if spec.admission == "open":
        return "with a channel's key, or a ticket"
    words = "with a ticket"
    if spec.admission == "room":
        rate = "auto" if spec.room.rate is None else f"{spec.room.rate:,} a second"
        guests = [f"guests of {spec.room.channel}"] if spec.room.channel else ["no guests"]
        guests += [f"{spec.room.pow_bits} bits of work"] * (spec.room.pow_bits > 0) + ["captcha"] * spec.room.captcha
        words = f"from the waiting room: {rate} at first; {', '.join(guests)}"
    return words + (f"; with their key: {', '.join(spec.trusted_channels)}" if spec.trusted_channels else "")


def _limits(spec: CampaignSpec) -> str:
    limits = [f"{units} per {kind}" for kind, units in msgspec.to_builtins(spec.limits).items()]
    limits += [f"{units:,} by channel {channel}" for channel, units in spec.channel_shares.items()]
    return ", ".join(limits) or "none"


def audit_line(report: AuditReport) -> str:
    """The one line that says it all."""
    names = ("accepted", "persisted", "oversold", "lost", "duplicated", "unsold")
    return f"audit: {'ok' if report.ok else 'NOT OK'} " + " ".join(f"{n}={getattr(report, n)}" for n in names)


def print_audit(report: AuditReport, console: Console) -> None:
    """The balance per SKU, what is wrong if anything is, and the line."""
    table = Table(title="Units", title_justify="left", title_style="bold")
    for heading in ("SKU", "allocation", "left", "held", "sold", "in flight"):
        table.add_column(heading, justify="left" if heading == "SKU" else "right")
    for s in report.skus:
        table.add_row(s.sku, *(f"{n:,}" for n in (s.allocation, s.left, s.held, s.sold, s.in_flight)))
    console.print(table)
    for finding in report.findings:
        console.print(f"  finding: {finding}", style="red", markup=False, highlight=False)
    extra = {
        "phantom": report.phantom,
        "over limit": report.over_limit,
        "in flight": report.in_flight,
        "dead letters": report.dead_lettered,
        "gap (lost by the store before a rebuild)": report.gap,
    }
    told = ", ".join(f"{name} {count:,}" for name, count in extra.items() if count)
    if told:
        console.print(f"  also: {told}", highlight=False)
    print(audit_line(report), flush=True)
