"""A rebuilding process dies by SIGKILL at each of its steps, or meets another one: the books come out the same."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from core.desk.rebuild import Rebuilder
from core.desk.rebuilt import Rebuilt
from core.errors import Refused
from tests.faults.rebuild_child import REFUSED
from tests.faults.site import Site
from tests.ledger.rebuild_support import in_service
from tests.support import contents, fresh, tell

END = 10_000  # more steps than a rebuild has

Run = Callable[[str, int], Awaitable[int]]


@contextlib.asynccontextmanager
async def children(site: Site) -> AsyncIterator[Run]:
    """Rebuilds by processes of their own; each gives its exit status."""
    settings = site.settings.with_values(sold_out_lease_ms=0)  # nobody waits for gateways that are not there
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.rebuild_child", site.sale.campaign,
        env={"PATH": os.environ["PATH"], **settings.to_env()},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    told, asked = process.stdout, process.stdin

    async def run(who: str, steps: int) -> int:
        asked.write(f"{who} {steps}\n".encode())
        return int(await told.readline())

    try:
        yield run
    finally:
        asked.close()
        assert await process.wait() == 0


async def books(site: Site) -> dict[str, object]:
    """What the store holds of the campaign, without the numbers of its lives."""
    part = site.sale.parts[0]
    found = {key.decode(): value for key, value in (await contents(site.bare)).items() if key in part.keys[:-1]}
    meta = found.pop(part.keys.meta.decode())
    kept = {name: value for name, value in meta.items() if name not in (b"epoch", b"version", b"told")}
    return {**found, "meta": kept}


async def waits_no_longer(site: Site) -> None:
    """The dead one's lease has run out."""
    await site.ledger.execute("UPDATE campaigns SET rebuilt_until = now() - interval '1 second' WHERE rebuilt_by <> ''")


async def test_process_killed_behind_each_step_is_followed_by_another_one_with_the_same_books(site: Site) -> None:
    await site.life.drain()
    assert await tell(site.bare, "FLUSHALL") == b"OK"
    async with children(site) as run:
        assert await run("first", END) == 0
        want, taken, steps = await books(site), await site.life.taken(), 0
        for steps in range(1, END):
            if steps % 2:  # also: what was lost is lost once more
                await tell(site.bare, "DEL", *site.sale.parts[0].keys)
            died = await run(f"dies-{steps}", steps)
            if died == 0:
                break
            assert died == -signal.SIGKILL
            await waits_no_longer(site)
            assert await run(f"follows-{steps}", END) == 0
            assert (await books(site), await site.life.taken()) == (want, taken), f"killed behind step {steps}"
    assert 30 < steps < 200
    known = await site.desk.show(site.sale.campaign)
    await in_service(site.desk, site.auditor, site.sale, known.epoch)
    await site.life.replayed(known.epoch)
    # Each attempt is on record, those that died without an end.
    rows = await site.ledger.fetch("SELECT done_at FROM rebuilds ORDER BY epoch")
    assert len(rows) == known.epoch - 1
    assert any(row["done_at"] is None for row in rows)


async def test_lease_of_a_dead_process_is_respected_until_it_runs_out(site: Site) -> None:
    async with children(site) as run:
        assert await run("dies", 20) == -signal.SIGKILL
        assert await site.ledger.fetchval("SELECT rebuilt_by FROM campaigns WHERE state = 'recovering'") == "dies"
        assert await run("follows", END) == REFUSED
        await waits_no_longer(site)
        assert await run("follows", END) == 0


async def test_many_at_once_under_one_name_end_with_the_same_books(site: Site) -> None:
    """The lease lets through whoever has its name, so nothing but the epochs keeps them from each other's work."""
    await site.life.drain()
    first = Rebuilder(site.desk, site.auditor, site.bare, site.ledger, "one")
    await first.rebuild(site.sale.campaign, "test")
    want = await books(site)
    for _ in range(3):
        await tell(site.bare, "DEL", *site.sale.parts[0].keys)
        done = await asyncio.gather(*(_rebuild(site, "one") for _ in range(4)))
        if not any(done):  # each was overtaken: the last one to begin was the last to notice
            assert await _rebuild(site, "one")
        known = await site.desk.show(site.sale.campaign)
        await in_service(site.desk, site.auditor, site.sale, known.epoch)
        assert await books(site) == want


async def test_many_at_once_under_names_of_their_own_rebuild_once(site: Site) -> None:
    """By hand and by workers: whoever comes later is refused."""
    await site.life.drain()
    await tell(site.bare, "DEL", *site.sale.parts[0].keys)
    done = await asyncio.gather(*(_rebuild(site, fresh("who")) for _ in range(6)))
    assert sum(one is not None for one in done) == 1
    await in_service(site.desk, site.auditor, site.sale, 2)


async def _rebuild(site: Site, who: str) -> Rebuilt | None:
    """None: refused."""
    known = await site.desk.show(site.sale.campaign)
    try:
        done = await Rebuilder(site.desk, site.auditor, site.bare, site.ledger, who).rebuild(
            site.sale.campaign, "test", known
        )
    except Refused:
        return None
    return done if done.state == "open" else None
