"""The story of an order where something is wrong: set aside, dead messages, repairs, a store or ledger that is away."""

import io

import pytest
from asyncpg.pgproto.pgproto import UUID
from msgspec.structs import replace
from rich.console import Console

from core.desk.campaigns import CampaignDesk
from core.errors import LedgerUnavailable, OrderUnknown
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from ops.desk import open_desk
from ops.order_display import duration, plain, print_story
from ops.order_story import Story, explain_unknown, read_story
from tests.ledger.relay_support import ids
from tests.ledger.support import Sale, drain, make_worker
from tests.support import SHARDS
from workers.writer import LedgerWriter


async def told(settings: Settings, order: bytes) -> Story:
    async with open_desk(settings) as desk:
        return await read_story(desk, SHARDS, order)


def printed(story: Story, width: int) -> str:
    out = io.StringIO()
    print_story(story, Console(file=out, width=width))
    return out.getvalue()


async def first(sale: Sale, store: SharedConnection) -> bytes:
    """The id of an order of the sale, by its hold."""
    [reply] = await store.exchange([("HKEYS", sale.parts[0].keys.holds)])
    return bytes(reply[0])


async def test_order_that_the_ledger_could_not_take_is_told_set_aside(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 1)
    order = await first(sale, store)
    assert (await told(settings, order)).note == "in the store, on its way to the ledger"
    await ledger.execute("ALTER TABLE orders ADD CONSTRAINT orders_none CHECK (amount < 0) NOT VALID")
    await drain(store, make_worker(settings, ledger, writer=LedgerWriter(ledger)))
    story = await told(settings, order)
    assert not story.in_ledger
    assert story.note.startswith("set aside, not in the ledger: ")
    assert "set aside" in printed(story, 80)
    async with open_desk(settings) as opened:
        why = await explain_unknown(opened, SHARDS, order)
    assert (why.code, "set aside" in why.detail) == ("unknown_order", True)


async def test_dead_messages_and_repairs_are_told_and_move_no_cursor(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 1)
    await drain(store, make_worker(settings, ledger))
    [order] = await ids(ledger)
    await ledger.execute(
        "WITH gone AS (DELETE FROM outbox RETURNING *) INSERT INTO dead_messages "
        "SELECT shard, order_id, version, topic, at, now(), 12, E'answered \\x1b[2J [bold]500' FROM gone"
    )
    await ledger.execute(
        "INSERT INTO repairs (shard, order_id, what, campaign, why) SELECT shard, order_id, 'released', campaign, "
        "'its release was lost' FROM orders WHERE order_id = $1",
        UUID(order),
    )
    story = await told(settings, order)
    assert (story.waiting, story.hold, len(story.dead), len(story.repairs)) == ([], "1 × red", 1, 1)
    for width in (80, 120):
        text = printed(story, width)
        for said in ("Dead messages", "answered ·[2J [bold]500", "Repairs of its hold", "its release was lost"):
            assert said in text
        assert "\x1b" not in text


async def test_order_that_holds_no_units_yet_says_so(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 5}, order_type="reserve_at_payment")
    await sale.accept(store, 1)
    assert (await told(settings, await first(sale, store))).hold == "no units yet, of 1 × red"


async def test_story_is_told_as_far_as_store_and_ledger_go(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    sale = await Sale.open(desk, {"red": 5})
    await sale.accept(store, 1)
    order = await first(sale, store)
    no_ledger = replace(settings, ledger_dsn="postgresql://nobody@127.0.0.1:1/none", ledger_timeout_s=1.0)
    story = await told(no_ledger, order)
    assert (story.in_ledger, story.order.state) == (False, "accepted")
    assert story.note.startswith("the ledger is away: ")
    await drain(store, make_worker(settings, ledger))
    no_store = replace(settings, store_url="redis://127.0.0.1:1")
    story = await told(no_store, order)
    assert (story.in_ledger, story.order.items[0].sku) == (True, "red")
    assert story.hold.startswith("not known: the store cannot be reached")
    nobody = order[:-1] + bytes([order[-1] ^ 1])
    with pytest.raises(OrderUnknown, match="neither ledger nor store"):
        await told(settings, nobody)
    with pytest.raises(LedgerUnavailable):
        await told(no_ledger, nobody)


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1_234, "1.2 s"), (59_960, "1 m 0 s"), (200_000, "3 m 20 s"),
     (3_599_900, "1 h 0 m"), (7_500_000, "2 h 5 m"), (273_600_000, "3 d 4 h")],
)  # fmt: skip
def test_duration_is_short_and_never_sixty(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_plain_text_has_no_controls() -> None:
    assert plain("a\x1b[31m\nb\u202e").plain == "a·[31m·b·"
