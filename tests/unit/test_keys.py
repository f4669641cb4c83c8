"""Keys, shards and portions."""

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lua.keys import buyer_slot, home_shards, intake_key, portion, sale_keys


def test_sale_keys_are_those_of_the_design() -> None:
    keys = sale_keys(7, "launch")
    assert keys.meta == b"{s7}:c:launch:meta"
    assert keys._asdict() == {
        **{name: b"{s7}:c:launch:" + name.encode() for name in keys._fields[:-1]},
        "intake": b"{s7}:intake",
    }
    assert intake_key(7) == keys.intake


@given(st.integers(-(10**9), 10**9), st.integers(1, 1024))
def test_portions_add_up_and_differ_by_one_at_most(units: int, spread: int) -> None:
    parts = [portion(units, slot, spread) for slot in range(spread)]
    assert sum(parts) == units
    assert max(parts) - min(parts) <= 1
    assert [abs(p) for p in parts] == sorted((abs(p) for p in parts), reverse=True)


@given(st.text(max_size=64), st.integers(1, 1024))
def test_buyer_slot_is_in_range_and_stays(buyer_id: str, spread: int) -> None:
    slot = buyer_slot(buyer_id, spread)
    assert 0 <= slot < spread
    assert slot == buyer_slot(buyer_id, spread)
    assert buyer_slot(buyer_id, 1) == 0


def test_buyer_slots_are_even() -> None:
    counts = [0] * 16
    for n in range(16_000):
        counts[buyer_slot(f"buyer-{n}", 16)] += 1
    assert min(counts) > 800
    assert max(counts) < 1_200


@given(st.text(min_size=1, max_size=64), st.integers(1, 4096).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))  # fmt: skip # noqa: E501
def test_home_shards_are_distinct_neighbours(campaign: str, sizes: tuple[int, int]) -> None:
    spread, shards = sizes
    home = home_shards(campaign, spread, shards)
    assert len(set(home)) == spread
    assert all(0 <= shard < shards for shard in home)
    assert home[0] == home_shards(campaign, 1, shards)[0]
    assert [(b - a) % shards for a, b in itertools.pairwise(home)] == [1 % shards] * (spread - 1)


@pytest.mark.parametrize(("campaign", "first"), [("launch", zlib.crc32(b"launch") % 64)])
def test_home_shard_is_the_same_in_every_process(campaign: str, first: int) -> None:
    """Built on crc32, as Python's own hash differs from process to process."""
    assert home_shards(campaign, 3, 64) == [(first + n) % 64 for n in range(3)]
    assert buyer_slot("b", 64) == zlib.crc32(b"b") % 64
