"""`make run`: the stack, the sample campaign, a real rush over HTTP, every order to its end, the audit.

Then it goes on serving.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
from rich.console import Console

from core.errors import CampaignUnknown, ConfigInvalid, Fault
from core.model import CampaignSpec
from core.settings import Settings
from loadtest.campaign import RushError
from loadtest.display import RushDisplay, print_report
from loadtest.options import RushOptions
from loadtest.partners_options import Buyers
from loadtest.report import RushReport
from loadtest.rush import rush
from lua.keys import home_shards
from ops.campaign_commands import print_audit, read_campaign
from ops.course import Course
from ops.course_display import CourseDisplay, print_course, still_open
from ops.desk import Desk, open_desk
from ops.lag import LagWatch
from ops.stack import Stack, running
from ops.up import first_of, stop_signal

SAMPLE = Path(__file__).resolve().parent.parent / "deploy" / "sample" / "campaign.toml"
MAX_BUYERS = 1_000_000
CONNECTIONS = 256
PAY_WITHIN_S = 8  # in place of the file's own: nobody would wait a quarter of an hour for the expired orders
AFTER_SALES_S = 1  # likewise
END_WITHIN_S = 300.0


class RushFailed(Fault):
    """The rush of the demonstration could not be sent."""

    code = "rush_failed"


def add_arguments(part: argparse.ArgumentParser) -> None:
    """The flags of the demonstration, beside those of the stack."""
    part.add_argument("--once", action="store_true", help="exit after the audit: 0 only if all is well")
    part.add_argument("--buyers", type=int, default=20_000, help="how many come (default: %(default)s)")
    part.add_argument("--campaign-file", type=Path, default=SAMPLE, help="TOML (default: %(default)s)")
    part.add_argument("--pay-within-s", type=int, default=PAY_WITHIN_S, help="time to pay (default: %(default)s)")
    part.add_argument(
        "--end-within-s",
        type=float,
        default=END_WITHIN_S,
        help="longest wait for every order to come to its end, after the rush (default: %(default)s)",
    )


async def demo(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0 if every order came to its end and the audit was ok, and, without --once, a signal ended it."""
    name, spec = read_campaign(args.campaign_file, None)
    if not 1 <= args.buyers <= MAX_BUYERS:
        raise ConfigInvalid(f"--buyers: {args.buyers} is not between 1 and {MAX_BUYERS:,}")
    if not 1 <= args.pay_within_s <= 3_600:
        raise ConfigInvalid(f"--pay-within-s: {args.pay_within_s} is not between 1 and 3,600")
    if not 1 <= args.end_within_s <= 86_400:
        raise ConfigInvalid(f"--end-within-s: {args.end_within_s} is not between 1 and 86,400")
    foreign = settings.store_url or settings.ledger_dsn  # only where both are embedded, secrets are drawn
    if foreign and not (settings.channel_keys and settings.admin_token):
        raise ConfigInvalid(
            "RUSHGATE_CHANNEL_KEYS and RUSHGATE_ADMIN_TOKEN must be set where store or ledger is not the embedded one"
        )
    if args.once:  # nobody looks, and it would cost the figures
        settings = settings.with_values(console="off")
    console = Console()
    with stop_signal() as stopping:
        result: list[int] = []
        stop = asyncio.create_task(stopping.wait())
        serving = asyncio.create_task(_demo(settings, name, spec, args, console, result))
        await first_of(stop, serving)
        if stopping.is_set():
            console.print("stopped.")
    return result[0] if result else 130


