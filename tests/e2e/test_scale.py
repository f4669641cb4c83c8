"""`rushgate workers` and `rushgate scale` on a running stack; processes that come and go under load lose no order."""

import asyncio
import json
from typing import Any

from tests.e2e.support import Client, Crowd, Up, until

KINDS = ["expiry", "gateway", "ledger", "reconcile", "relay"]


def found(stack: Up) -> dict[str, Any]:
    said = stack.command("workers", "--json")
    assert said.returncode in (0, 1), said.stderr
    return dict(json.loads(said.stdout))


def own(stack: Up) -> list[dict[str, Any]]:
    """The stack's processes that live; other tests of the session have gateways of their own on its store."""
    pids = {pid for kind in ("gateway", "worker") for pid in stack.children(kind)}
    return [process for process in found(stack)["processes"] if process["pid"] in pids]


def test_workers_lists_each_process_with_what_it_does(stack: Up, client: Client) -> None:
    client.order(client.sale())
    until(lambda: sorted(p["kind"] for p in own(stack)) == sorted([*KINDS, "gateway"]))
    for process in own(stack):
        assert process["host"]
        assert process["reads"]
        assert process["version"] == "0.1.0"
        assert 0 <= process["busy"] <= 1
    said = stack.command("workers")
    assert said.returncode == 0, said.stdout
    assert "intake of 64 shards" in said.stdout
    assert "missing" not in said.stdout


def test_kind_that_does_not_live_is_missed_in_plain_words(stack: Up) -> None:
    try:
        assert stack.command("scale", "expiry=0").stdout == "expiry: 1 -> 0, all ended\n"
        said = stack.command("workers")
        assert said.returncode == 1
        assert "no expiry worker lives: orders that nobody pays keep their units" in said.stdout
        assert "`rushgate scale expiry=1`" in said.stdout
    finally:
        assert stack.command("scale", "expiry=1").returncode == 0
    assert stack.command("workers").returncode == 0


async def test_processes_that_come_and_go_under_load_lose_no_order(stack: Up, client: Client) -> None:
    campaign = client.sale({"red": 1_000_000})

    async def scale(*kinds: str) -> None:
        said = await asyncio.to_thread(stack.command, "scale", *kinds)
        assert said.returncode == 0, said.stderr

    try:
        async with Crowd(client, campaign, 8) as crowd:
            await scale("ledger=3", "relay=2", "gateway=3")
            some = len(crowd.accepted)
            await scale("ledger=0", "relay=1", "gateway=1")
            await scale("ledger=1", "gateway=2")
            assert len(crowd.accepted) > some, "control: orders came while it was scaled"
    finally:
        await asyncio.to_thread(stack.command, "scale", "ledger=1", "relay=1", "gateway=2")
    assert crowd.changed == []
    audit = await asyncio.to_thread(client.settled_audit, campaign)
    assert audit["ok"], audit
    assert audit["persisted"] == audit["accepted"] == len(crowd.accepted)
    assert (audit["oversold"], audit["lost"], audit["duplicated"]) == (0, 0, 0)


def test_tune_needs_a_rate_while_nothing_arrives_and_no_probe_measures_without_load(stack: Up) -> None:
    until(lambda: not any(p["rate"] or p["more"].get("accepted_per_s") for p in found(stack)["processes"]))
    said = stack.command("tune", "--probe", "--probe-load")
    assert (said.returncode, "its load is not what arrives" in said.stderr) == (2, True), said  # before it measures
    said = stack.command("tune", "--over", "1")
    assert (said.returncode, said.stderr) == (2, "rushgate: --rate: nothing arrives now, so name a rate\n")
    said = stack.command("tune", "--over", "1", "--rate", "10", "--probe")
    assert said.returncode == 1
    assert "without a backlog, or more load, one more shows nothing" in said.stderr
    assert len(stack.children("ledger")) == 1
    said = stack.command("tune", "--over", "1", "--rate", "10", "--json")
    advice = json.loads(said.stdout)
    assert said.returncode == 0
    assert advice["processes"] == {"gateway": 1, "ledger": 1, "relay": 1, "expiry": 1}
    assert advice["assumptions"]["gateway"]["now"] >= 2
