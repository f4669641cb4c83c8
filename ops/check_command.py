"""`rushgate check HISTORY`: judges a recorded run by the 12 invariants, with ledger and store as they ended."""

import argparse
import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from core.errors import Invalid
from core.settings import Settings
from loadtest.history import History, HistoryInvalid, read_history
from loadtest.history_check import Bounds, Verdict, Violation, check
from loadtest.history_final import Final, read_final, write_final
from ops.campaign_commands import add_data_dir
from ops.check_facts import Collector
from ops.desk import command_place, open_desk

SHOWN = 20  # violations that are printed; all are counted


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of the command."""
    part = parts.add_parser("check", help="judge a recorded history by the 12 invariants, with ledger and store")
    part.add_argument("history", type=Path, help="what the clients recorded")
    part.add_argument("--final", type=Path, help="facts that were saved, instead of those of the running stack")
    part.add_argument("--save-final", type=Path, metavar="FILE", help="keep the facts of the running stack")
    part.add_argument(
        "--sells-out", action="store_true", help="demand exceeded the stock to the end: unsold units are wrong"
    )
    part.add_argument(
        "--refusal-ms",
        type=int,
        default=Bounds().refusal_ms,
        help="longest wait for a 429 or 503 (default: %(default)s)",
    )
    part.add_argument("--json", action="store_true", help="print JSON")
    add_data_dir(part)


def run(args: argparse.Namespace) -> int:
    """Exit status 0, or 1 if an invariant is violated. Raises Fault."""
    try:
        history = read_history(args.history)
        # Without partners their messages wait by design, so that what waits is not judged.
        drained = True
        if args.final is not None:
            final = read_final(args.final)
        else:
            place = command_place(os.environ, args.data_dir)
            drained = bool(place.settings.partners_url)
            with place.explained():
                final = asyncio.run(facts_of(place.settings, history.header.campaign))
        if args.save_final is not None:
            write_final(args.save_final, final)
        verdict = check(history, final, Bounds(drained=drained, sells_out=args.sells_out, refusal_ms=args.refusal_ms))
    except (OSError, HistoryInvalid, msgspec.ValidationError, msgspec.DecodeError, ValueError) as exc:
        raise Invalid(str(exc)) from exc
    if args.json:
        print(msgspec.json.encode(verdict).decode())
    else:
        print("\n".join(lines(verdict, history, drained=drained)))
    return 1 if verdict.violations else 0


async def facts_of(settings: Settings, campaign: str) -> Final:
    """The facts of a campaign that stands still. Raises: as `Collector.collect`."""
    async with open_desk(settings) as desk:
        return await Collector(desk, campaign, settings.shards).collect()


def lines(verdict: Verdict, history: History, *, drained: bool = True) -> Iterator[str]:
    """The verdict for people: figures, what could not be judged, each violation with the operations that show it."""
    stats = verdict.stats
    yield f"campaign {history.header.campaign}: {sum(stats.operations.values()):,} operations, {stats.orders:,} orders"
    yield "  " + ", ".join(f"{name} {count:,}" for name, count in stats.operations.items())
    if stats.faults:
        yield "  faults: " + ", ".join(f"{name} {count}" for name, count in sorted(stats.faults.items()))
        heals = sorted(h.seconds for h in stats.heals if h.seconds is not None)
        if heals:
            yield f"  a definite answer after a fault: p50 {heals[len(heals) // 2]:.2f} s, max {heals[-1]:.2f} s"
    for words in stats.unjudged:
        yield f"  not judged: {words}"
    if not drained:
        yield "  not judged: 12: nobody plays the partners, so their messages wait by design"
    total = sum(stats.violations.values())
    if not total:
        yield "no invariant is violated"
        return
    yield f"{total:,} violations: " + ", ".join(f"{n}: {count:,}" for n, count in sorted(stats.violations.items()))
    for violation in verdict.violations[:SHOWN]:
        yield from shown(violation, history)
    if len(verdict.violations) > SHOWN:
        yield f"  … and {total - SHOWN:,} more"


def shown(violation: Violation, history: History) -> Iterator[str]:
    """One violation with its operations, as they stand in the history."""
    yield f"  invariant {violation.invariant}, {violation.what}: {violation.words}"
    wanted = set(violation.operations)
    for op in history.operations if wanted else ():
        if op.ask.n in wanted:
            yield "    " + msgspec.json.encode(op.ask).decode()
            yield "    " + (msgspec.json.encode(op.answer).decode() if op.answer else "no answer")
