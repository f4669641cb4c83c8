"""How many users there are when, without locust."""

import pytest

from loadtest.locust_shapes import SHAPES, step_at, warm_up_s


def users(shape: str, run_s: float = 100.0, most: int = 200) -> list[int]:
    steps = [step_at(shape, float(at), run_s, most, 10, 1) for at in range(int(run_s))]
    return [step.users for step in steps if step is not None]


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_shape_never_passes_its_users_and_ends_in_time(shape: str) -> None:
    assert len(users(shape)) == 100
    assert max(users(shape)) == 200
    assert min(users(shape)) >= 1
    assert step_at(shape, 100.0, 100.0, 200, 10, 1) is None


def test_spike_is_all_at_once_and_begins_before_t0() -> None:
    assert set(users("spike")) == {200}
    assert warm_up_s("spike", 1_000, 2) == 7.0
    assert warm_up_s("steady", 1_000, 2) == 0.0


def test_ramp_grows_evenly_then_holds() -> None:
    found = users("ramp")
    assert found == sorted(found)
    assert found[30] == pytest.approx(100, abs=2)
    assert set(found[60:]) == {200}


def test_wave_comes_down_to_a_fifth_three_times() -> None:
    found = users("wave")
    assert sum(a < b >= c for a, b, c in zip(found, found[1:], found[2:], strict=False)) == 3
    assert found[0] == 40
    assert found[33] < 50


def test_soak_is_up_after_a_twentieth() -> None:
    assert users("soak")[5:] == [200] * 95


def test_steady_runs_until_it_is_stopped_at_the_rate_it_was_told() -> None:
    step = step_at("steady", 1e6, None, 200, 7, 1)
    assert step == (200, 7)


def test_no_process_spawns_more_than_locust_can() -> None:
    for processes in (1, 4):
        step = step_at("spike", 0, 60, 10_000, 1, processes)
        assert step is not None
        assert step.spawn_rate == 100 * processes
