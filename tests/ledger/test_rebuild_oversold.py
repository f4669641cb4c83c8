"""The ledger promises more than there is: the campaign is not put in service, says why, and comes back by itself when
enough orders have ended."""

import argparse

import pytest

from core.desk.campaigns import CampaignDesk
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from ops import rebuild_commands
from tests.ledger.rebuild_support import Life, wiped
from tests.ledger.reconcile_support import cancel, open_alerts, reconciler
from tests.ledger.support import Sale


async def test_oversold_campaign_waits_and_says_what_is_to_be_done(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    sale = await Sale.open(desk, {"red": 3})
    life = Life(sale, settings, ledger, store)
    orders = await life.accept(3)
    await life.drain()
    await ledger.execute("UPDATE stock_moves SET units = 1 WHERE kind = 'open'")
    await wiped(store)
    worker = reconciler(settings, ledger)
    await worker.step()
    assert (await desk.show(sale.campaign)).state == "recovering"
    assert set(await open_alerts(ledger)) == {"store_lost"}
    assert "oversold: 2 of red more than there are" in await ledger.fetchval("SELECT detail FROM alerts")
    # Again at once: nothing is tried in vain, and no epoch is used up.
    epoch = (await desk.show(sale.campaign)).epoch
    await worker.step()
    assert (await desk.show(sale.campaign)).epoch == epoch

    async def command(dry_run: bool) -> int:
        args = argparse.Namespace(campaign=sale.campaign, dry_run=dry_run, json=False)
        return await rebuild_commands.run(settings, args)

    assert await command(dry_run=True) == 0
    assert await command(dry_run=False) == 1
    told = capsys.readouterr().out
    assert told.count("oversold: 2 units of red more than there are") == 2
    assert "rushgate order cancel" in told
    for order in orders[:2]:
        await cancel(ledger, order)
    assert await command(dry_run=False) == 0
    assert await life.taken() == (1, 0, 1, 0)
    await worker.step()
    assert await open_alerts(ledger) == {}
    worker.stop()
    await worker.run()