async def _demo(
    settings: Settings, name: str, spec: CampaignSpec, args: argparse.Namespace, console: Console, result: list[int]
) -> None:
    console.print("starting store, ledger, gateway, workers and partners ...")
    async with running(settings, play=True) as stack, open_desk(stack.settings) as desk:
        name = await _free_name(desk, name)
        options = _options(stack, name, args.buyers)
        given = spec
        spec = msgspec.structs.replace(spec, pay_within_s=args.pay_within_s, after_sales_s=AFTER_SALES_S)
        await desk.campaigns.put(name, spec)
        await desk.campaigns.open(name)
        units = sum(s.stock for s in spec.skus)
        lines = [
            f"gateway at {stack.gateway}; campaign {name}: {units:,} units, {args.buyers:,} buyers",
            f"{spec.pay_within_s} s to pay and {spec.after_sales_s} s for returns, where {args.campaign_file.name} has "
            f"{given.pay_within_s:,} and {given.after_sales_s:,}",
            *([f"console at {stack.console}; log in with the admin token (secrets.json)"] if stack.console else []),
            _partners_line(stack) + "\n",
        ]
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)
        watch = LagWatch(desk, name, home_shards(name, spec.spread, stack.settings.shards))
        async with watch.watching():
            with RushDisplay(console, f"Rush on {name}") as display:
                try:
                    report = await rush(options, display.update)
                except RushError as exc:
                    raise RushFailed(str(exc)) from exc
        print_report(report, console, watch.rows())
        console.print()
        well = await _to_the_end(Course(desk, spec, stack.settings.shards, options, stack.played), args, report, units,
                                 console)  # fmt: skip
        audit = await desk.auditor.audit(name)
        console.print()
        print_audit(audit, console)
        result.append(0 if audit.ok and not audit.unsold and report.ok and well else 1)
        if not args.once:
            _what_next(stack, name, spec, report, console)
            await stack.supervisor.wait()


def _partners_line(stack: Stack) -> str:
    if not stack.played:
        return f"partners at {stack.settings.partners_url}"
    buyers = Buyers()
    return (
        f"partners at {stack.played}, played; of the buyers {buyers.pay:.0%} pay,\n"
        f"{buyers.cancel:.0%} cancel, {buyers.ignore:.0%} do nothing, {buyers.pay_late:.0%} pay late"
    )


async def _to_the_end(
    course: Course, args: argparse.Namespace, report: RushReport, stock: int, console: Console
) -> bool:
    """Whether every order came to its end with nothing left to sell, hold or send, and no answer was inconsistent."""
    with CourseDisplay(console, course.flow) as display:
        try:
            standing = await course.run(args.end_within_s, display.show)
        except RushError as exc:
            raise RushFailed(str(exc)) from exc
    unsent = await course.unsent()
    print_course(course, len(report.accepted_orders), await course.units(), stock, await course.times(),
                 standing, unsent, console)  # fmt: skip
    if not course.over:
        still = still_open(standing, unsent, course.flow)
        print(f"rushgate: not at the end after {args.end_within_s:g} s: {still}", file=sys.stderr)
    return course.over and not unsent.dead and all(crowd.ok for crowd in course.crowds)


def _options(stack: Stack, name: str, buyers: int) -> RushOptions:
    try:
        return RushOptions(
            url=stack.gateway, campaign=name, channel_key=stack.channel_key, buyers=buyers, connections=CONNECTIONS
        )
    except ValueError as exc:
        raise ConfigInvalid(f"the rush cannot be sent: {exc}") from exc


async def _free_name(desk: Desk, name: str) -> str:
    """`name`, or with a number behind it: every demonstration has a campaign of its own."""
    for n in range(1, 10_000):
        candidate = name if n == 1 else f"{name}-{n}"
        try:
            await desk.campaigns.show(candidate)
        except CampaignUnknown:
            return candidate
    raise ConfigInvalid("10,000 demonstrations are in this data directory: `make clean` makes a fresh one")


def _what_next(stack: Stack, name: str, spec: CampaignSpec, report: RushReport, console: Console) -> None:
    """Three lines for a shell, that work as printed."""
    url, sku = stack.gateway, spec.skus[0].sku
    curl = "curl -s -w '\\n'"  # our answers end without a newline
    admin = f"-H 'Authorization: Bearer {stack.settings.admin_token}'"
    channel = f"-H 'Authorization: Bearer {stack.channel_key}'"
    lines = [
        "# put 10 more units on sale",
        f'{curl} {url}/v1/admin/campaigns/{name}/restock {admin} -d \'{{"id":"more-1","sku":"{sku}","units":10}}\'',
        "# buy one of them, a moment later as the SKU was empty (the same key again gives the same order)",
        "sleep 1",
        f"{curl} {url}/v1/campaigns/{name}/orders {channel} -H 'Idempotency-Key: my-first-order' "
        f'-d \'{{"buyer_id":"me","items":[{{"sku":"{sku}","quantity":1}}]}}\'',
    ]
    if report.accepted_orders:
        lines += [
            "# where is the first order of the rush",
            f"{curl} {url}/v1/orders/{report.accepted_orders[0].order_id} {channel}",
        ]
    console.print("\nIt goes on serving. Try, in another terminal:\n", highlight=False)
    for line in lines:
        print(line)
    print("\nCtrl-C stops everything.", flush=True)
