"""One request from its decoded form to its outcome: memory first, then the store, then the other shards."""

from core.errors import CampaignLost, Overloaded
from core.ids import IdSource
from core.model import OrderRequest
from gateway.balance import Balancer, Found
from gateway.catalogue import Catalogue, Sale
from gateway.intake import Intake
from gateway.prepare import prepare
from gateway.soldout import SoldOut
from lua.reserve import Ask, Fenced, Lease, Outcome, ReserveCode

MAX_SEARCHES = 8  # for units on other shards, for one request


class Taker:
    """Takes orders; the way that `orders` and `orders:batch` share."""

    def __init__(self, catalogue: Catalogue, intake: Intake, sold_out: SoldOut, balancer: Balancer) -> None:
        self.catalogue = catalogue
        self.ids = IdSource()
        self._intake = intake
        self._sold_out = sold_out
        self._balancer = balancer
        intake.on_leases = self._note_leases
        intake.on_version = catalogue.note_version

    async def take(self, sale: Sale, channel: str, request_key: str, order: OrderRequest) -> Outcome:
        """The outcome of one request.

        Raises: Invalid; Overloaded, StoreUnavailable, CampaignLost: 503, and the same key may be sent again.
        """
        slot, ask = prepare(self.ids, sale, channel, request_key, order)
        sku = self._sold_out.holds(sale, ask.lines, ask.field)
        if sku:
            return Outcome(ReserveCode.SOLD_OUT, detail=sku)
        try:
            outcome = await self._intake.submit(sale, slot, ask)
        except Fenced:
            sale, slot, ask, outcome = await self._again(sale, channel, request_key, order)
        if outcome.code is ReserveCode.SOLD_OUT and sale.spread > 1:
            return await self._elsewhere(sale, slot, ask, outcome)
        if outcome.code is ReserveCode.NO_SKU:
            raise CampaignLost(f"the store has lost SKU {outcome.detail} of campaign {sale.campaign}")
        return outcome

    async def _again(
        self, sale: Sale, channel: str, request_key: str, order: OrderRequest
    ) -> tuple[Sale, int, Ask, Outcome]:
        """Once more after the store said that it has another epoch than we thought, or none."""
        self.catalogue.forget(sale.campaign)
        sale = await self.catalogue.get(sale.campaign)
        slot, ask = prepare(self.ids, sale, channel, request_key, order)
        try:
            return sale, slot, ask, await self._intake.submit(sale, slot, ask)
        except Fenced as exc:
            raise CampaignLost(f"the store does not hold campaign {sale.campaign} as it should") from exc

    async def _elsewhere(self, sale: Sale, slot: int, ask: Ask, outcome: Outcome) -> Outcome:
        """A refusal of one shard stands only if all shards together have too few."""
        for _ in range(MAX_SEARCHES):
            if outcome.code is not ReserveCode.SOLD_OUT:
                return outcome
            sku = outcome.detail
            wanted = sum(int(q) for s, q in zip(ask.lines[::2], ask.lines[1::2], strict=True) if s == sku)
            search = await self._balancer.seek(sale, slot, sku, wanted)
            if search.found is Found.TOO_FEW:
                return outcome
            if search.found is Found.NOTHING:
                self._sold_out.raise_flag(sale, sku, search.lease_ms, search.mark, search.sent_s)
                return outcome
            outcome = await self._intake.submit(sale, slot, ask)
        raise Overloaded("units are on their way between shards")

    def _note_leases(self, sale: Sale, slot: int, leases: list[Lease], sent_s: float) -> None:
        if sale.spread == 1:
            for lease in leases:
                self._sold_out.raise_flag(sale, lease.sku, lease.ms, lease.mark, sent_s)
