"""What the end-to-end bench makes of times, on given numbers."""

from array import array
from collections import Counter
from pathlib import Path

import pytest

from bench import plot
from bench.end_to_end import judged, percentiles_ms, result, slope_of
from bench.generator import Opened

RATE, SECONDS = 100, 60


def opened(errors: int = 0) -> Opened:
    """Orders at an even rate, each sent 1 ms and answered 3 ms after its planned time."""
    due = array("d", [n / RATE for n in range(RATE * SECONDS)])
    sent = array("d", [d + 0.001 for d in due])
    answered = array("d", [d + 0.003 for d in due])
    statuses = Counter({b"202": len(due) - errors}) + Counter({b"503": errors})
    return Opened(0.0, due, sent, answered, statuses)


def test_constant_delay_is_flat() -> None:
    load = opened()
    ran = judged(RATE, SECONDS, load, {n: due + 0.05 for n, due in enumerate(load.due_s)}, {})
    assert ran.flat
    assert ran.slope == pytest.approx(0)
    assert len(ran.lag) == SECONDS
    assert all(4 <= lag <= 6 for lag in ran.lag)
    assert percentiles_ms(ran.row_s)["p99"] == pytest.approx(50)
    assert percentiles_ms(ran.answered_s)["p50"] == pytest.approx(3)
    assert percentiles_ms(ran.late_s)["max"] == pytest.approx(1)


def test_worker_one_percent_too_slow_is_not_flat() -> None:
    load = opened()
    ran = judged(RATE, SECONDS, load, {n: due * 1.01 + 0.05 for n, due in enumerate(load.due_s)}, {})
    assert not ran.flat
    assert ran.slope == pytest.approx(1, rel=0.1)  # of 100 a second one stays behind


def test_slow_start_and_one_pause_are_flat() -> None:
    """The first ten seconds are not judged, and a pause of the disk that is made up for is no growth."""
    load = opened()

    def row_s(due: float) -> float:
        late = 2.0 - due / 5 if due < 10 else 0.05
        return max(due + late, 32.0) if 30 < due < 32 else due + late

    assert judged(RATE, SECONDS, load, {n: row_s(due) for n, due in enumerate(load.due_s)}, {}).flat


def test_one_error_is_not_flat() -> None:
    load = opened(errors=1)
    ran = judged(RATE, SECONDS, load, {n: due + 0.05 for n, due in enumerate(load.due_s) if n}, {})
    assert not ran.flat
    assert ran.errors == {"503": 1}


@pytest.mark.parametrize(("values", "slope"), [([], 0.0), ([5], 0.0), ([0, 2, 4, 6], 2.0), ([0, 2, 900, 6, 8], 2.0)])
def test_slope_is_the_median_of_all_pairs(values: list[float], slope: float) -> None:
    assert slope_of(values) == slope


def test_percentiles_of_a_thousand() -> None:
    found = percentiles_ms([n / 1000 for n in range(1_000)][::-1])
    assert found == pytest.approx({"p50": 500, "p99": 990, "p999": 999, "max": 999})


def test_result_has_the_proved_rate_and_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    load = opened()
    cpu_us = {"gateway": 30.0, "store": 8.0}
    flat = judged(RATE, SECONDS, load, {n: due + 0.05 for n, due in enumerate(load.due_s)}, cpu_us)
    slow = judged(RATE * 2, SECONDS, load, {n: due * 1.1 for n, due in enumerate(load.due_s)}, cpu_us)
    found = result([flat, slow], [flat, slow], flat, {0.5: [flat, flat]})
    assert found["end_to_end"]["flat"]["orders_per_s"]["median"] == RATE
    assert found["end_to_end"]["50%"]["to_202_p99_ms"]["rounds"] == 2
    assert [run["flat"] for run in found["runs"]] == [True, False, True, False]
    assert {path.name for path in tmp_path.iterdir()} == {"end_to_end_lag.svg", "end_to_end_latency.svg"}
