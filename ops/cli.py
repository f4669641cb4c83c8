"""The command `rushgate`. Its parts: docs/operations.md."""

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence

import uvloop

import gateway.process
import workers.process
from core.errors import ConfigInvalid, Fault, Invalid
from core.ledger.migrate import migrate
from core.settings import Settings
from loadtest import command as rush_command
from loadtest import partners_command
from ops import campaign_commands, check_command, demo, doctor, logs, order_commands, outbox_commands, up
from ops import rebuild_commands as rebuilding
from ops.desk import command_place, connect_ledger
from ops.processes import EX_CONFIG

EX_USAGE = 2  # argparse's own


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

    part = parts.add_parser("gateway", help="one gateway process")
    part.add_argument("--fd", type=int, help="a listening socket that was inherited, instead of host and port")
    part = parts.add_parser("worker", help="one worker process")
    part.add_argument(
        "kind",
        choices=list(workers.process.KINDS),
        help="ledger: drains the intake into the ledger; expiry: what time brings about (orders not paid, receipts not "
        "confirmed, after-sales windows); relay: carries messages from the outbox to the store and to partners; "
        "reconcile: audits all the time, mends, raises alerts",
    )
    part = parts.add_parser("migrate", help="bring the ledger's schema to where this program wants it")
    campaign_commands.add_data_dir(part)
    part = parts.add_parser("doctor", help="check settings, store, ledger and disk, and say what is wrong")
    part.add_argument("--json", action="store_true", help="print JSON")
    campaign_commands.add_data_dir(part)

    campaign_commands.add_arguments(parts)
    order_commands.add_arguments(parts)
    outbox_commands.add_arguments(parts)
    rebuilding.add_arguments(parts)
    check_command.add_arguments(parts)
    part = parts.add_parser("rush", help="send an open-loop rush to any gateway and print what came back")
    rush_command.add_arguments(part)
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
    if args.part == "partners":
        return partners_command.run_from_args(args)
    if args.part in ("up", "demo"):
        settings = _stack_settings(args)
        logs.set_up("warning" if args.part == "demo" else settings.log_level)
        work = up.up(settings, play=args.partners) if args.part == "up" else demo.demo(settings, args)
        return _run(work)
    if args.part in ("gateway", "worker"):
        settings = Settings.from_env(os.environ)
        logs.set_up(settings.log_level)
        if args.part == "gateway":
            gateway.process.run(settings, args.fd)
        else:
            workers.process.run(settings, args.kind)
        return 0
    logs.set_up("warning")
    if args.part == "check":
        return check_command.run(args)
    if args.part == "doctor":
        return _run(doctor.doctor(os.environ, args.data_dir, as_json=args.json))
    place = command_place(os.environ, args.data_dir)
    with place.explained():
        if args.part == "migrate":
            return _run(_migrate(place.settings))
        if args.part == "order":
            return _run(order_commands.run(place.settings, args))
        if args.part in outbox_commands.PARTS:
            return _run(outbox_commands.run(place.settings, args))
        if args.part == "rebuild":
            return _run(rebuilding.run(place.settings, args))
        return _run(campaign_commands.run(place.settings, args))


def _run(work: Coroutine[object, object, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _is_argument(field: str) -> bool:
    """Whether the field is of the command line: written as its help writes it, `--line` or `UNITS`. Fields of files and
    of what the ledger knows are in lower case."""
    return field.startswith("--") or field.isupper()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 no (e.g. an audit that is not ok), 2 wrong usage, 78 wrong settings, 130 Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        return run(args)
    except ConfigInvalid as exc:
        print(f"rushgate: {exc.detail}", file=sys.stderr)
        return EX_CONFIG
    except Fault as exc:
        field = exc.field if isinstance(exc, Invalid) else ""
        print(f"rushgate: {field}: {exc.detail}" if field else f"rushgate: {exc.detail}", file=sys.stderr)
        return EX_USAGE if _is_argument(field) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; nobody is left to tell.
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
