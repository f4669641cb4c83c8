"""`python -m tests.faults.nemesis --seed N --minutes M`: rounds until the time is over, then a table.

Round n has the seed N + n: `--seed N+n --rounds 1` draws the same again. Exit status 1 if anything was wrong.
"""

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.environment import environment
from tests.faults.nemesis.rounds import FAULTS, Plan, Result, draw_plan, play

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "bench" / "results" / "faults"
KEPT_MAX = 50  # folders of rounds that went wrong


def main() -> int:
    """Exit status 0, or 1 if anything was wrong."""
    args = arguments()
    args.keep.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + args.minutes * 60
    results: list[Result] = []
    while (len(results) < args.rounds) if args.rounds else (time.monotonic() < until_s):
        plan = draw_plan(args.seed + len(results), args.faults.split(",") if args.faults else None, args.rate)
        results.append(run_one(plan, args.keep, args.faults))
    print("\n".join(table(results)))
    summary = summarised(args, results)
    args.record.mkdir(parents=True, exist_ok=True)
    with (args.record / "runs.jsonl").open("a") as file:
        file.write(json.dumps(summary) + "\n")
    return 1 if any(r.wrong for r in results) else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.nemesis")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="of the first round")
    parser.add_argument("--minutes", type=float, default=10.0, help="no round begins later")
    parser.add_argument("--rounds", type=int, default=0, help="so many rounds, instead of a time")
    parser.add_argument(
        "--faults", default="", help=f"these one after another, instead of drawn ones: {','.join(FAULTS)}"
    )
    parser.add_argument("--rate", type=int, default=0, help="operations a second, instead of a drawn number")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/rushgate-nemesis"), help="folder of what went wrong")  # noqa: S108
    parser.add_argument("--record", type=Path, default=RESULTS, help="folder of the summary that is appended")
    args = parser.parse_args()
    unknown = set(args.faults.split(",")) - set(FAULTS) if args.faults else set()
    if unknown:
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    return args


def run_one(plan: Plan, keep: Path, faults: str) -> Result:
    """The round, told in a line; more if it went wrong."""
    folder = keep / str(plan.seed)
    with asyncio.Runner() as runner:  # not uvloop: its transports are no asyncio.Transport
        result = runner.run(play(plan, folder))
    names = ", ".join(s.name for s in plan.strikes)
    end = "WRONG" if result.wrong else "ok"
    print(f"{plan.seed}  {end}  {result.took_s} s  {result.operations:,} operations  {names}", flush=True)
    if result.wrong:
        print("\n".join(f"    {line}" for words in result.wrong for line in words.splitlines()[:40]))
        more = f" FAULTS={faults}" if faults else ""
        print(
            f"    repeat: make faults SEED={plan.seed} ROUNDS=1{more}; kept in {folder}",
            flush=True,
        )
    if not result.wrong or sum(1 for _ in keep.iterdir()) > KEPT_MAX:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def table(results: list[Result]) -> list[str]:
    """What was done and found."""
    injected, skipped = counted(results)
    heals = sorted(s for r in results for s in r.heals_s)
    lines = [f"{'fault':<24} {'injected':>8} {'skipped':>8}"]
    lines += [f"{n:<24} {injected[n]:>8} {skipped[n]:>8}" for n in FAULTS if injected[n] or skipped[n]]
    lines += [f"{name:<24} not made: {f.missing}" for name, f in FAULTS.items() if f.missing]
    lines.append(f"{len(results)} rounds, {sum(injected.values())} faults, {sum(skipped.values())} skipped")
    lines.append(
        f"{sum(r.operations for r in results):,} operations checked, {sum(r.orders for r in results):,} orders"
    )
    if heals:
        lines.append(f"time to heal: p50 {heals[len(heals) // 2]:.2f} s, max {heals[-1]:.2f} s, of {len(heals)}")
    wrong = [r.plan.seed for r in results if r.wrong]
    lines.append(f"{len(wrong)} rounds went wrong" + (f", seeds {wrong}" if wrong else ""))
    return lines


def counted(results: list[Result]) -> tuple[Counter[str], Counter[str]]:
    """Faults by class: made, and skipped."""
    skipped = Counter(name for r in results for name in r.skipped)
    injected = Counter(s.name for r in results for s in r.plan.strikes)
    return injected - skipped, skipped


def summarised(args: argparse.Namespace, results: list[Result]) -> dict[str, Any]:
    """One line of JSON for the record."""
    injected, skipped = counted(results)
    heals = sorted(s for r in results for s in r.heals_s)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv[1:]), "seed": args.seed,
        "rounds": len(results), "faults": dict(injected), "skipped": dict(skipped),
        "operations": sum(r.operations for r in results), "orders": sum(r.orders for r in results),
        "heal_s_p50": heals[len(heals) // 2] if heals else None, "heal_s_max": heals[-1] if heals else None,
        "wrong": {r.plan.seed: [w.splitlines()[0] for w in r.wrong[:5]] for r in results if r.wrong},
        "took_s": round(sum(r.took_s for r in results), 1), "environment": environment(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
