"""The draw of places: a permutation, fair, and decided by nothing but its seed."""

from collections import Counter
from itertools import permutations

import pytest

from core.lot import place


def drawn(seed: str, count: int) -> list[int]:
    return [place(seed, count, n) for n in range(1, count + 1)]


def chi_square(seen: "Counter[object]", kinds: int) -> float:
    expected = sum(seen.values()) / kinds
    return sum((count - expected) ** 2 for count in seen.values()) / expected + (kinds - len(seen)) * expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 17, 99, 1_000, 10_007])
def test_every_place_is_given_once(count: int) -> None:
    assert sorted(drawn("seed", count)) == list(range(1, count + 1))


def test_seed_decides_and_another_one_decides_otherwise() -> None:
    assert drawn("a", 1_000) == drawn("a", 1_000)
    same = sum(x == y for x, y in zip(drawn("a", 1_000), drawn("b", 1_000), strict=True))
    assert same < 10  # one is expected


# 99.99 % quantiles of the chi-square distribution, by degrees of freedom: a fair draw fails once in 10,000 versions.
QUANTILES = {9: 33.7, 23: 56.6, 99: 160.1}


@pytest.mark.parametrize("number", [1, 2, 50, 100])
def test_no_number_has_better_places_than_another(number: int) -> None:
    seen = Counter[object](place(f"seed {n}", 100, number) for n in range(10_000))
    assert chi_square(seen, 100) < QUANTILES[99]


def test_all_orders_of_four_are_as_likely() -> None:
    seen = Counter[object](tuple(drawn(f"seed {n}", 4)) for n in range(12_000))
    assert set(seen) == set(permutations((1, 2, 3, 4)))
    assert chi_square(seen, 24) < QUANTILES[23]


def test_neighbours_in_the_line_are_no_neighbours_in_the_draw() -> None:
    apart = Counter[object]((place(f"s{n}", 10, 1) - place(f"s{n}", 10, 2)) % 10 for n in range(9_000))
    assert 0 not in apart
    assert chi_square(apart, 9) < QUANTILES[9]


def test_control_a_shift_instead_of_a_draw_is_seen() -> None:
    """Control: if a shift by a random offset passes, the tests above prove nothing."""
    apart = Counter[object]((((1 + n) % 10) - ((2 + n) % 10)) % 10 for n in range(9_000))
    assert chi_square(apart, 9) > QUANTILES[9]
