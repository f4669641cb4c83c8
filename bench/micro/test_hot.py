"""The session of pytest-benchmark that `python -m bench.micro` starts; no part of `make test`.

Each function is timed between two runs of the calibrating loop, so that a machine that drifts moves both.
"""

import asyncio
import timeit
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

from bench.micro import subjects
from bench.services import Services, services
from gateway.catalogue import Sale
from lua.reserve import read

ITERATIONS, ROUNDS = 200, 60  # of functions that take microseconds
CALLS = 300  # of the script


class Place:
    """A store without the disk, whose mood is not what is measured, and an open campaign on it."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], found: Services, sale: Sale) -> None:
        self.run = run
        self.sale = sale
        self.public_url = found.settings.public_url
        self.exchange = subjects.Exchange(found, sale)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    stack = AsyncExitStack()

    async def enter() -> tuple[Services, Sale]:
        found = await stack.enter_async_context(services("memory"))
        return found, await found.open_sale("micro")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            here = Place(runner.get_loop().run_until_complete, *runner.run(enter()))
            yield here
            runner.run(here.exchange.connection.close())
        finally:
            runner.run(stack.aclose())


@pytest.fixture
def beside(benchmark: Any) -> Iterator[Any]:
    """The benchmark, and with its figures the least time of the calibrating loop just before and just after."""
    before_us = calibrated_us()
    yield benchmark
    benchmark.extra_info["calibrating_us"] = min(before_us, calibrated_us())


def calibrated_us() -> float:
    return min(timeit.repeat(subjects.calibrate, number=ITERATIONS, repeat=20)) / ITERATIONS * 1e6


def timed(benchmark: Any, call: subjects.Call) -> Any:
    return benchmark.pedantic(call, iterations=ITERATIONS, rounds=ROUNDS, warmup_rounds=2)


def test_decode_a_body(beside: Any) -> None:
    timed(beside, subjects.decode_body())


def test_prepare_an_order(beside: Any, place: Place) -> None:
    timed(beside, subjects.prepare_order(place.sale))


def test_pack_1(beside: Any, place: Place) -> None:
    timed(beside, subjects.pack_batch(place.sale, 1))


def test_pack_64(beside: Any, place: Place) -> None:
    timed(beside, subjects.pack_batch(place.sale, subjects.BATCH))


def test_script_call_of_64(beside: Any, place: Place) -> None:
    def following() -> tuple[tuple[Any], dict[str, Any]]:
        call, requests = place.exchange.following()
        made.append(requests)
        return (call,), {}

    made: list[Any] = []
    run = place.run
    exchange = place.exchange.run
    reply = beside.pedantic(lambda call: run(exchange(call)), setup=following, rounds=CALLS, warmup_rounds=5)
    subjects.all_accepted(read(reply, made[-1]))


def test_read_a_reply_of_64(beside: Any, place: Place) -> None:
    timed(beside, place.run(place.exchange.read_reply()))


def test_build_a_202(beside: Any, place: Place) -> None:
    timed(beside, subjects.build_reply(place.public_url))
