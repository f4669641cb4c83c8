"""`restock`: a delta with an id, to and from outside and between shards."""

import pytest

from core.errors import StoreUnavailable
from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from lua.scripts import RestockCode, Scripts
from tests.support import StoreSale, contents, reading, tell

R = RestockCode


async def test_restock_adds_and_withdraws_units_of_the_allocation(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 5, "blue": 1})
    await sale.reserve(store, sale.ask("a", ("red", 2)))
    assert await scripts.restock(sale.keys, 1, "r1", "red", 4) == (R.DONE, 7)
    assert await scripts.restock(sale.keys, 1, "r2", "red", -6) == (R.DONE, 1)
    found = await reading(store, sale)
    assert found.left == {"red": 1, "blue": 1}
    assert found.allocation == {"red": 3, "blue": 1}
    assert found.held == {"red": 2, "blue": 0}
    assert found.moves == {}


@pytest.mark.parametrize("units", [3, -3])
async def test_restock_repeated_changes_nothing(store: SharedConnection, scripts: Scripts, units: int) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    assert await scripts.restock(sale.keys, 1, "r1", "red", units) == (R.DONE, 5 + units)
    before = await contents(store)
    assert await scripts.restock(sale.keys, 1, "r1", "red", units) == (R.REPEATED, 5 + units)
    assert await scripts.restock(sale.keys, 1, "r1", "red", -9) == (R.REPEATED, 5 + units)
    assert await contents(store) == before


async def test_restock_withdraws_exactly_what_is_left_and_no_more(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    await sale.reserve(store, sale.ask("a", ("red", 2)))
    before = await contents(store)
    assert await scripts.restock(sale.keys, 1, "r1", "red", -4) == (R.TOO_FEW, 3)
    assert await contents(store) == before
    assert await scripts.restock(sale.keys, 1, "r1", "red", -3) == (R.DONE, 0)  # the id was free
    assert await scripts.restock(sale.keys, 1, "r2", "red", -1) == (R.TOO_FEW, 0)


@pytest.mark.parametrize("epoch", [0, 2])
async def test_restock_of_another_epoch_is_fenced(store: SharedConnection, scripts: Scripts, epoch: int) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    before = await contents(store)
    assert await scripts.restock(sale.keys, epoch, "r1", "red", 4) == (R.FENCED, 0)
    assert await contents(store) == before


async def test_restock_without_campaign_makes_no_phantom_stock(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    await tell(store, "FLUSHALL")
    assert await scripts.restock(sale.keys, 1, "r1", "red", 4) == (R.FENCED, 0)
    assert await contents(store) == {}


async def test_restock_of_an_unknown_sku_writes_nothing(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    before = await contents(store)
    assert await scripts.restock(sale.keys, 1, "r1", "blue", 4) == (R.UNKNOWN, 0)
    assert await contents(store) == before


async def test_restock_transfer_leaves_a_note_until_it_has_arrived(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    assert await scripts.restock(sale.keys, 1, "x1", "red", -2, to=9) == (R.DONE, 3)
    assert await scripts.restock(sale.keys, 1, "x1", "red", -2, to=9) == (R.REPEATED, 3)
    found = await reading(store, sale)
    assert found.moves == {"x1": (9, "red", 2)}
    assert found.allocation == {"red": 3}
    assert await scripts.restock(sale.keys, 1, "x2", "red", 4, to=9) == (R.DONE, 7)
    assert (await reading(store, sale)).moves == found.moves  # an arrival leaves no note


async def test_restock_notes_exact_units_of_a_large_move(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 100_000_000})
    await scripts.restock(sale.keys, 1, "x1", "red", -99_999_999, to=9)
    assert (await reading(store, sale)).moves == {"x1": (9, "red", 99_999_999)}
    assert await tell(store, "HGET", sale.keys.deltas, "x1") == b"red -99999999"


async def test_restock_makes_units_from_outside_wait_only_if_none_was_left(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 0, "blue": 1, "green": 0}, lease_ms=900)
    await scripts.restock(sale.keys, 1, "r1", "blue", 1)
    await scripts.restock(sale.keys, 1, "x1", "green", 1, to=3)
    assert {f for f in (await reading(store, sale)).meta if f.startswith("r:")} == set()
    await scripts.restock(sale.keys, 1, "r2", "red", 1)
    found = await reading(store, sale)
    assert 0 < found.waits_ms("red") <= 900
    assert [found.on_sale(sku) for sku in ("red", "blue", "green")] == [0, 2, 1]
    assert found.meta["r:red"] == found.meta["reopen"]
    await scripts.restock(sale.keys, 1, "r3", "red", 1)  # does not begin the wait anew
    assert (await reading(store, sale)).meta["r:red"] == found.meta["r:red"]


async def test_restock_of_waiting_units_can_be_withdrawn_but_not_transferred(
    store: SharedConnection, scripts: Scripts
) -> None:
    sale = await StoreSale.open(store, {"red": 0}, lease_ms=60_000)
    await scripts.restock(sale.keys, 1, "r1", "red", 3)
    before = await contents(store)
    assert await scripts.restock(sale.keys, 1, "x1", "red", -1, to=3) == (R.TOO_FEW, 3)
    assert await contents(store) == before
    assert await scripts.restock(sale.keys, 1, "r2", "red", -1) == (R.DONE, 2)


async def test_restock_puts_what_waits_on_sale_where_a_transfer_arrives(
    store: SharedConnection, scripts: Scripts
) -> None:
    """A unit that was on sale elsewhere must not wait because others came back to the shard it was moved to."""
    sale = await StoreSale.open(store, {"red": 0}, lease_ms=60_000)
    await scripts.restock(sale.keys, 1, "r1", "red", 6)
    waiting = (await reading(store, sale)).meta["r:red"]
    assert await scripts.restock(sale.keys, 1, "x1", "red", 1, to=3) == (R.DONE, 7)
    found = await reading(store, sale)
    assert (found.waits_ms("red"), found.on_sale("red")) == (0, 7)
    assert found.meta["r:red"] < waiting  # the mark of the period in which it was empty has changed
    answers = await sale.reserve(store, sale.ask("a", ("red", 7)))
    assert [o.code for o in answers.outcomes] == [ReserveCode.ACCEPTED]


async def test_restock_reopen_never_goes_back(store: SharedConnection, scripts: Scripts) -> None:
    """Set back, the clock would put another SKU's waiting units on sale early; longer than a lease nobody waits."""
    sale = await StoreSale.open(store, {"red": 0, "blue": 5}, lease_ms=60_000)
    later = 2**45
    await tell(store, "HSET", sale.keys.meta, "reopen", later, "r:blue", later)
    await scripts.restock(sale.keys, 1, "r1", "red", 3)
    assert (await reading(store, sale)).meta["reopen"] == str(later)
    answers = await sale.reserve(store, sale.ask("a", ("blue", 1)), sale.ask("b"))
    assert [o.code for o in answers.outcomes] == [ReserveCode.ACCEPTED, ReserveCode.SOLD_OUT]


@pytest.mark.parametrize("name", ["meta", "stock", "deltas", "moves"])
async def test_restock_leaves_all_as_it_was_when_a_key_is_broken(
    store: SharedConnection, scripts: Scripts, name: str
) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    await store.exchange([("DEL", getattr(sale.keys, name)), ("SET", getattr(sale.keys, name), "x")])
    before = await contents(store)
    for units, to in ((-1, 3), (1, 3), (1, None)):
        with pytest.raises(StoreUnavailable, match=r"WRONGTYPE|wrong kind"):
            await scripts.restock(sale.keys, 1, "x1", "red", units, to)
    assert await contents(store) == before
