"""What `reserve` writes beside the stock: the entry in the intake, the hold, the record, the numbers of the orders."""

import random

import msgspec
from redis.exceptions import RedisError

from core.model import ShipTo
from core.wire import TAIL_BYTES, Header, Placed, decode_held, decode_placed, encode, read_entry, read_hold, read_stamp
from lua.connection import SharedConnection
from lua.reserve import Ask, ReserveCode
from tests.support import StoreSale, raw_reserve, reading, tell

NOW_MS, PAY_BY_MS = 1, 2  # places in a reply
Entry = tuple[Header, list[tuple[bytes, bytes]]]


async def entries(store: SharedConnection, sale: StoreSale) -> list[Entry]:
    """The entries of the sale's intake: header, and the orders in their order."""
    found: list[Entry] = []
    for _, flat in await tell(store, "XRANGE", sale.keys.intake, "-", "+"):
        found.append(read_entry(flat))
    return found


async def test_reserve_entry_is_what_was_accepted(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 2}, pay_within_ms=5_000)
    asks = [sale.ask("a", key="k"), sale.ask("b", ("red", 9)), sale.ask("a", key="k"), sale.ask("c")]
    [reply] = await raw_reserve(store, sale, [asks])
    assert reply[PAY_BY_MS] == reply[NOW_MS] + 5_000
    [(header, orders)] = await entries(store, sale)
    assert header == Header(sale.campaign, 1, reply[NOW_MS], reply[PAY_BY_MS], 1, 2)
    assert orders == [(a.order_id, a.held) for a in (asks[0], asks[3])]
    placed = decode_placed(orders[0][1])
    assert (placed.channel, placed.request_key, placed.buyer_id, placed.items) == ("app", "k", "a", [("red", 1, 100)])


async def test_reserve_hold_and_record_carry_the_stamp_of_the_entry(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 2})
    ask = sale.ask("a", ip="10.0.0.1", device="d")
    await sale.reserve(store, ask)
    [(header, _)] = await entries(store, sale)
    stamped = await tell(store, "HGET", sale.keys.holds, ask.order_id)
    held, accepted_ms, pay_by_ms = read_hold(stamped)
    assert encode(held) == ask.held
    assert (accepted_ms, pay_by_ms) == (header.accepted_ms, header.pay_by_ms)
    record = await tell(store, "HGET", sale.keys.requests, ask.field)
    assert record[:24] == ask.order_id + ask.fingerprint
    assert len(record) == 36
    assert read_stamp(record) == (accepted_ms, pay_by_ms)


async def test_reserve_entry_with_ship_to_has_it_and_the_hold_has_not(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 2})
    plain, ask = sale.ask("a"), sale.ask("b")
    held = decode_held(ask.held)
    to = ShipTo("山田", "+81 3-0000", "東京都 1-2\\3 'x'", "100", "JP")
    ask = ask._replace(placed=encode(Placed(**msgspec.structs.asdict(held), ship_to=to)))
    await sale.reserve(store, plain, ask)
    [(_, orders)] = await entries(store, sale)
    assert [decode_placed(raw).ship_to for _, raw in orders] == [None, to]
    assert orders[1] == (ask.order_id, ask.placed)
    stored, *_ = read_hold(await tell(store, "HGET", sale.keys.holds, ask.order_id))
    assert encode(stored) == ask.held


async def test_reserve_keeps_every_byte(store: SharedConnection) -> None:
    """Held, placed and ids are opaque to the script: NUL, line ends, percent signs and high bytes pass through."""
    sale = await StoreSale.open(store, {"red": 2})
    every_byte = bytes(range(256)) + b"%s%d\r\n\0"
    ask = sale.ask("a")._replace(order_id=b"\0\r\n%\xff" + bytes(11), held=every_byte, placed=every_byte[::-1])
    [outcome] = (await sale.reserve(store, ask)).outcomes
    assert outcome.order_id == ask.order_id
    [(_, orders)] = await entries(store, sale)
    assert orders == [(ask.order_id, ask.placed)]
    assert (await tell(store, "HGET", sale.keys.holds, ask.order_id))[:-TAIL_BYTES] == ask.held


async def test_reserve_refusal_alone_adds_no_entry(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 0})
    await sale.reserve(store, sale.ask("a"), sale.ask("b"))
    assert not await tell(store, "EXISTS", sale.keys.intake)


async def test_reserve_numbers_orders_without_a_gap(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 150}, limit_buyer=1)
    chance = random.Random(7)
    accepted: list[Ask] = []
    for _ in range(60):
        asks = [sale.ask(f"b{chance.randrange(200)}") for _ in range(chance.randint(1, 9))]
        answers = await sale.reserve(store, *asks)
        accepted += [a for a, o in zip(asks, answers.outcomes, strict=True) if o.code is ReserveCode.ACCEPTED]
    found = await entries(store, sale)
    next_seq = 1
    for header, orders in found:
        assert header.first_seq == next_seq
        assert orders
        next_seq += len(orders)
    assert [order_id for _, orders in found for order_id, _ in orders] == [a.order_id for a in accepted]
    state = await reading(store, sale)
    assert state.seq == state.requests == state.holds == len(accepted) == next_seq - 1
    assert state.left["red"] == 150 - len(accepted)
    assert state.intake == len(found)


async def test_reserve_keeps_large_numbers_exact(store: SharedConnection) -> None:
    """Lua counts in doubles and prints 14 digits: sequence numbers and units must not be rounded."""
    sale = await StoreSale.open(store, {"red": 2_000_000_000_000_000})
    await store.exchange([("HSET", sale.keys.meta, "seq", 4_000_000_000_000_000)])
    await sale.reserve(store, sale.ask("a", ("red", 999_999_999_999_999)))
    [(header, _)] = await entries(store, sale)
    assert header.first_seq == 4_000_000_000_000_001
    state = await reading(store, sale)
    assert state.seq == 4_000_000_000_000_001
    assert (state.left["red"], state.held["red"]) == (1_000_000_000_000_001, 999_999_999_999_999)


async def test_reserve_intake_of_a_shard_is_shared_by_its_campaigns(store: SharedConnection) -> None:
    one = await StoreSale.open(store, {"red": 5})
    two = await StoreSale.open(store, {"red": 5})
    # The second campaign stands on the first one's shard.
    moved = StoreSale(two.campaign, two.keys._replace(intake=one.keys.intake), one.shard)
    await one.reserve(store, one.ask("a"))
    await moved.reserve(store, moved.ask("a"))
    await one.reserve(store, one.ask("b"))
    found = [(h.campaign, h.first_seq) for h, _ in await entries(store, one)]
    assert found == [(one.campaign, 1), (two.campaign, 1), (one.campaign, 2)]


async def test_reserve_entry_is_read_as_it_is_by_a_group(store: SharedConnection) -> None:
    sale = await StoreSale.open(store, {"red": 5})
    ask = sale.ask("a")
    await sale.reserve(store, ask)
    await tell(store, "XGROUP", "CREATE", sale.keys.intake, "g", "0")
    reply = await tell(store, "XREADGROUP", "GROUP", "g", "c", "STREAMS", sale.keys.intake, ">")
    assert not isinstance(reply, RedisError)
    [[_, [[_, flat]]]] = reply
    assert flat[2:] == [b"o", ask.order_id + len(ask.held).to_bytes(4, "big") + ask.held]
