"""The report: figures come from results, the rest of a document stays."""

from pathlib import Path
from typing import Any

import pytest

from bench import goals
from bench.report import PERFORMANCE, README, load, performance, readme
from bench.tables import figure, heading, tables


def spread(median: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {
        "median": median,
        "min": median if low is None else low,
        "max": median if high is None else high,
        "rounds": 7,
    }


FACTS = {"commit": "abc1234", "at": "2026-11-22 06:00 UTC", "load": "0.1", "python": "3.11.7"}


def result(name: str, value: Any, **more: Any) -> dict[str, dict[str, Any]]:
    return {name: {"environment": FACTS, name: value, **more}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (spread(12_743.4, 12_403.2, 13_768), "12,743 (12,403–13,768)"),
        (spread(7.041, 6.5, 8.0), "7.04 (6.50–8.00)"),
        (spread(17.1), "17.1"),
        (1_000_000, "1,000,000"),
        (0.0226, "0.023"),
        (True, "yes"),
        (None, ""),
        ("words", "words"),
    ],
)
def test_figures(value: Any, words: str) -> None:
    assert figure(value) == words


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("cpu_us_per_order", "CPU, us per order"),
        ("orders_per_s", "orders/s"),
        ("p99_ms", "p99, ms"),
        ("bytes", "bytes"),
        ("seconds", "seconds"),
    ],
)
def test_headings(key: str, words: str) -> None:
    assert heading(key) == words


def test_inner_keys_are_columns_and_outer_keys_rows() -> None:
    value = {"64": {"orders_per_s": spread(1_000.0), "p50_ms": spread(2.0)}, "256": {"orders_per_s": spread(3_000.0)}}
    assert tables(value, "connections") == (
        "| connections | orders/s | p50, ms |\n|---|---|---|\n| 64 | 1,000 | 2 |\n| 256 | 3,000 |  |"
    )


def test_rows_that_share_no_column_are_tables_of_their_own_and_lists_are_left_out() -> None:
    made = tables({"a": {"x": 1, "y": 2}, "b": {"z": 3, "lag": [1, 2, 3]}})
    assert made.split("\n\n") == ["|  | x | y |\n|---|---|---|\n| a | 1 | 2 |", "|  | z |\n|---|---|\n| b | 3 |"]


def test_two_levels_of_rows_name_the_outer_one_once() -> None:
    made = tables({"fsync": {"1": {"n": 1}, "16": {"n": 2}}, "memory": {"1": {"n": 3}}}).splitlines()
    assert made[2:] == ["| fsync | 1 | 1 |", "|  | 16 | 2 |", "| memory | 1 | 3 |"]


def test_a_wide_table_is_turned() -> None:
    made = tables({"a": {f"c{n}": n for n in range(12)}, "b": {f"c{n}": 100 + n for n in range(12)}}).splitlines()
    assert made[0] == "|  | a | b |"
    assert made[2] == "| c0 | 0 | 100 |"
    assert len(made) == 14


def test_a_section_is_made_anew_and_the_rest_stays(tmp_path: Path) -> None:
    text = "before\n<!-- bench:store -->\nold\n<!-- /bench -->\nafter\n"
    (tmp_path / "store.svg").touch()
    written = performance(text, result("store", {"64": {"cpu_us_per_order": spread(6.5, 6.0, 7.0)}}), tmp_path)
    assert written.missing == []
    assert written.text.startswith("before\n<!-- bench:store -->\n| orders a call | CPU, us per order |\n")
    assert "| 64 | 6.50 (6.00–7.00) |" in written.text
    assert "Commit abc1234, 2026-11-22 06:00 UTC; medians of 7 rounds" in written.text
    assert "![store](../bench/results/store.svg)" in written.text
    assert written.text.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in written.text
    assert performance(
        written.text, result("store", {"64": {"cpu_us_per_order": spread(6.5, 6.0, 7.0)}}), tmp_path
    ) == (written)


def test_a_part_of_a_result_is_a_section(tmp_path: Path) -> None:
    text = "<!-- bench:drain.spike -->\n<!-- /bench -->"
    results = result("drain", {"1": {"n": 77}}, spike={"clear_s": spread(2.5)}, settings={"orders": 40_000})
    written = performance(text, results, tmp_path).text
    assert "| clear, s | 2.50 |" in written
    assert "orders 40,000" in written
    assert "77" not in written


@pytest.mark.parametrize("name", ["nothing", "store.none", "model"])
def test_a_missing_result_leaves_the_old_text_and_is_named(name: str, tmp_path: Path) -> None:
    text = f"<!-- bench:{name} -->\nold 1\n<!-- /bench -->\n"
    written = performance(text, result("store", {"64": {"x": 1}}), tmp_path)
    assert written.text == text
    assert written.missing[0].split()[0] == name


def test_the_peers_stand_in_the_readme(tmp_path: Path) -> None:
    row = dict.fromkeys(("accepted_per_s", "ratio", "p50_ms", "p99_ms", "gateway_us", "store_us"), spread(5.0))
    ours = row | {"accepted_per_s": spread(27_200.0, 26_000.0, 28_000.0), "ratio": spread(1.0)}
    text = "# Rushgate\n<!-- peers -->\nold\n<!-- /peers -->\nmore"
    results = result("peers", {"64": {"rushgate": ours, "fastify": row}})
    written = readme(text, results, tmp_path)
    assert written.missing == []
    assert "| Rushgate | 27,200 (26,000–28,000) |" in written.text
    assert "| Fastify + ioredis | 5 (5–5) | 5.00x" in written.text
    assert "old" not in written.text
    assert written.text.endswith("<!-- /peers -->\nmore")
    assert readme(text, {}, tmp_path).text == text


def test_goals_take_the_worst_of_their_figures() -> None:
    ratios = {"64": {"fastify": {"ratio": spread(1.7)}}, "256": {"fastify": {"ratio": spread(1.4)}}}
    made = goals.table({"peers": {"peers": ratios}, "store": {"store": {"64": {"cpu_us_per_order": spread(6.9)}}}})
    assert "| accepted/s against Fastify + ioredis | >= 1.5x | 1.70x at 64, 1.40x at 256 | **no** |" in made
    assert "| store CPU per order, batch 64, `fsync` | <= 7 us | 6.9 us | yes |" in made
    assert "| accepted/s against nginx + Lua | >= 1.5x | not measured |  |" in made


def test_the_documents_are_as_the_results_are() -> None:
    results = load()
    assert results
    assert performance(PERFORMANCE.read_text("utf-8"), results).text == PERFORMANCE.read_text("utf-8"), (
        "run python -m bench.report"
    )
    assert readme(README.read_text("utf-8"), results).text == README.read_text("utf-8"), "run python -m bench.report"
