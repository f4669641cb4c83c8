"""What wrk printed as figures, and what of it is refused; the tables made of figures."""

import json

import pytest

from bench.side_by_side import Run, markdown, table
from bench.wrk import Load, LoadInvalid, parse

SAID = """Running 16s test @ http://127.0.0.1:8080
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.56ms    1.23ms  20.11ms   81.11%
    Req/Sec    13.90k   401.00    14.80k    75.00%
  55921 requests in 4.02s, 12.50MB read
Requests/sec:  13910.69
Transfer/sec:      3.11MB
RESULT """
FOUND = {
    "made": 55921, "answered": 55921, "answers": {"202": 55921}, "took_s": 4.0, "p50_us": 4510, "p99_us": 7020,
    "most_us": 20110, "connect": 0, "read": 0, "write": 0, "timeout": 0,
}  # fmt: skip


def said(**changed: object) -> str:
    return SAID + json.dumps(FOUND | changed) + "\n"


def test_the_result_line_gives_answers_rate_and_latency() -> None:
    load = parse(said())
    assert load == Load({202: 55921}, 4.0, 4.51, 7.02, 20.11)
    assert load.per_s == 55921 / 4.0
    assert load.only(202) is load


def test_wrk_without_a_result_line_is_refused() -> None:
    with pytest.raises(LoadInvalid, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:8080 Connection refused\n")


@pytest.mark.parametrize("fault", ["connect", "read", "write", "timeout"])
def test_a_failed_connection_is_refused(fault: str) -> None:
    with pytest.raises(LoadInvalid, match=fault):
        parse(said(**{fault: 1}))


def test_a_missing_answer_is_refused() -> None:
    with pytest.raises(LoadInvalid, match="55920 answered"):
        parse(said(answered=55920))


def test_a_run_that_sent_nothing_is_refused() -> None:
    with pytest.raises(LoadInvalid, match="nothing"):
        parse(said(made=0, answered=0, answers={}))


@pytest.mark.parametrize("answers", [{"202": 55920, "503": 1}, {"200": 55921}])
def test_an_answer_of_another_status_is_refused(answers: dict[str, int]) -> None:
    load = parse(said(answers=answers))
    with pytest.raises(LoadInvalid, match="not every answer was 202"):
        load.only(202)


def run(per_s: float) -> Run:
    return Run(1, per_s, 1.0, 2.0, 30.0, 8.0, 0.9)


def test_the_ratio_is_taken_round_by_round() -> None:
    # Drift: the machine is twice as fast in the second round. The ratio of the medians would be 1.5.
    found = table({"rushgate": [run(20), run(40), run(30)], "echo": [run(10), run(20), run(30)]}, "accepted_per_s")
    assert found["echo"]["ratio"] == {"median": 2.0, "min": 1.0, "max": 2.0, "rounds": 3}
    assert found["rushgate"]["ratio"]["median"] == 1.0
    assert found["rushgate"]["accepted_per_s"]["median"] == 30


def test_the_markdown_table_has_a_row_for_each_contestant() -> None:
    found = table({"rushgate": [run(2000)], "fastify": [run(1000)], "echo": [run(4000)]}, "accepted_per_s")
    lines = markdown({"64": found})
    assert lines[0].startswith("| 64 connections | accepted/s |")
    assert lines[2:] == [
        "| Rushgate | 2,000 (2,000–2,000) |  | 1.0 ms | 2.0 ms | 30.0 us | 8.0 us |",
        "| Fastify + ioredis | 1,000 (1,000–1,000) | 2.00x (2.00–2.00) | 1.0 ms | 2.0 ms | 30.0 us | 8.0 us |",
        "| bare uvicorn echo, no store | 4,000 (4,000–4,000) | 0.50x (0.50–0.50) | 1.0 ms | 2.0 ms | 30.0 us | none |",
    ]
