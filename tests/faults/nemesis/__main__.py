"""`python -m tests.faults.nemesis --seed N --minutes M`: rounds until the time is over, then a table.

Round n has the seed N + n: `--seed N+n --rounds 1` draws the same again. Exit status 1 if anything was wrong.

`--summary [FILE …]` runs nothing: it adds up the rounds on record of this state of the code, writes summary.json and
prints the tables of docs/guarantees.md. `--since COMMIT`: those of that commit and later ones count as well.
"""

import argparse
import asyncio
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bench.environment import environment
from ops.documents_faults import markdown
from tests.faults.nemesis.rounds import FAULTS, REFUSAL_MS, Plan, Result, draw_plan, play
from tests.faults.nemesis.summary import Round, commits_since, read_runs, selected, summarise, tree

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "bench" / "results" / "faults"
KEPT_MAX = 50  # folders of rounds that went wrong
SHOWN_LINES = 40  # of one thing that was wrong


def main() -> int:
    """Exit status 0, or 1 if anything was wrong."""
    args = arguments()
    if args.summary is not None:
        return summed_up(args)
    state = tree()
    args.keep.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + args.minutes * 60
    results: list[Result] = []
    # Told to end, it ends as by Ctrl-C: the stack is stopped, and the rounds that were played are on record.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        while (len(results) < args.rounds) if args.rounds else (time.monotonic() < until_s):
            plan = draw_plan(args.seed + len(results), args.faults.split(",") if args.faults else None, args.rate)
            results.append(run_one(plan, args))
    except KeyboardInterrupt:
        print("interrupted: the round under way is not counted", flush=True)
    print("\n".join(table(results)))
    args.record.mkdir(parents=True, exist_ok=True)
    if tree() != state:  # the processes of later rounds ran other code than those of the first
        state = "changed during the run"
        print("the sources were changed during the run: the summary will not count it")
    append(args.record / "runs.jsonl", json.dumps(summarised(args, results, state)).encode() + b"\n")
    return 1 if any(r.wrong for r in results) else 0


