"""A soak is flat or it is not: each way to grow is told, and what may grow is not."""

from typing import Any

import msgspec
import pytest

from bench.overload import AFTER_S, WINDOW_S, recovered_s
from tests.faults.soak_judge import HANDLES, MB, STORE_BYTES, judge, table
from tests.faults.soak_samples import OfProcess, OfTable, Sample

GATEWAY = OfProcess(10, 50 * MB, 20, 1)
EMPTY = OfTable(2 * MB, MB, 0, 500)


def drained(part: int, **fields: Any) -> Sample:
    """After part `part`: 10,000 orders and what they leave behind more than after the one before."""
    orders = 10_000 * part
    flat = Sample(
        at_s=100.0 * part,
        part=part,
        drained=True,
        orders=orders,
        processes={"gateway-0": GATEWAY, "store": OfProcess(11, 30 * MB, 20, 6), "partners": GATEWAY},
        store_bytes=2 * MB + 200 * orders,
        store_clients=12,
        store_keys=70,
        sessions=16,
        oldest_s=0.0,
        tables={"orders": OfTable(1_000 * orders, 300 * orders, orders, 0), "outbox": EMPTY},
    )
    return msgspec.structs.replace(flat, **fields)


def soak(**last: Any) -> list[Sample]:
    """Four parts, flat but for what the last drain found; a sample under load in between, as wild as may be."""
    busy = drained(1, drained=False, processes={}, store_clients=900, sessions=90, oldest_s=900.0)
    return [busy, drained(1), busy, drained(2), drained(3), busy, drained(4, **last)]


def process(name: str, **fields: Any) -> dict[str, OfProcess]:
    flat = drained(4).processes
    return {**flat, name: msgspec.structs.replace(flat[name], **fields)}


def of_table(name: str, **fields: Any) -> dict[str, OfTable]:
    flat = drained(4).tables
    return {**flat, name: msgspec.structs.replace(flat[name], **fields)}


def test_flat_is_flat_and_can_be_shown() -> None:
    assert judge(soak()) == []
    text = "\n".join(table(soak()))
    assert "store: 200 bytes for each ended order" in text
    assert "gateway-0, one life: +0 MB" in text


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ({"processes": process("gateway-0", rss_bytes=59 * MB)}, "gateway-0: memory"),
        ({"processes": process("gateway-0", fds=20 + HANDLES + 1)}, "gateway-0: file handles"),
        ({"processes": process("gateway-0", threads=4)}, "gateway-0: threads"),
        ({"processes": process("partners", rss_bytes=50 * MB + 30_000 * 15_000 + 9 * MB)}, "partners: memory"),
        ({"processes": {}}, "gateway-0 ran before only"),
        ({"store_bytes": 4 * MB + (STORE_BYTES + 1) * 30_000}, "store: 701 bytes"),
        ({"store_clients": 12 + HANDLES + 1}, "store: clients"),
        ({"sessions": 23}, "ledger: sessions"),
        ({"oldest_s": 61.0}, "a transaction is 61 s old"),
        ({"tables": of_table("orders", dead=20_001)}, "orders has 20,001 dead rows"),
        ({"tables": of_table("orders", bytes=10 * MB + 1_501 * 30_000)}, "orders 1,000 bytes an order"),
        ({"tables": of_table("outbox", bytes=7 * MB + 1)}, "outbox 2.0 -> 7.0 MB"),
        ({"orders": 10_000}, "no order came"),
    ],
)
def test_each_way_to_grow_is_told(last: dict[str, Any], told: str) -> None:
    assert any(told in words for words in judge(soak(**last))), judge(soak(**last))


@pytest.mark.parametrize(
    "last",
    [
        {"processes": process("gateway-0", rss_bytes=58 * MB, fds=20 + HANDLES)},
        {"processes": process("gateway-0", pid=99)},  # restarted
        {"processes": process("store", rss_bytes=90 * MB)},  # judged by what an order leaves
        {"processes": process("partners", rss_bytes=50 * MB + 30_000 * 15_000)},
        {"store_bytes": 4 * MB + STORE_BYTES * 30_000},
        {"tables": of_table("outbox", bytes=7 * MB)},
    ],
)
def test_what_may_grow_is_not_told(last: dict[str, Any]) -> None:
    assert judge(soak(**last)) == []


def test_a_leak_of_a_few_handles_in_every_part_is_told_at_the_end_only_if_it_goes_on() -> None:
    grows = [drained(n, processes=process("gateway-0", fds=20 + 9 * n)) for n in (1, 2, 3, 4)]
    stays = [drained(n, processes=process("gateway-0", fds=20 + 9 * min(n, 2))) for n in (1, 2, 3, 4)]
    assert any("file handles 29, 38, 47 -> 56" in words for words in judge(grows))
    assert judge(stays) == []


def test_without_drains_to_compare_nothing_is_flat() -> None:
    assert judge([drained(1), drained(2)]) == ["2 samples after a drain: three are needed"]


def test_recovered_is_the_end_of_the_last_window_that_was_slow_or_silent() -> None:
    count = int(AFTER_S / WINDOW_S)
    fine = {n: [0.010] * 50 for n in range(count)}
    assert recovered_s(fine, AFTER_S, 80.0) == 0.0
    assert recovered_s(fine | {0: [0.5] * 50, 3: [0.010] * 98 + [0.5] * 2}, AFTER_S, 80.0) == 4 * WINDOW_S
    silent = dict(fine)
    del silent[5]
    assert recovered_s(silent, AFTER_S, 80.0) == 6 * WINDOW_S
    assert recovered_s({}, AFTER_S, 80.0) == AFTER_S
