"""Sharing an amount out: to the last minor unit, by weight, the same every time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.desk.shares import share_out


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**6), min_size=1, max_size=20).filter(any))
def test_share_out_adds_up_and_each_part_is_its_share_rounded(total: int, weights: list[int]) -> None:
    parts = share_out(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - total * weight) < sum(weights)
        assert weight or part == 0


def test_share_out_gives_the_rest_to_the_largest_remainder_and_refuses_nonsense() -> None:
    assert share_out(100, [1, 1, 1]) == [34, 33, 33]
    assert share_out(10, [1, 5, 4]) == [1, 5, 4]
    assert share_out(5, [1, 8, 1]) == [1, 4, 0]
    assert share_out(0, [0, 0]) == [0, 0]
    for bad in [(1, [0]), (-1, [1]), (1, [-1, 2]), (1, [])]:
        with pytest.raises(ValueError, match=r"share|negative"):
            share_out(*bad)
