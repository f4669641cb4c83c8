"""`audit` reads one instant; `ack` ends entries once."""

import pytest

from core.errors import StoreUnavailable
from lua.connection import SharedConnection
from lua.keys import sale_keys
from lua.scripts import Scripts
from tests.support import StoreSale, contents, fresh, tell


async def test_audit_reads_what_was_done(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 9, "blue": 0}, version=3)
    await sale.reserve(store, sale.ask("a", ("red", 2)), sale.ask("b"))
    await sale.reserve(store, sale.ask("c"))
    await scripts.restock(sale.keys, 1, "x1", "red", -3, to=60)
    before = await contents(store)
    [found] = await scripts.audit([sale.keys])
    assert await contents(store) == before
    assert found.left == {"red": 2, "blue": 0}
    assert found.held == {"red": 4, "blue": 0}
    assert found.sold == {"red": 0, "blue": 0}
    assert found.allocation == {"red": 6, "blue": 0}
    assert (found.requests, found.holds, found.seq, found.intake) == (3, 3, 3, 2)
    assert found.moves == {"x1": (60, "red", 3)}
    assert (found.meta["epoch"], found.meta["version"]) == ("1", "3")
    seconds, _ = await tell(store, "TIME")
    assert abs(found.now_ms / 1000 - int(seconds)) < 5


async def test_audit_of_nothing_has_no_meta(scripts: Scripts, store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 9})
    nothing, found = await scripts.audit([sale_keys(5, fresh("no-sale")), sale.keys])
    assert (nothing.meta, nothing.left, nothing.seq, nothing.requests, nothing.intake) == ({}, {}, 0, 0, 0)
    assert (nothing.on_sale("red"), nothing.waits_ms("red")) == (0, 0)
    assert found.left == {"red": 9}


async def test_audit_is_answered_by_a_store_without_memory(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 9})
    await tell(store, "CONFIG", "SET", "maxmemory", 1)
    try:
        assert (await scripts.audit([sale.keys]))[0].left == {"red": 9}
    finally:
        await tell(store, "CONFIG", "SET", "maxmemory", 0)


async def delivered(store: SharedConnection, sale: StoreSale, count: int) -> list[bytes]:
    """Ids of entries that a consumer has read and not acknowledged."""
    for n in range(count):
        await sale.reserve(store, sale.ask(f"b{n}"))
    await tell(store, "XGROUP", "CREATE", sale.keys.intake, "ledger", "0")
    [[_, rows]] = await tell(
        store, "XREADGROUP", "GROUP", "ledger", "w", "COUNT", count, "STREAMS", sale.keys.intake, ">"
    )
    return [entry_id for entry_id, _ in rows]


async def test_ack_takes_an_entry_off_stream_and_pending_list_together(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 9})
    ids = await delivered(store, sale, 3)
    assert await scripts.ack(sale.keys.intake, "ledger", ids[:2]) == 2
    assert [i for i, _ in await tell(store, "XRANGE", sale.keys.intake, "-", "+")] == ids[2:]
    pending = await tell(store, "XPENDING", sale.keys.intake, "ledger", "-", "+", 10)
    assert [p[0] for p in pending] == ids[2:]


async def test_ack_repeated_changes_nothing(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 9})
    ids = await delivered(store, sale, 3)
    await scripts.ack(sale.keys.intake, "ledger", ids[:2])
    before = await contents(store)
    assert await scripts.ack(sale.keys.intake, "ledger", ids[:2]) == 0
    assert await contents(store) == before
    assert await scripts.ack(sale.keys.intake, "ledger", ids) == 1


async def test_ack_of_a_missing_stream_is_no_fault(store: SharedConnection, scripts: Scripts) -> None:
    assert await scripts.ack(sale_keys(5, "none").intake, "ledger", [b"1-1"]) == 0
    assert await contents(store) == {}


@pytest.mark.parametrize("ids", [[b"1-1", b"nonsense"], []])
async def test_ack_of_a_bad_id_ends_nothing(store: SharedConnection, scripts: Scripts, ids: list[bytes]) -> None:
    sale = await StoreSale.open(store, {"red": 9})
    good = await delivered(store, sale, 1)
    with pytest.raises(StoreUnavailable):
        await scripts.ack(sale.keys.intake, "ledger", good + ids if ids else [])
    pending = await tell(store, "XPENDING", sale.keys.intake, "ledger", "-", "+", 10)
    assert [p[0] for p in pending] == good
    assert await tell(store, "XLEN", sale.keys.intake) == 1


async def test_ack_takes_a_thousand_entries_at_once(store: SharedConnection, scripts: Scripts) -> None:
    intake = sale_keys(5, "none").intake
    ids = [b"%d-1" % n for n in range(1, 1_001)]
    await store.exchange([("XADD", intake, entry_id, "h", "") for entry_id in ids])
    assert await scripts.ack(intake, "ledger", ids) == 1_000
    assert await tell(store, "XLEN", intake) == 0
