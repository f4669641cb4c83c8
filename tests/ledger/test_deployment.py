"""What is fixed for a deployment's life is held to."""

import asyncio

import pytest

from core.desk.campaigns import CampaignDesk
from core.errors import CampaignLost, ConfigInvalid
from core.ledger.deployment import claim_deployment
from core.ledger.pool import Pool
from lua.connection import SharedConnection
from tests.support import LEASE_MS, SHARDS, fresh, spec


async def test_deployment_is_written_down_once_by_many_at_once(ledger: Pool) -> None:
    ids = await asyncio.gather(*(claim_deployment(ledger, SHARDS) for _ in range(8)))
    assert len(set(ids)) == 1


async def test_another_number_of_shards_is_refused_with_both_numbers(
    ledger: Pool, store: SharedConnection, desk: CampaignDesk
) -> None:
    campaign = fresh("sale")
    await desk.put(campaign, spec())
    other = CampaignDesk(store, ledger, 7, LEASE_MS)
    for call in (other.show(campaign), other.open(campaign), other.put(campaign, spec())):
        with pytest.raises(ConfigInvalid, match="RUSHGATE_SHARDS is 7; this deployment was made with 64"):
            await call


async def test_campaign_of_another_ledger_in_the_same_store_is_not_taken_over(ledger: Pool, desk: CampaignDesk) -> None:
    campaign = fresh("sale")
    await desk.put(campaign, spec())
    await desk.open(campaign)
    await ledger.execute("UPDATE deployment SET id = gen_random_uuid()")  # as another ledger would have
    await ledger.execute("UPDATE campaigns SET state = 'opening'")
    stranger = CampaignDesk(desk._scripts.connection, ledger, SHARDS, LEASE_MS)  # type: ignore[arg-type]
    with pytest.raises(CampaignLost, match="FENCED"):
        await stranger.open(campaign)
