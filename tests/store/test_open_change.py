"""`open` installs once; `change` never goes back to an older version."""

import pytest

from core.errors import StoreUnavailable
from core.model import MAX_SKUS
from lua.connection import SharedConnection
from lua.keys import SaleKeys, sale_keys
from lua.reserve import ReserveCode
from lua.scripts import ChangeCode, OpenCode, Scripts
from tests.support import StoreSale, contents, fresh, reading, tell

META: dict[str, str | int] = {"state": "paused", "version": 1}


def new_keys() -> SaleKeys:
    return sale_keys(3, fresh("sale"))


async def test_open_installs_stock_and_meta(store: SharedConnection, scripts: Scripts) -> None:
    keys = new_keys()
    assert await scripts.open(keys, 4, META | {"config": '{"a b":"%s"}'}, {"red": 3, "blue": 0}) is OpenCode.DONE
    assert await contents(store) == {
        keys.meta: {
            b"epoch": b"4", b"layout": b"2", b"deployment": b"", b"seq": b"0", b"reopen": b"0", b"state": b"paused",
            b"version": b"1", b"config": b'{"a b":"%s"}',
        },
        keys.stock: {
            b"red": b"3", b"a:red": b"3", b"h:red": b"0", b"s:red": b"0",
            b"blue": b"0", b"a:blue": b"0", b"h:blue": b"0", b"s:blue": b"0",
        },
    }  # fmt: skip


async def test_open_repeated_never_sets_stock_again(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 3})
    await sale.reserve(store, sale.ask("a"))
    before = await contents(store)
    assert await scripts.open(sale.keys, 1, META, {"red": 3, "blue": 9}) is OpenCode.REPEATED
    assert await contents(store) == before


@pytest.mark.parametrize("epoch", [1, 3, 20])
async def test_open_of_another_epoch_is_fenced(store: SharedConnection, scripts: Scripts, epoch: int) -> None:
    keys = new_keys()
    await scripts.open(keys, 2, META, {"red": 3})
    before = await contents(store)
    assert await scripts.open(keys, epoch, META, {"red": 9}) is OpenCode.FENCED
    assert await contents(store) == before


@pytest.mark.parametrize("name", ["meta", "stock", "used", "requests", "holds", "deltas", "moves"])
async def test_open_over_the_rest_of_a_lost_campaign_is_refused(
    store: SharedConnection, scripts: Scripts, name: str
) -> None:
    keys = new_keys()
    await tell(store, "HSET", getattr(keys, name), "what", "was left")
    before = await contents(store)
    assert await scripts.open(keys, 1, META, {"red": 3}) is OpenCode.DIRTY
    assert await contents(store) == before


async def test_open_takes_the_largest_campaign(store: SharedConnection, scripts: Scripts) -> None:
    keys = new_keys()
    stock = {f"{n:03}-{'s' * 60}": n for n in range(MAX_SKUS)}
    meta: dict[str, str | int] = {"config": "c" * 200_000, **{f"f{n}": n for n in range(49)}}
    assert await scripts.open(keys, 1, meta, stock) is OpenCode.DONE
    [found] = await scripts.audit([keys])
    assert found.left == found.allocation == stock
    assert found.meta["config"] == "c" * 200_000


async def test_open_without_skus_writes_nothing(store: SharedConnection, scripts: Scripts) -> None:
    with pytest.raises(StoreUnavailable):
        await scripts.open(new_keys(), 1, META, {})
    assert await contents(store) == {}


async def test_change_sets_fields_of_a_newer_version(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 3}, version=2)
    before = await contents(store)
    assert await scripts.change(sale.keys, 1, 3, {"state": "paused", "limit_buyer": 1}) is ChangeCode.DONE
    changed = {b"version": b"3", b"state": b"paused", b"limit_buyer": b"1"}
    assert await contents(store) == before | {sale.keys.meta: before[sale.keys.meta] | changed}


@pytest.mark.parametrize("version", [1, 9, 10])
async def test_change_of_an_older_or_the_same_version_changes_nothing(
    store: SharedConnection, scripts: Scripts, version: int
) -> None:
    """As numbers: 9 is older than 10."""
    sale = await StoreSale.open(store, {"red": 3}, version=10)
    before = await contents(store)
    assert await scripts.change(sale.keys, 1, version, {"state": "paused"}) is ChangeCode.REPEATED
    assert await contents(store) == before
    assert await scripts.change(sale.keys, 1, 11, {"state": "paused"}) is ChangeCode.DONE


@pytest.mark.parametrize("epoch", [0, 2])
async def test_change_of_another_epoch_is_fenced(store: SharedConnection, scripts: Scripts, epoch: int) -> None:
    sale = await StoreSale.open(store, {"red": 3})
    before = await contents(store)
    assert await scripts.change(sale.keys, epoch, 9, {"state": "paused"}) is ChangeCode.FENCED
    assert await contents(store) == before
    await tell(store, "FLUSHALL")
    assert await scripts.change(sale.keys, 1, 9, {"state": "paused"}) is ChangeCode.FENCED
    assert await contents(store) == {}


async def test_change_of_limits_and_window_holds_for_the_next_batch(store: SharedConnection, scripts: Scripts) -> None:
    sale = await StoreSale.open(store, {"red": 9}, limit_buyer=2)
    await sale.reserve(store, sale.ask("a"))
    await scripts.change(sale.keys, 1, 2, {"limit_buyer": 1})
    answers = await sale.reserve(store, sale.ask("a"), sale.ask("b"))
    assert [o.code for o in answers.outcomes] == [ReserveCode.OVER_LIMIT, ReserveCode.ACCEPTED]
    assert answers.version == 2
    await scripts.change(sale.keys, 1, 3, {"limit_buyer": "", "closes_ms": 1})
    assert (await sale.reserve(store, sale.ask("a"))).outcomes[0].code is ReserveCode.CLOSED
    await scripts.change(sale.keys, 1, 4, {"closes_ms": 2**45})
    assert (await sale.reserve(store, sale.ask("a", ("red", 7)))).outcomes[0].code is ReserveCode.ACCEPTED
    assert (await reading(store, sale)).left == {"red": 0}


async def test_open_of_another_deployments_campaign_is_fenced_and_writes_nothing(
    store: SharedConnection, scripts: Scripts
) -> None:
    keys = sale_keys(3, fresh("sale"))
    meta = META
    assert await scripts.open(keys, 1, meta, {"red": 5}, "one-ledger") is OpenCode.DONE
    before = await contents(store)
    assert await scripts.open(keys, 1, meta, {"red": 5}, "one-ledger") is OpenCode.REPEATED
    assert await scripts.open(keys, 1, meta, {"red": 5}, "another-ledger") is OpenCode.FENCED
    assert await contents(store) == before
