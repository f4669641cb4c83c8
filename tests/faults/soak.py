"""`python -m tests.faults.soak --seed N --minutes M`: the stack under steady load with restarts; flat after each drain?

Four parts, each a campaign of its own with a history that is judged like a nemesis round. Of every kind of process one
is restarted again and again, by turns gracefully and by kill -9; the other one lives from start to end, so that what
it loses is seen. Exit status 1 if an invariant is violated or anything is not flat.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import msgspec

from bench.environment import environment
from core.errors import Fault
from loadtest.history import Recorder, read_history
from ops.check_display import lines
from tests.e2e.support import Client
from tests.faults.nemesis.load import Load, LoadPlan
from tests.faults.nemesis.rounds import judge as judge_history
from tests.faults.nemesis.stack import ADMIN, CHANNELS, Shape, Stack, define
from tests.faults.soak_judge import judge, table
from tests.faults.soak_samples import Sample, look

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "soak"
# The first and the last are of one kind, so that they compare.
PARTS = ("goods", "virtual", "reserve_at_payment", "goods")
SHAPE = Shape(gateways=2, ledger=2, expiry=2, relay=2, reconcile=2)
RESTARTED = ("gateway-1", "ledger-1", "relay-1", "expiry-1", "reconcile-1")
KILLS = 3  # one restart in so many is a kill -9
DOWN_S = 0.5
SAMPLE_S = 10.0
DRAIN_S, STILL_S = 120.0, 2.0
PROBE_S = 16.0
PAY_WITHIN_S = 3


class Soak:
    """One run, on a stack that is the caller's to start and stop."""

    def __init__(self, stack: Stack, seed: int, part_s: float, rate: int, restart_s: float, folder: Path) -> None:
        self.stack, self.seed, self.part_s, self.rate, self.folder = stack, seed, part_s, rate, folder
        self.restart_s = restart_s
        self.samples: list[Sample] = []
        self.wrong: list[str] = []
        self.operations = self.restarts = self.missed = 0
        self._began_s = time.monotonic()
        self._next = cycle(RESTARTED)

    async def run(self) -> None:
        """All parts are over; what was wrong is in `wrong`."""
        for number, order_type in enumerate(PARTS, 1):
            sampling, known = asyncio.create_task(self._keep_looking(number)), len(self.wrong)
            try:
                await self._part(number, order_type)
            finally:
                sampling.cancel()
                await asyncio.gather(sampling, return_exceptions=True)
            self.samples.append(await look(self.stack, time.monotonic() - self._began_s, number, True))
            print(f"part {number}, {order_type}: {self.samples[-1].orders:,} orders so far, "
                  f"{self.operations:,} operations judged, {len(self.wrong) - known} wrong", flush=True)  # fmt: skip
            for words in self.wrong[known:]:
                print(f"  {words[:1_000]}", flush=True)
        self.wrong += judge(self.samples)

    async def _keep_looking(self, part: int) -> None:
        while True:
            try:
                self.samples.append(await look(self.stack, time.monotonic() - self._began_s, part, False))
            except Fault:
                self.missed += 1
            await asyncio.sleep(SAMPLE_S)

    async def _part(self, number: int, order_type: str) -> None:
        campaign = f"soak-{self.seed}-{number}"
        total = self.rate * self.part_s
        stock = {sku: max(20, int(total * 0.3)) for sku in ("a", "b")}
        plan = LoadPlan(self.rate, self.part_s, max(50, int(total / 2)), stock, {"buyer": 4, "buyer_sku": 2})
        await asyncio.to_thread(self._open, campaign, order_type, plan)
        history = self.folder / f"{campaign}.jsonl"
        with Recorder(history, campaign, {"seed": self.seed, "part": number}) as recorder:
            load = Load(self.stack, campaign, plan, recorder, self.seed + number)
            restarting = asyncio.create_task(self._keep_restarting(recorder))
            await load.run()
            restarting.cancel()
            await asyncio.gather(restarting, return_exceptions=True)
            for part in self.stack.parts.values():
                part.start()
            await self.stack.ready()
            if not await load.probe(PROBE_S):
                self.wrong.append(f"part {number}: no definite answer after the restarts")
            await load.stop()
        self.wrong += [f"part {number}: unexpected: {words}" for words in load.unexpected[:10]]
        if not await self._drained(campaign):
            self.wrong.append(f"part {number}: not drained in {DRAIN_S:g} s")
            return
        self.wrong += [f"part {number}: {words}" for words in self.stack.broken()]
        verdict = judge_history(history, await self.stack.collector(campaign).collect())
        self.operations += sum(verdict.stats.operations.values())
        if verdict.violations:
            self.wrong += list(lines(verdict, read_history(history)))
        else:
            history.unlink()  # a whole soak's would be large

    async def _keep_restarting(self, recorder: Recorder) -> None:
        """One process after another goes and comes back. Cancelled in between it leaves one down: the caller starts
        all."""
        while True:
            await asyncio.sleep(self.restart_s)
            name = next(self._next)
            self.restarts += 1
            killed = self.restarts % KILLS == 0
            part = self.stack.parts[name]
            recorder.fault("restart", f"{name} {'SIGKILL' if killed else 'SIGTERM'}")
            try:
                status = await part.end(signal.SIGKILL if killed else signal.SIGTERM)
                if status and not killed:
                    self.wrong.append(f"{name} ended with status {status} after SIGTERM")
                await asyncio.sleep(DOWN_S)
            finally:
                part.start()
                recorder.healed("restart")

    async def _drained(self, campaign: str) -> bool:
        """Whether nothing is on its way any more. The partners go on, as their memory is looked at too."""
        loop, collector = asyncio.get_running_loop(), self.stack.collector(campaign)
        until_s, since_s, before = loop.time() + DRAIN_S, loop.time(), None
        while loop.time() < until_s:
            now = await collector.standing()
            if now.intake or any(now.ledger[n] for n in ("due", "waiting", "pending")) or now != before:
                since_s = loop.time()
            elif loop.time() - since_s > STILL_S:
                return True
            before = now
            await asyncio.sleep(0.25)
        return False

    def _open(self, campaign: str, order_type: str, plan: LoadPlan) -> None:
        client = Client(f"http://127.0.0.1:{self.stack.gateway_ports[0]}", CHANNELS["app"], ADMIN)
        shape = msgspec.structs.replace(SHAPE, order_type=order_type)
        for reply in (
            client.admin("PUT", campaign, define(shape, plan.stock, plan.limits, PAY_WITHIN_S)),
            client.admin("POST", f"{campaign}/open"),
        ):
            assert reply.status == 200, reply


