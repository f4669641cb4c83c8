"""The waiting rooms of a gateway process, put together: their own connection to the store, away from the orders'."""

from collections.abc import Callable

from core.desk.campaigns import CampaignDesk
from core.desk.room import RoomDesk
from core.ledger.pool import Pool
from core.settings import Settings
from gateway.access import Access
from gateway.catalogue import Catalogue
from gateway.intake import Intake
from gateway.line import Line
from gateway.line_calls import LineCalls
from gateway.pressure import Pressure
from gateway.rates import Limiter
from lua.connection import SharedConnection

BUSY = 0.2  # of a mark of the backlog, or of the queue: a room that finds its rate by itself admits fewer beyond it


class LineParts:
    """`line` answers /line, `calls` the rest; `store` is this one's to close."""

    def __init__(
        self, settings: Settings, access: Access, catalogue: Catalogue, campaigns: CampaignDesk, ledger: Pool,
        store: SharedConnection, limiter: Limiter, pressed: Callable[[], bool], stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._store = store
        desk = RoomDesk(campaigns, store, ledger, settings.shards, settings.ticket_ttl_s)
        self.line = Line(settings, access, catalogue, desk, store, limiter, pressed, stopping)
        self.calls = LineCalls(settings, access, catalogue, self.line, desk)

    async def stop(self) -> None:
        """Nothing of it runs, its connection is closed."""
        await self.line.stop()
        await self._store.close()


def busy(intake: Intake, pressure: Pressure) -> bool:
    """Whether more waits than should, for the store or for the ledger."""
    return intake.refusal is not None or intake.waiting > BUSY * intake.room or pressure.share > BUSY