def summed_up(args: argparse.Namespace) -> int:
    """The tables of the rounds on record are printed and kept. Exit status 2: there are none."""
    try:
        since = commits_since(args.since) if args.since else None
        files = args.summary or [args.record / "runs.jsonl"]
        summary = msgspec.to_builtins(summarise(selected(read_runs(files), tree(), since)))
    except (OSError, ValueError, msgspec.MsgspecError) as exc:
        print(f"nemesis: {exc}", file=sys.stderr)
        return 2
    args.record.mkdir(parents=True, exist_ok=True)
    (args.record / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    print(markdown(summary))
    return 1 if summary["violations"] or summary["wrong"] else 0


def append(file: Path, line: bytes) -> None:
    """The line is at the file's end, whole, whoever else appends at the same time."""
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        while line:
            line = line[os.write(fd, line) :]
    finally:
        os.close(fd)


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
    parser.add_argument("--summary", type=Path, nargs="*", metavar="FILE", help="add up rounds on record, run none")
    parser.add_argument("--since", default="", metavar="COMMIT", help="of the summary: later commits count as well")
    args = parser.parse_args()
    unknown = set(args.faults.split(",")) - set(FAULTS) if args.faults else set()
    if unknown:
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    return args


def run_one(plan: Plan, args: argparse.Namespace) -> Result:
    """The round, told in a line; more if it went wrong."""
    folder = args.keep / f"{plan.seed}-{os.getpid()}"
    with asyncio.Runner() as runner:  # not uvloop: its transports are no asyncio.Transport
        result = runner.run(play(plan, folder))
    names = ", ".join(f"{s.name}{' (skipped)' if s.name in result.skipped else ''}" for s in plan.strikes)
    end = "WRONG" if result.wrong else "ok"
    print(f"{plan.seed}  {end}  {result.took_s} s  {result.operations:,} operations  {names or 'no fault'}", flush=True)
    if result.wrong:
        print("\n".join(f"    {line}" for line in told(result)))
        print(f"    repeat: {repeat(plan, args)}")
        kept = folder / "history.jsonl"
        if (folder / "final.json").exists():
            final = folder / "final.json"
            print(f"    judge again: .venv/bin/rushgate check {kept} --final {final} --refusal-ms {REFUSAL_MS}")
        print(f"    kept in {folder}: history, facts, plan, logs", flush=True)
    if not result.wrong or sum(1 for _ in args.keep.iterdir()) > KEPT_MAX:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def told(result: Result) -> list[str]:
    """What was wrong, each thing in a few lines."""
    lines = []
    for words in result.wrong:
        some = words.splitlines()
        lines += some[:SHOWN_LINES] + [f"… {len(some) - SHOWN_LINES} lines more"] * (len(some) > SHOWN_LINES)
    return lines


def repeat(plan: Plan, args: argparse.Namespace) -> str:
    """The command that draws the same plan again."""
    more = f" --faults {args.faults}" if args.faults else ""
    more += f" --rate {args.rate}" if args.rate else ""
    return f".venv/bin/python -m tests.faults.nemesis --seed {plan.seed} --rounds 1{more}"


def table(results: list[Result]) -> list[str]:
    """What was done and found."""
    injected, skipped = counted(results)
    heals = {name: sorted(s for r in results for s in r.heals_s.get(name, ())) for name in FAULTS}
    lines = [f"{'fault':<24} {'injected':>8} {'skipped':>8} {'heal p50':>9} {'max':>7}"]
    for name in FAULTS:
        if injected[name] or skipped[name]:
            times = heals[name]
            shown = f"{median(times):>7.2f} s {times[-1]:>5.2f} s" if times else ""
            lines.append(f"{name:<24} {injected[name]:>8} {skipped[name]:>8} {shown}".rstrip())
    lines += [f"{name:<24} not made: {f.missing}" for name, f in FAULTS.items() if f.missing]
    lines.append(f"{len(results)} rounds, {sum(injected.values())} faults, {sum(skipped.values())} skipped")
    lines.append(
        f"{sum(r.operations for r in results):,} operations checked, {sum(r.orders for r in results):,} orders"
    )
    calm, felt = (max((r.refusals_ms[n] for r in results), default=0.0) for n in (0, 1))
    lines.append(f"slowest 429 or 503: {calm:.0f} ms, while a fault was felt {felt:.0f} ms")
    if lost := sum(r.lost for r in results):
        lines.append(f"{lost:,} accepted orders went with a lost store, as documented")
    wrong = [r.plan.seed for r in results if r.wrong]
    lines.append(f"{len(wrong)} rounds went wrong" + (f", seeds {wrong}" if wrong else ""))
    return lines


def counted(results: list[Result]) -> tuple[Counter[str], Counter[str]]:
    """Faults by class: made, and skipped."""
    skipped = Counter(name for r in results for name in r.skipped)
    injected = Counter(s.name for r in results for s in r.plan.strikes)
    return injected - skipped, skipped


def summarised(args: argparse.Namespace, results: list[Result], state: str) -> dict[str, Any]:
    """One line of JSON for the record: the run, and each of its rounds."""
    injected, skipped = counted(results)
    heals = {name: sorted(s for r in results for s in r.heals_s.get(name, ())) for name in FAULTS}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv[1:]), "seed": args.seed,
        "faults": dict(injected), "skipped": dict(skipped),
        "operations": sum(r.operations for r in results), "orders": sum(r.orders for r in results),
        "heals": {name: {"n": len(times), "p50_s": median(times), "max_s": times[-1]}
                  for name, times in heals.items() if times},
        "wrong": {r.plan.seed: [w.splitlines()[0] for w in r.wrong[:5]] for r in results if r.wrong},
        "took_s": round(sum(r.took_s for r in results), 1), "tree": state, "environment": environment(),
        "rounds": [msgspec.to_builtins(as_kept(r), str_keys=True) for r in results],
    }  # fmt: skip


def as_kept(result: Result) -> Round:
    """The round as the summary reads it."""
    injected = Counter(s.name for s in result.plan.strikes if s.name not in result.skipped)
    return Round(
        result.plan.seed, result.plan.shape.order_type, dict(injected), sorted(result.skipped), result.operations,
        result.orders, result.lost, {str(n): count for n, count in result.violations.items()}, bool(result.wrong),
        result.heals_s, result.refusals_ms,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
