"""The comparison of `python -m bench.micro`, on given numbers; the timing itself is no test."""

import pytest

from bench.micro.compare import Timing, best, compared, table, timings

STORED = {"pack 64": 2.0, "decode a body": 0.1}


def rows_at(factor: float) -> dict[str, Timing]:
    return {"pack 64": Timing(20.0 * factor, 10.0), "decode a body": Timing(1.0, 10.0)}


@pytest.mark.parametrize(("factor", "told"), [(1.25, True), (1.21, True), (1.20, False), (1.10, False), (0.5, False)])
def test_only_more_than_a_fifth_is_a_regression(factor: float, told: bool) -> None:
    rows = compared(rows_at(factor), STORED)
    assert [row.name for row in rows if row.regressed] == (["pack 64"] if told else [])
    assert ("REGRESSION: pack 64" in table(rows)) is told


def test_a_machine_half_as_fast_is_no_regression() -> None:
    slow = {name: Timing(t.us * 2, t.calibrating_us * 2) for name, t in rows_at(1.0).items()}
    assert not any(row.regressed for row in compared(slow, STORED))


def test_words_say_by_how_much() -> None:
    assert "pack 64 takes 25% more than stored" in table(compared(rows_at(1.25), STORED))


def test_new_and_gone_functions_are_shown_and_no_regressions() -> None:
    rows = compared({"fresh": Timing(1.0, 1.0)}, {"old": 1.0})
    assert not any(row.regressed for row in rows)
    shown = table(rows)
    assert "new" in shown.splitlines()[1]
    assert "gone" in shown.splitlines()[2]


def test_the_best_session_counts_by_its_ratio() -> None:
    noisy, calm = {"f": Timing(9.0, 1.0)}, {"f": Timing(10.0, 5.0)}
    assert best([noisy, calm, {"g": Timing(1.0, 1.0)}]) == {"f": Timing(10.0, 5.0), "g": Timing(1.0, 1.0)}


def test_timings_are_read_from_what_pytest_benchmark_writes() -> None:
    session = {
        "benchmarks": [
            {"name": "test_pack_64", "stats": {"min": 2e-5, "median": 9.0}, "extra_info": {"calibrating_us": 10.0}}
        ]
    }
    found = timings(session)
    assert found["pack 64"].us == pytest.approx(20.0)
    assert found["pack 64"].ratio == pytest.approx(2.0)
