"""Units on other shards are looked for once for many who ask at a time, and nobody gets an answer older than he is."""

import asyncio
from collections.abc import Sequence

from core.desk.campaigns import CampaignDesk
from gateway.balance import Balancer, Found
from gateway.catalogue import Sale
from lua.connection import SharedConnection
from lua.keys import SaleKeys
from lua.scripts import Reading, RestockCode, Scripts
from tests.support import SHARDS, fresh, spec


class Halting(Scripts):
    """The real scripts, which stop after the reading of that number until `go`."""

    def __init__(self, store: SharedConnection, halt_after: int) -> None:
        super().__init__(store)
        self._halt_after = halt_after
        self.readings = 0
        self.halted, self.go = asyncio.Event(), asyncio.Event()

    async def audit(self, keys: Sequence[SaleKeys]) -> list[Reading]:
        found = await super().audit(keys)
        self.readings += 1
        if self.readings == self._halt_after:
            self.halted.set()
            await self.go.wait()
        return found


async def opened(desk: CampaignDesk) -> Sale:
    """A campaign on two shards with nothing on sale."""
    name = fresh("sale")
    await desk.put(name, spec({"red": 0}, spread=2))
    known = await desk.open(name)
    return Sale(name, known.epoch, known.version, known.spec, SHARDS)


async def test_refusal_of_a_search_that_began_before_is_not_handed_on(
    desk: CampaignDesk, store: SharedConnection, scripts: Scripts
) -> None:
    """The first one read both shards empty. Then a unit goes on sale, and somebody asks: he must not be told `sold_out`
    by readings from before."""
    sale = await opened(desk)
    balancer = Balancer(store)
    halting = balancer._scripts = Halting(store, halt_after=2)  # a refusal is read twice
    early = asyncio.create_task(balancer.seek(sale, 0, "red", 1))
    await halting.halted.wait()
    code, _ = await scripts.restock(sale.keys[1], sale.epoch, "x1", "red", 1, sale.shards[0])
    assert code is RestockCode.DONE
    late = asyncio.create_task(balancer.seek(sale, 0, "red", 1))
    await asyncio.sleep(0)  # it has joined the search that is under way
    assert halting.readings == 2
    halting.go.set()
    assert (await early).found is Found.NOTHING
    assert (await late).found is Found.HERE


async def test_many_who_ask_at_a_time_share_a_search(desk: CampaignDesk, store: SharedConnection) -> None:
    sale = await opened(desk)
    balancer = Balancer(store)
    halting = balancer._scripts = Halting(store, halt_after=1)
    early = asyncio.create_task(balancer.seek(sale, 0, "red", 1))
    await halting.halted.wait()
    late = [asyncio.create_task(balancer.seek(sale, 0, "red", 1)) for _ in range(50)]
    await asyncio.sleep(0)
    halting.go.set()
    assert {s.found for s in await asyncio.gather(early, *late)} == {Found.NOTHING}
    assert halting.readings == 4  # two for the one who was first, two for all the others
