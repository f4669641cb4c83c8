"""A change of a campaign that was made from another version than the one that is there."""

import pytest

from core.desk.campaigns import CampaignDesk
from core.errors import Refused
from core.model import Limits
from tests.support import fresh, spec

OTHERS = "changed by somebody else meanwhile"


@pytest.mark.parametrize("state", ["draft", "open"])
async def test_change_from_an_older_version_is_refused_and_changes_nothing(desk: CampaignDesk, state: str) -> None:
    name, first = fresh("c"), spec({"red": 5})
    known = await desk.put(name, first)
    if state == "open":
        known = await desk.open(name)
    second = await desk.put(name, spec({"red": 5}, limits=Limits(buyer=1)), known.version)
    assert second.version > known.version
    with pytest.raises(Refused, match=OTHERS):
        await desk.put(name, spec({"red": 5}, limits=Limits(buyer=9)), known.version)
    assert (await desk.show(name)).spec.limits == Limits(buyer=1)
    # Whoever names no version means the one that is there.
    third = await desk.put(name, spec({"red": 5}, limits=Limits(buyer=9)))
    assert third.spec.limits == Limits(buyer=9)
