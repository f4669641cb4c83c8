"""Order ids: time, shard and tag in a valid UUID version 7."""

import time
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ids import MAX_SHARDS, IdSource, campaign_tag, parse, shard_of, tag_of, text_of

shards = st.integers(0, MAX_SHARDS - 1)
tags = st.integers(0, 2**22 - 1)


@given(shards, tags)
def test_id_carries_its_shard_and_tag(shard: int, tag: int) -> None:
    order_id = IdSource().new(shard, tag)
    assert (len(order_id), shard_of(order_id), tag_of(order_id)) == (16, shard, tag)


@given(shards, tags)
def test_id_is_a_valid_uuid_7_of_now(shard: int, tag: int) -> None:
    before_ms = time.time_ns() // 1_000_000
    order_id = IdSource().new(shard, tag)
    value = UUID(bytes=order_id)
    assert (value.version, value.variant) == (7, RFC_4122)
    assert before_ms <= int.from_bytes(order_id[:6], "big") <= time.time_ns() // 1_000_000


@given(shards, tags)
def test_id_reads_back_from_its_text(shard: int, tag: int) -> None:
    order_id = IdSource().new(shard, tag)
    text = text_of(order_id)
    assert text == str(UUID(bytes=order_id))
    assert parse(text) == parse(text.upper()) == order_id


def test_ids_are_unique_over_a_wrap_of_the_counter() -> None:
    ids = IdSource()
    made = [ids.new(5, 9) for _ in range(100_000)]
    assert len(set(made)) == 100_000
    counts = [int.from_bytes(i[-2:], "big") for i in made]
    assert len(set(counts)) == 2**16  # it wrapped, and left the process's number alone
    assert len({i[8:14] for i in made}) == 1


def test_ids_of_two_processes_differ_in_one_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    sources = [IdSource() for _ in range(20)]
    assert len({s.new(5, 9) for s in sources for _ in range(1_000)}) == 20_000


def test_ids_sort_by_time_before_shard_and_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 1_700_000_000_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    ids = IdSource()
    made = []
    for n in range(200):
        now_ns += 1_000_000
        made.append(ids.new(MAX_SHARDS - 1 - n, 2**22 - 1 - n))
    assert made == sorted(made)
    assert list(map(text_of, made)) == sorted(map(text_of, made))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no-id",
        "018bcfe5-6800-7005-8000-24abcdef000",  # too short
        "018bcfe5-6800-7005-8000-24abcdef00011",  # too long
        "018bcfe5-6800-4005-8000-24abcdef0001",  # version 4
        "018bcfe5-6800-7005-0000-24abcdef0001",  # another variant
        "018bcfe5-6800-7005-c000-24abcdef0001",
        "018bcfe568007-0058-0002-4abcd-ef0001",  # dashes elsewhere
        "{018bcfe5680070058000-24abcdef0001-}",
        "urn:uuid:018bcfe568007005800024abcd0",
        "018bcfe5-6800-7005-8000-24abcdef000g",
        "018bcfe5-6800-7005-8000-24abcdef00_1",
        "018bcfe5-6800-7005-8000-24abcdef00\uff11\uff11",  # full-width digits
        "018bcfe5-6800-7005-8000-24abcdef 001",
        "../../../../../../../../../etc/passw",
    ],
)
def test_parse_refuses_what_is_no_id_of_ours(text: str) -> None:
    assert parse(text) is None


@given(st.text(max_size=40))
def test_parse_takes_any_text(text: str) -> None:
    found = parse(text)
    assert found is None or text_of(found) == text.lower()


def test_campaign_tag_is_the_same_in_every_process() -> None:
    assert (campaign_tag("launch"), campaign_tag("summer-2026")) == (0x3757F5, 0x132834)


@given(st.text())
def test_campaign_tag_fits_its_bits(campaign: str) -> None:
    assert 0 <= campaign_tag(campaign) < 2**22
