"""The short run of the nemesis: a plain round judged clean, proof that the judge sees, every fault at least once.

The long run: `make faults SEED=… MINUTES=…`.
"""

import asyncio
from pathlib import Path

import pytest

from loadtest.history_check import Verdict
from loadtest.history_final import read_final
from ops.check_facts import Collector
from tests.e2e.support import command
from tests.faults.nemesis.proxy import Link, Trouble
from tests.faults.nemesis.rounds import FAULTS, REFUSAL_MS, Result, draw_plan, judge, play
from tests.faults.nemesis.stack import Stack

SEED = 40_404
RATE = 120
HANDS = 4  # rounds that the fault classes are dealt to

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
    order_id = await ledger.fetchval(
        "SELECT order_id FROM orders WHERE campaign = $1 AND version > 2 LIMIT 1", campaign
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
    assert read_final(tmp_path / "again.json") == read_final(tmp_path / "final.json")
    for invariant, verdict in verdicts.items():
        assert invariant in verdict.stats.violations, (invariant, verdict.stats)
    assert set(verdicts) == {invariant for invariant, _, _ in SPOILED}


@pytest.mark.nemesis
@pytest.mark.parametrize("hand", range(HANDS))
def test_every_fault_is_survived(hand: int, tmp_path: Path) -> None:
    """Each class once, one after another, under load: healed, drained, and no invariant violated."""
    names = [name for name, fault in FAULTS.items() if not fault.missing]
    size = -(-len(names) // HANDS)
    # In the order of their kinds: a killed relay's messages wait for the end of their lease, 30 s, once.
    plan = draw_plan(SEED + 1 + hand, names[hand * size : (hand + 1) * size], RATE)
    result = asyncio.run(play(plan, tmp_path))
    assert result.wrong == [], f"repeat: python -m tests.faults.nemesis --seed {plan.seed} --rounds 1"
    assert result.orders > 50
    assert {s.name for s in plan.strikes} - set(result.skipped), "nothing was done"


class Echo(asyncio.Protocol):
    """Says again what it hears."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.mark.parametrize("trouble", ["none", "cut", "delay", "replies_lost", "half_open"])
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
