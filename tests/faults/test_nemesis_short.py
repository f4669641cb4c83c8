"""The short run of the nemesis: a plain round judged clean, proof that the judge sees, every fault at least once.

The long run: `make faults SEED=… MINUTES=…`.
"""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from loadtest.history_check import Verdict
from loadtest.history_final import read_final
from ops.check_facts import Collector
from tests.e2e.support import command
from tests.faults.nemesis.__main__ import arguments
from tests.faults.nemesis.proxy import Link, Trouble
from tests.faults.nemesis.rounds import FAULTS, REFUSAL_MS, Plan, Result, draw_plan, judge, play
from tests.faults.nemesis.stack import Stack

SEED = 40_404
RATE = 120
# Rounds that the fault classes are dealt to. Lost stores have one of their own, as what they may cost is excused there.
# Where a relay is ended with messages in hand, or loses ledger or partners, a round waits for the end of a lease, 30 s:
# all that may do it are in the last one.
HANDS = ("loss", "processes", "relay")
ENDS_A_RELAY = {"all_kill", "relay_kill", "relay_zombie", "worker_clock", "worker_stop_long"}
CANNOT = re.compile("no right to mount|no C compiler")  # a machine may be without
HAND_S = 240  # of one hand on a busy machine; all take four minutes

# Invariant -> what is done to the ledger, and how it is undone. $1 is an order that was told with a 202 and has moved.
SPOILED = [
    (2, "UPDATE orders SET campaign = 'elsewhere' WHERE order_id = $1",
     "UPDATE orders SET campaign = $2 WHERE order_id = $1"),
    (3, "UPDATE orders SET request_key = 'x' || request_key WHERE order_id = $1",
     "UPDATE orders SET request_key = substr(request_key, 2) WHERE order_id = $1"),
    (5, "UPDATE order_items SET quantity = quantity + 1 WHERE order_id = $1",
     "UPDATE order_items SET quantity = quantity - 1 WHERE order_id = $1"),
    (8, "UPDATE order_events SET version = version + 100 WHERE order_id = $1 AND version = 2",
     "UPDATE order_events SET version = version - 100 WHERE order_id = $1 AND version = 102"),
    (10, "UPDATE deliveries SET topic = 'x' || topic WHERE order_id = $1",
     "UPDATE deliveries SET topic = substr(topic, 2) WHERE order_id = $1"),
    (12, "INSERT INTO outbox SELECT shard, order_id, 99, 'payment', now() FROM orders WHERE order_id = $1",
     "DELETE FROM outbox WHERE order_id = $1 AND version = 99"),
]  # fmt: skip


async def spoil_and_judge(stack: Stack, campaign: str, folder: Path) -> dict[int, Verdict]:
    """The verdict on each spoiled ledger, by the invariant that was broken; at last the ledger is as it was."""
    assert stack.desk is not None
    ledger, collector, found = stack.desk.ledger, Collector(stack.desk, campaign, stack.settings.shards), {}
    # One whose units are sold: of what came back nothing is counted, however many units it says.
    order_id = await ledger.fetchval(
        "SELECT order_id FROM orders o WHERE campaign = $1 AND version > 2 AND EXISTS (SELECT FROM deliveries d "
        "WHERE (d.shard, d.order_id, d.topic) = (o.shard, o.order_id, 'settle')) LIMIT 1",
        campaign,
    )
    for invariant, spoil, undo in SPOILED:
        await ledger.execute(spoil, order_id)
        found[invariant] = judge(folder / "history.jsonl", await collector.collect())
        await ledger.execute(undo, order_id, *([campaign] if "$2" in undo else []))
    return found


def test_plain_round_is_clean_and_each_spoiled_ledger_is_called_wrong(tmp_path: Path) -> None:
    """The whole stack under real load without any fault; then `rushgate check` on it, right and spoiled."""
    verdicts: dict[int, Verdict] = {}
    printed = []

    async def afterwards(stack: Stack, result: Result) -> None:
        for name in stack.parts:
            await stack.parts[name].end()  # the reconcile worker would mend what is spoiled
        env = {"RUSHGATE_STORE_URL": stack.store.url, "RUSHGATE_LEDGER_DSN": stack.ledger.dsn,
               "RUSHGATE_PARTNERS_URL": "http://played"}  # fmt: skip
        check = ("check", str(tmp_path / "history.jsonl"), "--save-final", str(tmp_path / "again.json"),
                 "--refusal-ms", str(REFUSAL_MS))  # fmt: skip
        printed.append(await asyncio.to_thread(lambda: command(*check, env=env)))
        verdicts.update(await spoil_and_judge(stack, f"n{SEED}", tmp_path))
        check = ("check", str(tmp_path / "history.jsonl"), "--final", str(tmp_path / "final.json"),
                 "--refusal-ms", str(REFUSAL_MS))  # fmt: skip
        printed.append(await asyncio.to_thread(lambda: command(*check)))

    result = asyncio.run(play(draw_plan(SEED, [], RATE), tmp_path, afterwards))
    assert result.wrong == []
    assert result.operations > 400
    assert result.orders > 50
    for done in printed:
        assert (done.returncode, "no invariant is violated" in done.stdout) == (0, True), done
    # The command does not see what the partners have on record.
    kept = read_final(tmp_path / "final.json")
    assert kept.partners
    assert kept.reports
    assert read_final(tmp_path / "again.json") == replace(kept, partners=None, reports=None)
    for invariant, verdict in verdicts.items():
        assert invariant in verdict.stats.violations, (invariant, verdict.stats)
    assert set(verdicts) == {invariant for invariant, _, _ in SPOILED}


