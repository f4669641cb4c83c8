"""The answer that most buyers of a flash sale get, `409 sold_out`, against a bare echo of the same answer."""

import contextlib
from collections.abc import Sequence
from typing import Any

from bench.peers.contestants import Contestant, ask, echo, rushgate
from bench.services import Services
from bench.side_by_side import (
    CONNECTIONS,
    FIRST_WARM_S,
    ROUNDS,
    SAMPLE,
    SECONDS,
    SERVER_CORE,
    Run,
    draw,
    loaded,
    machine,
    show,
    table,
)

RATE = "sold_out_per_s"


async def measure(
    services: Services, rounds: int = ROUNDS, connections: Sequence[int] = CONNECTIONS, seconds: float = SECONDS
) -> dict[str, Any]:
    """Sold-out answers/s, latency and CPU of Rushgate and of the echo, and their ratio, round by round.

    Raises:
        LoadInvalid: an answer was not a 409, or none.
    """
    found: dict[int, dict[str, list[Run]]] = {c: {"rushgate": [], "echo": []} for c in connections}
    async with machine(services), contextlib.AsyncExitStack() as stack:
        ours = await stack.enter_async_context(rushgate(services, SERVER_CORE))
        await ours.open("sold-out", units=0)
        sample = await ask(ours.port, "sold-out", "sample-key", SAMPLE)
        assert sample.status == 409, sample
        assert "sold_out" in sample.body, sample
        contestants: list[Contestant] = [ours, await stack.enter_async_context(echo(services, SERVER_CORE, sample))]
        for contestant in contestants:
            await loaded(contestant, "sold-out", max(connections), FIRST_WARM_S, 409)
        for n in range(rounds):
            for contestant in contestants if n % 2 == 0 else contestants[::-1]:
                for c in connections:
                    run = await loaded(contestant, "sold-out", c, seconds, 409)
                    found[c][contestant.name].append(run)
                    print(f"  round {n + 1}  {contestant.name:9} {c:>3}  {run.per_s:>9,.0f}/s", flush=True)
        assert await ours.taken("sold-out") == 0, "somebody got an order of a campaign without units"
    result = {"sold_out": {str(c): table(runs, RATE) for c, runs in found.items()}}
    print(f"\nsold-out answers/s, {seconds:g} s a run; the campaign has no unit, each buyer is new")
    show(result["sold_out"], RATE)
    draw("sold_out", "Sold-out answers, one core", RATE, result["sold_out"])
    return result
