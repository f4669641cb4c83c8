"""The limiter of a gateway process on a real store: what it lets through, its bounds, and its end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping

import pytest

from core.errors import Overloaded, RateLimited, StoreUnavailable
from core.rates import parse_rates
from gateway.catalogue import Sale
from gateway.intake import Awaited, Intake, Refusal
from gateway.rate_policy import Stand
from gateway.rates import Limiter
from lua.connection import SharedConnection, StoreConnection
from lua.keys import rate_keys
from lua.reserve import Outcome, ReserveCode
from tests.conftest import Services
from tests.support import SHARDS, StoreSale, spec, tell

NONE: Mapping[str, str] = {}


class Channels:
    rated = False

    def rates(self, channel: str) -> Mapping[str, str]:
        return NONE


class Process:
    """A limiter and its intake."""

    def __init__(self, url: str, rates: str, bound: int = 1_000, timeout_s: float = 10.0) -> None:
        self.connection = StoreConnection(url, "fsync", timeout_s, "rates")
        self.intake = Intake([StoreConnection(url, "fsync", timeout_s, "intake")], 1_000, 256)
        self.limiter = Limiter(self.connection, self.intake, Channels(), parse_rates(rates), bound)
        self.intake.start()
        self.limiter.start()

    def send(self, part: StoreSale, sale: Sale, buyer: str, stand: Stand | None = None) -> asyncio.Future[Outcome]:
        """The answer of an order that is in the queue. Raises: as Limiter.put."""
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.limiter.put(Awaited(sale, 0, part.ask(buyer), answer), stand or Stand(), "app")
        return answer

    async def stop(self) -> None:
        await self.limiter.stop()
        await self.intake.stop()


@pytest.fixture
async def process(store: SharedConnection, services: Services) -> AsyncIterator[Process]:
    found = Process(services.store_url, "buyer=2/h")
    yield found
    await found.stop()


async def opened(store: StoreConnection) -> tuple[StoreSale, Sale]:
    part = await StoreSale.open(store, {"red": 10_000})
    return part, Sale(part.campaign, 1, 1, spec({"red": 10_000}), SHARDS)


async def answers(sent: list[asyncio.Future[Outcome]]) -> Counter[str]:
    found = await asyncio.gather(*sent, return_exceptions=True)
    return Counter(
        type(one).__name__ if isinstance(one, BaseException) else ReserveCode(one.code).name for one in found
    )


async def test_what_is_let_through_goes_on_to_its_order(process: Process, store: SharedConnection) -> None:
    part, sale = await opened(store)
    stand = Stand()
    sent = [process.send(part, sale, "ann", stand) for _ in range(5)] + [process.send(part, sale, "bob")]
    assert stand.standing is None
    assert await answers(sent) == {"ACCEPTED": 3, "RateLimited": 3}
    assert stand.standing is not None
    assert (process.limiter.passed, process.limiter.limited) == (3, 3)
    refused = next(f.exception() for f in sent if f.exception())
    assert isinstance(refused, RateLimited)
    assert (refused.limit, refused.retry_after_s) == ("buyer", 1_800)


async def test_order_that_is_refused_behind_the_limiter_is_told_so(process: Process, store: SharedConnection) -> None:
    """The intake shuts while the question is under way: 503, and nobody waits for ever."""
    part, sale = await opened(store)
    sent = [process.send(part, sale, "ann")]
    process.intake.refusal = Refusal("full", 7)
    assert await answers(sent) == {"Overloaded": 1}
    with pytest.raises(Overloaded) as caught:
        process.send(part, sale, "bob")
    assert caught.value.retry_after_s == 7
    process.intake.refusal = None
    assert await answers([process.send(part, sale, "bob") for _ in range(2)]) == {"ACCEPTED": 2}  # it did not count


async def test_queue_of_the_limiter_is_bounded(store: SharedConnection, services: Services) -> None:
    process = Process(services.store_url, "buyer=2/h", bound=5)
    try:
        part, sale = await opened(store)
        sent = [process.send(part, sale, f"b{n}") for n in range(5)]
        with pytest.raises(Overloaded):
            process.send(part, sale, "b5")
        assert await answers(sent) == {"ACCEPTED": 5}
    finally:
        await process.stop()


async def test_fault_of_the_store_is_told_and_nobody_is_let_through(process: Process, store: SharedConnection) -> None:
    part, sale = await opened(store)
    key = rate_keys(part.campaign).old
    await tell(store, "SET", key, "x")
    assert await answers([process.send(part, sale, "ann") for _ in range(3)]) == {"StoreUnavailable": 3}
    assert process.limiter.passed == 0
    await tell(store, "DEL", key)
    assert await answers([process.send(part, sale, "ann")]) == {"ACCEPTED": 1}


async def test_connection_that_was_cut_is_made_anew_without_a_503(process: Process, store: SharedConnection) -> None:
    part, sale = await opened(store)
    assert await answers([process.send(part, sale, "ann")]) == {"ACCEPTED": 1}
    await tell(store, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await answers([process.send(part, sale, "bob")]) == {"ACCEPTED": 1}


async def test_store_that_is_away_lets_nobody_through(store: SharedConnection) -> None:
    process = Process("redis://127.0.0.1:1/0", "buyer=2/h", timeout_s=1.0)
    try:
        part, sale = await opened(store)
        assert await answers([process.send(part, sale, f"b{n}") for n in range(20)]) == {"StoreUnavailable": 20}
    finally:
        await process.stop()


async def test_flush_waits_for_all_and_stop_leaves_nobody_waiting(process: Process, store: SharedConnection) -> None:
    part, sale = await opened(store)
    sent = [process.send(part, sale, f"b{n}") for n in range(50)]
    await process.limiter.flush()
    await process.intake.flush()
    assert all(f.done() for f in sent)
    late = [process.send(part, sale, f"late{n}") for n in range(5)]
    await process.limiter.stop()
    assert await answers(late) == {"StoreUnavailable": 5}
    assert isinstance(late[0].exception(), StoreUnavailable)