def hand_of(name: str) -> str:
    """The hand that a fault class is dealt to."""
    fault = FAULTS[name]
    if fault.harm.__module__.endswith("_loss"):
        return "loss"
    return "processes" if {"processes", "store"} & set(fault.touches) and name not in ENDS_A_RELAY else "relay"


def dealt(hand: str) -> tuple[Plan, str]:
    """The round of a hand, and the command that repeats it."""
    names = [name for name, fault in FAULTS.items() if not fault.missing and hand_of(name) == hand]
    plan = draw_plan(SEED + 1 + HANDS.index(hand), names, RATE)
    which = f"--seed {plan.seed} --rounds 1 --rate {RATE} --faults {','.join(names)}"
    return plan, f".venv/bin/python -m tests.faults.nemesis {which}"


@pytest.mark.nemesis
@pytest.mark.timeout(HAND_S)
@pytest.mark.parametrize("hand", HANDS)
def test_every_fault_is_survived(hand: str, tmp_path: Path) -> None:
    """Each class once, one after another, under load: healed, drained, and no invariant violated."""
    plan, repeat = dealt(hand)
    result = asyncio.run(play(plan, tmp_path))
    assert result.wrong == [], f"seed {plan.seed}; repeat: {repeat}"
    assert result.orders > 50, repeat
    unmade = {name: why for name, why in result.skipped.items() if not CANNOT.search(why)}
    assert not unmade, f"nothing was done, as {unmade}; repeat: {repeat}"


@pytest.mark.parametrize("hand", HANDS)
def test_printed_command_repeats_the_very_plan(hand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failure prints is read by the command's own parser, and draws the same again."""
    plan, repeat = dealt(hand)
    monkeypatch.setattr(sys, "argv", repeat.removeprefix(".venv/bin/python -m ").split())
    args = arguments()
    assert (draw_plan(args.seed, args.faults.split(","), args.rate), args.rounds) == (plan, 1)
    assert plan.strikes


def test_every_class_is_in_one_hand() -> None:
    """None is left out of the short run but those that this machine cannot have."""
    played = [strike.name for hand in HANDS for strike in dealt(hand)[0].strikes]
    assert sorted(played) == sorted(name for name, fault in FAULTS.items() if not fault.missing)


class Echo(asyncio.Protocol):
    """Says again what it hears."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.mark.parametrize("trouble", ["none", "cut", "delay", "replies_lost", "requests_lost", "half_open"])
async def test_link_makes_its_trouble_and_heals(trouble: Trouble) -> None:
    """A proxy that does no harm would make every network fault a test that cannot fail."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    link = Link("test", server.sockets[0].getsockname()[:2])
    await link.start()

    async def said(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
        streams[1].write(b"hello")
        try:
            return await asyncio.wait_for(streams[0].readexactly(5), 0.3)
        except (TimeoutError, EOFError, OSError) as exc:
            return type(exc).__name__.encode()

    async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", link.port)

    wanted = {"none": b"hello", "cut": b"ConnectionResetError", "delay": b"hello"}
    streams = await connected()
    try:
        assert await said(streams) == b"hello"
        began_s = asyncio.get_running_loop().time()
        link.set(trouble, 0.05 if trouble == "delay" else 0.0)
        assert await said(streams) == wanted.get(trouble, b"TimeoutError")
        assert (link.harmed > 0) == (trouble != "none")
        took_s = asyncio.get_running_loop().time() - began_s
        assert trouble != "delay" or took_s >= 0.1  # each way
        link.set("none")
        streams[1].close()
        streams = await connected()
        assert await said(streams) == b"hello"
    finally:
        streams[1].close()
        await link.stop()
        server.close()
        await asyncio.sleep(0)  # the transports' own turn to end
