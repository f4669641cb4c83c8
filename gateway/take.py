"""One request from its decoded form to its outcome: memory first, then the store, then the other shards."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from core.errors import CampaignLost, Overloaded
from core.ids import IdSource
from core.model import AnyOrder, Item, PlainItem
from core.tracing import Tracer
from core.wire import request_field
from gateway.balance import Balancer, Found
from gateway.catalogue import Catalogue, Sale
from gateway.intake import Awaited, Intake, Waiting
from gateway.prepare import prepare
from gateway.rate_policy import Holder, Stand
from gateway.rates import Limiter
from gateway.soldout import SoldOut
from gateway.traces import OrderTraces, as_before
from lua.reserve import Ask, Fenced, Lease, Outcome, ReserveCode

MAX_SEARCHES = 8  # for units on other shards, for one request
REPLAYED, SOLD_OUT, NO_SKU = ReserveCode.REPLAYED, ReserveCode.SOLD_OUT, ReserveCode.NO_SKU


class Started(Waiting, Holder, Protocol):
    """Who waits for a request that was started and not awaited."""

    def tell(self, outcome: Outcome, /) -> None:
        """This is the outcome."""


class Told:
    """What a started request does with the store's answer: it is the outcome, or `finish` finds it."""

    __slots__ = ()
    sale: Sale

    def set_result(self, outcome: Outcome) -> None:
        if Taker.stands(self.sale, outcome):
            self.tell(outcome)
        else:
            self.finish_later(outcome)

    def set_exception(self, exc: Exception) -> None:
        if isinstance(exc, Fenced):
            self.finish_later(exc)
        else:
            self.fail(exc)

    def tell(self, outcome: Outcome) -> None:
        """The client has this outcome."""
        raise NotImplementedError

    def fail(self, exc: Exception) -> None:
        """The client has this error."""
        raise NotImplementedError

    def finish_later(self, said: Outcome | Fenced) -> None:
        """A task finds the outcome."""
        raise NotImplementedError


@lru_cache(maxsize=1_024)
def _sold_out(sku: str) -> Outcome:
    return Outcome(SOLD_OUT, detail=sku)


class Taker:
    """Takes orders; the way that `orders` and `orders:batch` share."""

    def __init__(
        self, catalogue: Catalogue, intake: Intake, sold_out: SoldOut, balancer: Balancer, tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        self.catalogue = catalogue
        self.ids = IdSource()
        self._intake = intake
        self._sold_out = sold_out
        self._balancer = balancer
        self._tracing = tracer is not None
        self._traces = OrderTraces(tracer, lambda: intake.sent_s)
        self.limiter: Limiter | None = None
        self.gone = 0  # requests answered `sold_out` from memory
        intake.on_leases = self._note_leases
        intake.on_version = catalogue.note_version

    def start(
        self, channel: str, request_key: str, order: AnyOrder, started: Started, traceparent: bytes = b""
    ) -> None:
        """`started`, whose sale is set, is told the outcome now, or is in the queue for what the store says.

        `finish` knows what that means. `traceparent`: the request's header of that name. Raises: Invalid, Overloaded:
        nothing was told, and it is not in the queue.
        """
        sale = started.sale
        gone = self._gone(sale, channel, request_key, order)
        if gone:
            self.gone += 1
            return started.tell(_sold_out(gone))
        slot, ask = prepare(self.ids, sale, channel, request_key, order)
        started.slot, started.ask = slot, ask
        waiting: Waiting = started
        if traceparent or self._tracing:
            waiting = self._traces.follow(started, traceparent)
        limiter = self.limiter
        if limiter is not None and (sale.rated or limiter.always or limiter.channels.rated):  # concerns(sale)
            return limiter.put(waiting, started, channel)
        return self._intake.put(waiting)

    async def take(
        self, sale: Sale, channel: str, request_key: str, order: AnyOrder, traceparent: bytes = b"",
        stand: Stand | None = None,
    ) -> Outcome:  # fmt: skip
        """The outcome of one request. `traceparent`: as of `start`.

        Raises: Invalid; Overloaded, StoreUnavailable, CampaignLost: 503, and the same key may be sent again.
        """
        gone = self._gone(sale, channel, request_key, order)
        if gone:
            self.gone += 1
            return _sold_out(gone)
        slot, ask = prepare(self.ids, sale, channel, request_key, order)
        said: Outcome | Fenced
        try:
            limiter = self.limiter
            limited = limiter is not None and limiter.concerns(sale)
            if limited or traceparent or self._tracing:
                answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
                awaited = Awaited(sale, slot, ask, answer)
                waiting: Waiting = awaited
                if traceparent or self._tracing:
                    waiting = self._traces.follow(awaited, traceparent)
                ask = awaited.ask
                if limiter is not None and limited:
                    limiter.put(waiting, stand or Stand(), channel)
                else:
                    self._intake.put(waiting)
                said = await answer
            else:
                said = await self._intake.submit(sale, slot, ask)
        except Fenced as exc:
            said = exc
        return await self.finish(sale, channel, request_key, order, slot, ask, said)

    def _gone(self, sale: Sale, channel: str, request_key: str, order: AnyOrder) -> str:
        """A SKU of the order that is surely sold out, or ''. What else is wrong with it is not told then."""
        if not self._sold_out.flags or (sale.channels is not None and channel not in sale.channels):
            return ""
        wanted: Sequence[Item | PlainItem] = order.items
        return self._sold_out.holds(sale, [item.sku for item in wanted], request_field(channel, request_key))

    @staticmethod
    def stands(sale: Sale, outcome: Outcome) -> bool:
        """Whether what the store said is the outcome; otherwise `finish` finds it."""
        code = outcome.code
        return code <= REPLAYED or (code is not NO_SKU and (code is not SOLD_OUT or sale.spread == 1))

    async def finish(
        self,
        sale: Sale,
        channel: str,
        request_key: str,
        order: AnyOrder,
        slot: int,
        ask: Ask,
        said: Outcome | Fenced,
    ) -> Outcome:
        """The outcome of a request of which one shard has said `said`. Raises: as `take`."""
        if isinstance(said, Fenced):
            sale, slot, ask, said = await self._again(sale, channel, request_key, order, ask)
        if said.code is SOLD_OUT and sale.spread > 1:
            return await self._elsewhere(sale, slot, ask, said)
        if said.code is NO_SKU:
            raise CampaignLost(f"the store has lost SKU {said.detail} of campaign {sale.campaign}")
        return said

    async def _again(
        self, sale: Sale, channel: str, request_key: str, order: AnyOrder, before: Ask
    ) -> tuple[Sale, int, Ask, Outcome]:
        """Once more after the store said that it has another epoch than we thought, or none."""
        self.catalogue.forget(sale.campaign)
        sale = await self.catalogue.get(sale.campaign)
        slot, ask = prepare(self.ids, sale, channel, request_key, order)
        ask = as_before(ask, before)
        try:
            return sale, slot, ask, await self._intake.submit(sale, slot, ask)
        except Fenced as exc:
            raise CampaignLost(f"the store does not hold campaign {sale.campaign} as it should") from exc

    async def _elsewhere(self, sale: Sale, slot: int, ask: Ask, outcome: Outcome) -> Outcome:
        """A refusal of one shard stands only if all shards together have too few."""
        for _ in range(MAX_SEARCHES):
            if outcome.code is not SOLD_OUT:
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
