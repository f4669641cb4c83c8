"""A round: drawn from a seed, run, healed, drained, collected, judged."""

import asyncio
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
from msgspec import Struct

from loadtest.history import Recorder, read_history
from loadtest.history_check import Bounds, Verdict, check
from loadtest.history_final import Final, write_final
from ops.check_display import lines
from ops.check_partners import partners_said
from tests.e2e.support import Client
from tests.faults.nemesis import (
    faults_callbacks,
    faults_clock,
    faults_data,
    faults_disk,
    faults_ledger,
    faults_loss,
    faults_network,
    faults_processes,
    faults_store,
)
from tests.faults.nemesis.faults import FAULTS, Scene, Skipped
from tests.faults.nemesis.load import Load, LoadPlan
from tests.faults.nemesis.stack import ADMIN, CHANNELS, Shape, Stack, define

__all__ = ["FAULTS", "Plan", "Result", "draw_plan", "play"]

CLASSES = (  # they fill FAULTS
    faults_processes, faults_store, faults_loss, faults_ledger, faults_network, faults_data,
    faults_disk, faults_clock, faults_callbacks,
)  # fmt: skip
# From the moment a fault begins to be undone to the first definite answer; a gateway's start and a store's replay are
# in it. Half a second where nothing has to start. With three rounds and a soak at once on two cores, load 16, the start
# of a gateway has taken 16 s.
HEAL_S = 20.0
DRAIN_S = 90.0
ROUND_S = 300.0  # for everything; beyond it the harness itself hangs
LEAD_S, TAIL_S = 1.0, 2.0  # of load before the first fault and after the last
# Client, store, ledger and all workers share two cores here. At load 28 (five other suites at once) one refusal took
# 7.0 s: such a machine measures itself, and a round that fails by this bound alone is repeated on a quieter one.
REFUSAL_MS = 3_000


class Strike(Struct, frozen=True):
    """A fault and its time, seconds since the load began."""

    name: str
    at_s: float
    hold_s: float


class Plan(Struct, frozen=True):
    """All that a round draws from its seed."""

    seed: int
    shape: Shape
    load: LoadPlan
    strikes: list[Strike]
    pay_within_s: int


class Result(Struct):
    """What a round found. `wrong` is empty if all is well."""

    plan: Plan
    operations: int = 0
    orders: int = 0
    skipped: dict[str, str] = {}
    heals_s: dict[str, list[float]] = {}  # by the fault that was undone
    violations: dict[int, int] = {}  # by invariant
    refusals_ms: tuple[float, float] = (0.0, 0.0)  # the slowest 429 or 503: calm, and while a fault was felt
    lost: int = 0  # accepted orders that a loss of the store may cost
    wrong: list[str] = []
    answers: dict[str, int] = {}
    took_s: float = 0.0


