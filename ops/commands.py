"""The parts of the command `rushgate`, but for the processes themselves (ops/serve.py): docs/operations.md."""

import argparse
import asyncio
import os
from collections.abc import Coroutine

import uvloop

from core.ledger.migrate import migrate
from core.settings import Settings
from loadtest import command as rush_command
from loadtest import merge_command, partners_command
from ops import (
    campaign_commands,
    channel_commands,
    check_command,
    demo,
    doctor,
    logs,
    metrics_command,
    order_commands,
    outbox_commands,
    room_commands,
    serve,
    tune_command,
    up,
    workers_command,
)
from ops import rebuild_commands as rebuilding
from ops.desk import command_place, connect_ledger


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="rushgate", description="Takes the orders of a flash sale: sells each unit once, loses no order."
    )
    parts = top.add_subparsers(dest="part", required=True, metavar="PART")

    part = parts.add_parser("up", help="the whole stack in the foreground; prints one line of JSON when it is ready")
    _stack_arguments(part)
    part.add_argument("--partners", action="store_true", help="play payment centre, warehouse and the others too")
    words = "the stack, the sample campaign, a rush of 20,000 buyers, every order to its end, and the audit"
    part = parts.add_parser("demo", help=words)
    _stack_arguments(part)
    demo.add_arguments(part)

    serve.add_arguments(parts)
    part = parts.add_parser("migrate", help="bring the ledger's schema to where this program wants it")
    campaign_commands.add_data_dir(part)
    part = parts.add_parser("doctor", help="check settings, store, ledger and disk, and say what is wrong")
    part.add_argument("--json", action="store_true", help="print JSON")
    campaign_commands.add_data_dir(part)

    campaign_commands.add_arguments(parts)
    order_commands.add_arguments(parts)
    outbox_commands.add_arguments(parts)
    channel_commands.add_arguments(parts)
    rebuilding.add_arguments(parts)
    room_commands.add_arguments(parts)
    check_command.add_arguments(parts)
    workers_command.add_arguments(parts)
    tune_command.add_arguments(parts)
    metrics_command.add_arguments(parts)
    part = parts.add_parser("rush", help="send an open-loop rush to any gateway and print what came back")
    rush_command.add_arguments(part)
    part = parts.add_parser("rush-merge", help="add up the latencies that several generators wrote with --hdr")
    merge_command.add_arguments(part)
    part = parts.add_parser("partners", help="play payment centre, warehouse and the other partners, for tests")
    partners_command.add_arguments(part)
    return top


def _stack_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--port", type=int, help="the gateway's port; 0 = a free one (RUSHGATE_PORT)")
    part.add_argument("--data-dir", help="folder of the embedded services (RUSHGATE_DATA_DIR)")
    part.add_argument("--gateway-workers", type=int, help="gateway processes (RUSHGATE_GATEWAY_WORKERS)")
    part.add_argument("--ledger-workers", type=int, help="ledger workers (RUSHGATE_LEDGER_WORKERS)")


def _stack_settings(args: argparse.Namespace) -> Settings:
    names = ("port", "data_dir", "gateway_workers", "ledger_workers")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return Settings.from_env(os.environ).with_values(**given)


async def _migrate(settings: Settings) -> int:
    connection = await connect_ledger(settings)
    try:
        names = await migrate(connection)
    finally:
        await connection.close()
    print("\n".join(f"applied {name}" for name in names) or "the schema is current")
    return 0


def run(args: argparse.Namespace) -> int:
    """The part that was asked for. Raises Fault."""
    if args.part == "rush":
        return rush_command.run_from_args(args)
    if args.part == "rush-merge":
        return merge_command.run_from_args(args)
    if args.part == "partners":
        return partners_command.run_from_args(args)
    if args.part in ("up", "demo"):
        settings = _stack_settings(args)
        logs.set_up("warning" if args.part == "demo" else settings.log_level, settings.log_format)
        work = up.up(settings, play=args.partners) if args.part == "up" else demo.demo(settings, args)
        return _run(work)
    if args.part in serve.PARTS:
        return serve.run(args)
    logs.set_up("warning")
    if args.part == "check":
        return check_command.run(args)
    if args.part == "doctor":
        return _run(doctor.doctor(os.environ, args.data_dir, as_json=args.json))
    if args.part == "scale":
        given = Settings.given(os.environ) | ({"data_dir": args.data_dir} if args.data_dir else {})
        return _run(workers_command.scale(Settings().with_values(**given), args))
    if args.part == "tune" and args.assume:
        return _run(tune_command.run(None, args))
    place = command_place(os.environ, args.data_dir)
    with place.explained():
        if args.part == "tune":
            return _run(tune_command.run(place, args))
        if args.part == "workers":
            return _run(workers_command.run(place, args))
        if args.part == metrics_command.NAME:
            return _run(metrics_command.run(place.settings, args))
        if args.part == "migrate":
            return _run(_migrate(place.settings))
        if args.part == "order":
            return _run(order_commands.run(place.settings, args))
        if args.part in outbox_commands.PARTS:
            return _run(outbox_commands.run(place.settings, args))
        if args.part in channel_commands.PARTS:
            return _run(channel_commands.run(place.settings, args))
        if args.part == "room":
            return _run(room_commands.run(place.settings, args))
        if args.part == "rebuild":
            return _run(rebuilding.run(place.settings, args))
        return _run(campaign_commands.run(place.settings, args))


def _run(work: Coroutine[object, object, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