async def soak(seed: int, minutes: float, rate: int, restart_s: float, folder: Path) -> Soak:
    """The run, over; nothing of it runs any more."""
    stack = Stack(SHAPE, random.Random(seed))
    run = Soak(stack, seed, minutes * 60 / len(PARTS), rate, restart_s, folder)
    try:
        await stack.start()
        await run.run()
    except Exception as exc:
        run.wrong.append(f"the soak broke off: {type(exc).__name__}: {exc}")
        raise
    finally:
        if run.wrong:
            with contextlib.suppress(OSError):
                shutil.copytree(stack.folder / "log", folder / "log", dirs_exist_ok=True)
        await stack.stop()
    return run


def main() -> int:
    """Exit status 0, or 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--minutes", type=float, default=30.0, help="of load, in all")
    parser.add_argument("--rate", type=int, default=100, help="operations a second")
    parser.add_argument("--restart-s", type=float, default=20.0, help="between two restarts")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/rushgate-soak"), help="folder of histories and logs")  # noqa: S108
    parser.add_argument("--record", type=Path, default=RESULTS)
    args = parser.parse_args()
    folder = args.keep / str(args.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = environment()
    for name, words in facts.items():
        print(f"{name:9} {words}")
    print(f"soak: seed {args.seed}, {args.minutes:g} minutes in {len(PARTS)} parts, {args.rate} operations/s, "
          f"a restart every {args.restart_s:g} s", flush=True)  # fmt: skip
    with asyncio.Runner() as runner:  # not uvloop: its transports are no asyncio.Transport
        run = runner.run(soak(args.seed, args.minutes, args.rate, args.restart_s, folder))
    print("\n".join(table(run.samples)))
    print(f"{run.operations:,} operations judged, {run.restarts} restarts, {len(run.samples)} samples")
    print("flat, and no invariant is violated" if not run.wrong else "WRONG:\n  " + "\n  ".join(run.wrong))
    args.record.mkdir(parents=True, exist_ok=True)
    kept = args.record / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{args.seed}.json"
    result = {
        "at": facts["at"], "command": " ".join(sys.argv[1:]), "seed": args.seed, "minutes": args.minutes,
        "rate": args.rate, "restart_s": args.restart_s, "restarts": run.restarts, "operations": run.operations,
        "missed_samples": run.missed, "wrong": run.wrong, "environment": facts,
        "samples": msgspec.to_builtins(run.samples),
    }  # fmt: skip
    kept.write_text(json.dumps(result) + "\n", "utf-8")
    print(f"kept in {kept}")
    if not run.wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
