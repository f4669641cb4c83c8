"""The log of the store's absence: one line each way, however many requests meet it."""

import logging

import pytest

from core.errors import Recovering, StoreNotAsPromised, StoreUnavailable
from gateway.watch import StoreWatch, WatchedConnection

AWAY, FULL = StoreUnavailable("gone"), StoreUnavailable("disk full")


def test_store_that_goes_and_comes_is_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = StoreWatch()
    for _ in range(2):
        watch.answered()
        for _ in range(5):
            watch.lost(AWAY)
        for _ in range(5):
            watch.answered(reserved=True)
    assert caplog.messages == ["store is away", "store is back"] * 2
    assert [r.levelname for r in caplog.records[:2]] == ["WARNING", "INFO"]
    assert vars(caplog.records[0])["why"] == "gone"


def test_refusing_store_is_back_with_a_reservation_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = StoreWatch()
    for _ in range(3):
        watch.lost(FULL, refused=True)
        watch.answered()  # a probe of readiness reads, and reading goes on
        watch.lost(AWAY)
    watch.answered(reserved=True)
    assert caplog.messages == ["store refuses orders", "store is back"]


def test_store_that_answers_and_is_not_admitted_refuses_until_it_takes_an_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    watch = StoreWatch()
    watch.lost(AWAY)
    for _ in range(3):
        watch.answered()  # what is beside the orders: the look of backpressure, a probe of readiness
        watch.lost(Recovering("started anew"))
    watch.answered(reserved=True)
    assert caplog.messages == ["store is away", "store is back", "store refuses orders", "store is back"]


def test_store_set_otherwise_than_promised_says_why(caplog: pytest.LogCaptureFixture) -> None:
    StoreWatch().lost(StoreNotAsPromised("appendfsync is 'no'"))
    assert vars(caplog.records[0])["code"] == "store_not_as_promised"
    assert vars(caplog.records[0])["why"] == "appendfsync is 'no'"


async def test_shared_connection_tells_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    connection = WatchedConnection("redis://127.0.0.1:1", "fsync", 1.0, "test", StoreWatch())
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await connection.exchange([("PING",)])
    assert caplog.messages == ["store is away"]