def draw_plan(seed: int, names: Sequence[str] | None = None, rate: int = 0) -> Plan:
    """The plan of a seed. `names`: these faults, one after another; None: one to three are drawn, and may overlap."""
    draw = random.Random(seed)
    shape = Shape(
        gateways=draw.choice((1, 2)),
        ledger=draw.choice((1, 2)),
        relay=draw.choice((1, 1, 2)),
        spread=draw.choice((1, 1, 2, 3)),
        order_type=draw.choice(("goods", "goods", "virtual", "reserve_at_payment")),
    )
    if shape.order_type == "reserve_at_payment":
        shape = msgspec.structs.replace(shape, spread=1)
    strikes, at_s = [], LEAD_S
    if names is None:
        names = draw.sample(sorted(n for n, f in FAULTS.items() if not f.missing), draw.choice((1, 2, 2, 3)))
        one_by_one = draw.random() < 0.6
        for name in names:
            hold_s = max(round(draw.uniform(0.5, 4.0), 2), FAULTS[name].hold_s)
            strikes.append(Strike(name, round(at_s, 2), hold_s))
            at_s += hold_s + 0.8 if one_by_one else draw.uniform(0.2, 1.5)
    else:
        for name in names:
            strikes.append(Strike(name, round(at_s, 2), 0.8))
            at_s += 1.3
    end_s = max((s.at_s + s.hold_s for s in strikes), default=2.0)
    rate = rate or draw.choice((150, 250, 400))
    total = rate * end_s
    # Some sales are over early, others never sell out.
    units = int(total * draw.choice((0.15, 0.3, 0.8)))
    skus = ("a", "b", "c")[: draw.choice((1, 2, 3))]
    stock = {sku: max(5, units // len(skus)) for sku in skus}
    limits = draw.choice(({}, {"buyer": 3}, {"buyer": 4, "buyer_sku": 2}, {"buyer": 5, "ip": 20, "device": 6}))
    load = LoadPlan(rate, round(end_s + TAIL_S, 2), max(20, int(total / 2)), stock, limits)
    return Plan(seed, shape, load, strikes, draw.choice((2, 3)))


Afterwards: TypeAlias = Callable[[Stack, Result], Awaitable[None]]


async def play(plan: Plan, folder: Path, afterwards: Afterwards | None = None) -> Result:
    """The round is over and nothing of it runs any more. History, facts, and what was wrong in words, are in `folder`.

    `afterwards` is called before the stack is stopped.
    """
    result = Result(plan)
    started_s = time.monotonic()
    small_disk = any(s.name == "store_disk_full" for s in plan.strikes)
    replicated = any(s.name in faults_loss.REPLICATED for s in plan.strikes)
    stack = Stack(plan.shape, random.Random(plan.seed), small_disk, replicated)
    stack.small_ledger = any(s.name == "ledger_disk_full" for s in plan.strikes)
    try:
        async with asyncio.timeout(ROUND_S):
            await stack.start()
            await _play(plan, stack, folder, result)
            if afterwards is not None:
                await afterwards(stack, result)
    except Exception:
        result.wrong.append("the round broke off: " + traceback.format_exc())
    finally:
        if result.wrong:
            _keep_logs(stack, folder)
        await stack.stop()
    result.took_s = round(time.monotonic() - started_s, 1)
    if result.wrong:
        (folder / "words.txt").write_text("\n".join(result.wrong) + "\n")
        (folder / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    return result


async def _play(plan: Plan, stack: Stack, folder: Path, result: Result) -> None:
    history_file = _fresh(folder)
    campaign = f"n{plan.seed}"
    await asyncio.to_thread(_open, stack, campaign, plan)
    settings = msgspec.to_builtins(plan)
    with Recorder(history_file, campaign, settings) as recorder:
        load = Load(stack, campaign, plan.load, recorder, plan.seed)
        scene = Scene(stack, load, campaign, random.Random(plan.seed + 1))
        running = asyncio.create_task(load.run())
        load.goes_on = True
        try:
            await asyncio.gather(*(_strike(s, scene, recorder, result) for s in plan.strikes))
        finally:
            load.goes_on = False
        await running
        if not await load.probe(HEAL_S + 1):
            result.wrong.append(f"no definite answer to an order {HEAL_S} s after the last fault")
        await load.stop()
    result.answers = dict(sorted(load.answers.items()))
    result.wrong += [f"unexpected: {words}" for words in load.unexpected[:20]]
    calm = await stack.drained(campaign, DRAIN_S)
    result.wrong += stack.broken()  # the likeliest reason of all that follows
    if not calm:
        standing = await stack.collector(campaign).standing()
        result.wrong.append(f"not drained in {DRAIN_S} s: {standing.ledger}, intake {standing.intake}")
    partners, reports = partners_said(stack.partners_said) if stack.partners_said else (None, None)
    final = msgspec.structs.replace(await stack.collector(campaign).collect(), partners=partners, reports=reports)
    write_final(folder / "final.json", final)
    verdict = judge(history_file, final)
    result.operations, result.orders = sum(verdict.stats.operations.values()), verdict.stats.orders
    for heal in verdict.stats.heals:
        if heal.seconds is not None and heal.name not in result.skipped:
            result.heals_s.setdefault(heal.name, []).append(round(heal.seconds, 3))
    result.violations, result.lost = verdict.stats.violations, verdict.stats.lost
    result.refusals_ms = verdict.stats.refusals_ms
    if verdict.violations:
        result.wrong += ["\n".join(lines(verdict, read_history(history_file), final=final))]
    audit = await asyncio.to_thread(_audit, stack, campaign)
    if not audit.get("ok"):
        result.wrong.append(f"the audit is not ok: {audit}")


def _fresh(folder: Path) -> Path:
    """The file of a new history; what an earlier run of the seed left there is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    history_file = folder / "history.jsonl"
    history_file.unlink(missing_ok=True)
    return history_file


def judge(history_file: Path, final: Final) -> Verdict:
    """The verdict, with the bounds of a machine that has two cores for everything."""
    bounds = Bounds(refusal_ms=REFUSAL_MS, heal_s=HEAL_S)
    return check(read_history(history_file), final, bounds)


async def _strike(strike: Strike, scene: Scene, recorder: Recorder, result: Result) -> None:
    await asyncio.sleep(strike.at_s)
    try:
        async with scene.alone(FAULTS[strike.name].touches):
            recorder.fault(strike.name, f"{strike.hold_s} s")
            try:
                async with FAULTS[strike.name].harm(scene):
                    await asyncio.sleep(strike.hold_s)
                    recorder.mending(strike.name)
            finally:
                recorder.healed(strike.name)
    except Skipped as exc:
        result.skipped[strike.name] = str(exc)


def _client(stack: Stack) -> Client:
    return Client(f"http://127.0.0.1:{stack.gateway_ports[0]}", CHANNELS["app"], ADMIN)


def _open(stack: Stack, campaign: str, plan: Plan) -> None:
    client = _client(stack)
    reply = client.admin("PUT", campaign, define(plan.shape, plan.load.stock, plan.load.limits, plan.pay_within_s))
    assert reply.status == 200, reply
    reply = client.admin("POST", f"{campaign}/open")
    assert reply.status == 200, reply


def _audit(stack: Stack, campaign: str) -> dict[str, object]:
    reply = _client(stack).admin("GET", f"{campaign}/audit")
    return dict(reply.json) | ({} if reply.status == 200 else {"ok": False})


def _keep_logs(stack: Stack, folder: Path) -> None:
    """The ends of all logs are kept with the history."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for log in (stack.folder / "log").glob("*.log"):
        (logs / log.name).write_bytes(log.read_bytes()[-200_000:])
