"""What an operator is told while a campaign is rebuilt: ask again, never a refusal for good."""

import pytest

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.errors import Recovering
from core.ledger.pool import Pool
from core.model import Restock
from lua.connection import SharedConnection
from tests.ledger.rebuild_support import rebuilder
from tests.ledger.support import Sale


async def test_change_of_a_campaign_that_is_rebuilt_is_to_be_repeated_and_then_made_once(
    desk: CampaignDesk, auditor: Auditor, store: SharedConnection, ledger: Pool
) -> None:
    """Found by the nemesis, seed 7704: a restock without an answer was journalled late, its repetition was told 409
    while the campaign was rebuilt, so nobody asked again and the move was pending for ever."""
    sale = await Sale.open(desk, {"red": 10})
    recovery = rebuilder(desk, auditor, store, ledger)
    await recovery.set_aside(sale.campaign, "test")
    change = Restock("more", "red", 5)
    for call in (desk.restock(sale.campaign, change), desk.pause(sale.campaign), desk.open(sale.campaign),
                 desk.close(sale.campaign)):  # fmt: skip
        with pytest.raises(Recovering):
            await call
    await recovery.rebuild(sale.campaign, "test")
    assert [(await desk.restock(sale.campaign, change)).repeated for _ in range(2)] == [False, True]
    report = await auditor.audit(sale.campaign)
    assert (report.ok, report.skus[0].left) == (True, 15)
